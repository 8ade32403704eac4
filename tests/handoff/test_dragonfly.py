import configparser
import json
import shutil
import subprocess

import h5py
import numpy as np
import pytest

from spidask.config import Config
from spidask.handoff import export
from spidask.io.dragonfly import read_detector
from spidask.io.emc import read_photons, write_photons_binary
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
    export(selection, frames, config, tmp_path)
    folder = tmp_path / "dragonfly"
    whole = read_photons(folder / "photons.h5")
    write_photons_binary(folder / "photons.emc", [whole], *whole.shape)
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
def test_dragonfly_s_emc_runs_on_the_folder_as_it_is(
    selection, frames, config, tmp_path, dragonfly_python
):
    config = Config.model_validate(
        config.model_dump()
        | {"handoff": {"num_div": 2}, "geometry": {"beam_centre_y_px": 3, "beam_centre_x_px": 3}}
    )
    export(selection, frames, config, tmp_path / "written")
    # Moved elsewhere and started from somewhere else: all its paths are relative to its folder.
    folder = tmp_path / "moved"
    shutil.move(tmp_path / "written" / "dragonfly", folder)
    main = "from dragonfly.recon import main; main()"
    emc = [dragonfly_python, "-c", main, "-c", folder / "config.ini", "-t", "1", "2"]
    done = subprocess.run(emc, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with h5py.File(folder / "output" / "output_002.h5") as file:
        assert np.isfinite(file["intens"][()]).all()
        assert len(file["orientations"]) == 8
