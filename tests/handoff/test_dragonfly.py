import configparser
import json
import shutil
import subprocess

import h5py
import numpy as np
import pytest
import xarray as xr

from spidask.config import Config, Geometry, Sizing
from spidask.frames.fitting import forward_length
from spidask.frames.sizing import fit_spheres, radial_sums, sphere_amplitude
from spidask.handoff import export
from spidask.handoff.dragonfly import relative_scale
from spidask.handoff.layout import Layout
from spidask.io.dragonfly import read_blacklist, read_detector
from spidask.io.emc import read_photons
from spidask.preprocessing import load_library
from spidask.selection import select
from tests.handoff.conftest import HITS, region_of


def test_settings_of_dragonfly(selection, frames, config, tmp_path):
    export(selection, frames, config, tmp_path)
    ini = configparser.ConfigParser()
    ini.read(tmp_path / "dragonfly" / "config.ini")
    assert dict(ini["parameters"]) == {
        "detd": "130",
        "lambda": "7.290186",
        "detsize": "7 5",
        "pixsize": "0.075",
        "stoprad": "0",
        "polarization": "x",
    } | {"lambda": ini["parameters"]["lambda"]}
    assert float(ini["parameters"]["lambda"]) == pytest.approx(7.2902, abs=1e-4)
    for key in ("in_photons_file", "in_detector_file", "blacklist_file", "scale_file"):
        assert (tmp_path / "dragonfly" / ini["emc"][key]).is_file()


def with_handoff(config, **settings):
    return Config.model_validate(config.model_dump() | {"handoff": settings})


@pytest.mark.parametrize(
    ("form", "named", "binary"),
    [("hdf5", "photons.h5", False), ("binary", "photons.emc", True), ("both", "photons.h5", True)],
)
def test_photons_in_either_form(selection, frames, config, tmp_path, form, named, binary):
    export(selection, frames, with_handoff(config, photons=form), tmp_path)
    folder = tmp_path / "dragonfly"
    ini = configparser.ConfigParser()
    ini.read(folder / "config.ini")
    assert ini["emc"]["in_photons_file"] == named
    assert (folder / "photons.emc").exists() == binary
    if binary:
        found = read_photons(folder / "photons.emc").toarray()
        assert found.tolist() == read_photons(folder / "photons.h5").toarray().tolist()


def test_binary_photons_follow_other_hits(selection, labels, frames, config, tmp_path):
    config = with_handoff(config, photons="both")
    export(selection, frames, config, tmp_path)
    fewer = labels.assign(hit=labels["hit"] & (labels["index"] < 5))
    export(select(fewer, [0.5], config.selection), frames, config, tmp_path)
    assert read_photons(tmp_path / "dragonfly" / "photons.emc").shape == (6, 35)


def test_a_blacklist_for_each_size_window(selection, frames, config, tmp_path):
    # 70 nm but for the first hit of each run, of 90 nm; one frame is no single hit.
    scores = selection["score"].values.copy()
    scores[4] = -0.1
    selection = selection.assign(score=("frame", scores))
    windows = [(55.0, 84.0), (69.5, 95.0), (85.0, 95.0)]
    export(selection, frames, with_handoff(config, blacklists=windows), tmp_path)
    folder = tmp_path / "dragonfly"
    not_single = [place == (0, 4) for place in HITS]
    large = [index == 1 for _, index in HITS]
    for name, excluded in (
        ("55_84", np.logical_or(not_single, large)),
        ("69.5_95", not_single),
        ("85_95", np.logical_not(large)),
    ):
        assert read_blacklist(folder / f"blacklist_{name}.txt").tolist() == list(excluded)
    export(selection, frames, with_handoff(config, blacklists=windows[:1]), tmp_path)
    assert [p.name for p in folder.glob("blacklist_*")] == ["blacklist_55_84.txt"]


def test_a_letter_for_each_hit(labels, frames, config, tmp_path):
    scores = labels["scores"].copy()
    scores[2] = 0.1
    export(select(labels.assign(scores=scores), [0.5], config.selection), frames, config, tmp_path)
    letters = (tmp_path / "dragonfly" / "my_classes.dat").read_text().split()
    assert letters == ["z", "n", "s", "s", "z", "s", "s", "s"]


def test_the_scale_without_a_fit_is_that_of_the_photons(selection, frames, config, tmp_path):
    export(selection, frames, config, tmp_path)
    with h5py.File(tmp_path / "dragonfly" / "scale.h5") as file:
        scale = file["scale"][()]
    count = selection["photon_count"].values[selection["hit"].values]
    chosen = np.array([index != 1 for _, index in HITS])
    np.testing.assert_allclose(scale, count / count[chosen].mean(), rtol=1e-6)


def test_the_scale_of_simulated_hits_is_their_fluence(config):
    rng = np.random.default_rng(8)
    place = Geometry()
    config = config.model_copy(update={"sizing": Sizing(particle="sphere")})
    hidden = np.zeros((61, 120), bool)
    hidden[:6, 54:66] = True
    layout = Layout((0, 392), hidden, 2)
    library = load_library(place, config.sizing, (0, 392), (122, 240))
    fluence = rng.uniform(1e9, 1e10, 200)
    form = sphere_amplitude(library.q[library.bins], 68.0) ** 2 * library.exposure
    ahead = fluence * 1e-6 * forward_length(np.array([68.0])) ** 2 * library.brightest
    patterns = rng.poisson(ahead[:, None, None] * form + 0.005).astype(np.float32)
    patterns[:, np.kron(hidden, np.ones((2, 2), bool))] = np.nan
    sums = radial_sums(patterns, library.bins, library.exposure)
    diameter, _, fitted = fit_spheres(*sums, library)
    hits = xr.Dataset(
        {
            "photon_count": ("frame", np.nansum(patterns, axis=(1, 2))),
            "selected": ("frame", np.ones(200, bool)),
            "diameter": ("frame", diameter),
            "fluence": ("frame", fitted),
        }
    )
    error = relative_scale(hits, place, layout, config) / (fluence / fluence.mean()) - 1
    assert np.median(np.abs(error)) < 0.04
    assert np.percentile(np.abs(error), 90) < 0.10
    # One that could not be fitted, and one that holds nothing.
    hits["fluence"][:2] = np.nan
    hits["photon_count"][1] = 0
    scale = relative_scale(hits, place, layout, config)
    assert scale[0] == pytest.approx(fluence[0] / fluence.mean(), rel=0.4)
    assert scale[1] == 1e-3


# Runs where Dragonfly lives: reads a folder with its own classes, writes with its own writer.
SCRIPT = """
import json, sys
import numpy as np
from dragonfly.detector import CDetector, Detector
from dragonfly.emcfile import CDataset, EMCReader, EMCWriter

folder, out = sys.argv[1:]
detector = CDetector(folder + "/detector.h5", norm=False)
seen = {"detector": [detector.num_pix, detector.detd, detector.ewald_rad]}
seen["q"] = np.asarray(detector.qvals).tolist()
seen["corr"] = np.asarray(detector.corr).tolist()
seen["mask"] = np.asarray(detector.raw_mask).tolist()
for name in ("photons.h5", "photons.emc"):
    photons = CDataset(folder + "/" + name, detector)
    frames = np.zeros((photons.num_data, photons.num_pix), int)
    at = np.repeat(np.arange(photons.num_data), photons.ones)
    frames[at, photons.place_ones] = 1
    at = np.repeat(np.arange(photons.num_data), photons.multi)
    frames[at, photons.place_multi] = photons.count_multi
    assert photons.ftype == "sparse"
    reader = EMCReader([folder + "/" + name], [Detector(folder + "/detector.h5")])
    one_by_one = [reader.get_frame(i, raw=True).tolist() for i in range(reader.num_frames)]
    assert one_by_one == frames.tolist()
    seen[name] = frames.tolist()
for name, hdf5 in (("theirs.h5", True), ("theirs.emc", False)):
    with EMCWriter(out + "/" + name, photons.num_pix, hdf5=hdf5) as writer:
        for frame in frames:
            writer.write_frame(frame)
json.dump(seen, open(out + "/seen.json", "w"))
"""


@pytest.mark.dragonfly
def test_dragonfly_reads_what_was_written_and_the_other_way_round(
    selection, frames, config, photons, tmp_path, dragonfly_python
):
    export(selection, frames, with_handoff(config, photons="both"), tmp_path)
    folder = tmp_path / "dragonfly"
    subprocess.run([dragonfly_python, "-c", SCRIPT, folder, tmp_path], check=True)
    seen = json.loads((tmp_path / "seen.json").read_text())
    detector = read_detector(folder / "detector.h5")
    assert seen["detector"] == [35, detector.detd, detector.ewald_rad]
    assert np.array(seen["q"]).T.tolist() == [
        detector.qx.tolist(),
        detector.qy.tolist(),
        detector.qz.tolist(),
    ]
    assert seen["corr"] == detector.corr.tolist()
    assert seen["mask"] == detector.mask.tolist()
    expected = region_of(photons, HITS).reshape(8, -1).tolist()
    assert seen["photons.h5"] == seen["photons.emc"] == expected
    for name in ("theirs.h5", "theirs.emc"):
        assert read_photons(tmp_path / name).toarray().tolist() == expected


@pytest.mark.dragonfly
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("form", ["hdf5", "binary"])
def test_dragonfly_s_emc_runs_on_the_folder_as_it_is(
    selection, frames, config, tmp_path, dragonfly_python, form, background
):
    config = Config.model_validate(
        config.model_dump()
        | {
            "handoff": {"num_div": 2, "photons": form},
            "geometry": {"beam_centre_y_px": 3, "beam_centre_x_px": 3},
        }
    )
    export(selection, frames, config, tmp_path / "written")
    # Moved elsewhere and started from somewhere else: all its paths are relative to its folder.
    folder = tmp_path / "moved"
    shutil.move(tmp_path / "written" / "dragonfly", folder)
    if background:
        ini = (folder / "config.ini").read_text()
        (folder / "config.ini").write_text(f"{ini.rstrip()}\nbackground_file = detector.h5\n")
    main = "from dragonfly.recon import main; main()"
    emc = [dragonfly_python, "-c", main, "-c", folder / "config.ini", "-t", "1", "2"]
    done = subprocess.run(emc, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with h5py.File(folder / "output" / "output_002.h5") as file:
        assert np.isfinite(file["intens"][()]).all()
        assert len(file["orientations"]) == 8


READ = """
import json, sys
import numpy as np
from dragonfly.iterate import Iterate
from dragonfly.detector import CDetector

folder, out = sys.argv[1:]
iterate = Iterate()
iterate.from_config(folder + "/config.ini", "emc")
detector = CDetector(folder + "/detector.h5", norm=False)
detector.parse_background(folder + "/detector.h5")
seen = {"scale": np.asarray(iterate.scale).tolist()}
seen["blacklist"] = np.asarray(iterate.blacklist).tolist()
seen["background"] = np.asarray(detector.background).tolist()
json.dump(seen, open(out, "w"))
"""


@pytest.mark.dragonfly
def test_dragonfly_takes_scale_blacklist_and_background(
    selection, frames, config, tmp_path, dragonfly_python
):
    export(selection, frames, config, tmp_path)
    folder = tmp_path / "dragonfly"
    subprocess.run([dragonfly_python, "-c", READ, folder, tmp_path / "seen.json"], check=True)
    seen = json.loads((tmp_path / "seen.json").read_text())
    with h5py.File(folder / "scale.h5") as file:
        assert seen["scale"] == file["scale"][()].tolist()
    assert seen["blacklist"] == [index == 1 for _, index in HITS]
    with h5py.File(folder / "detector.h5") as file:
        assert seen["background"] == file["background"][()].tolist()
        assert max(seen["background"]) > 0
