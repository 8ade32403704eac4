import configparser
import json
import os
import shutil
import subprocess

import dask
import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from spidask.config import Config
from spidask.errors import ConfigError, DataError
from spidask.handoff import export, photons_are_current
from spidask.io.cxi import read_cxi
from spidask.io.dragonfly import read_blacklist, read_detector
from spidask.io.emc import read_missing, read_photons, write_photons_binary
from spidask.io.runs import open_runs
from spidask.preprocessing import preprocess
from spidask.selection import select

N_FRAMES, ROWS, COLUMNS = 7, 6, 8
Y, X = slice(1, 6), slice(0, 7)
"""The region of interest."""


@pytest.fixture
def photons():
    """Two runs of frames that hold whole photons; 20 of them saturate."""
    random = np.random.default_rng(3)
    frames = random.poisson(0.7, (2, N_FRAMES, ROWS, COLUMNS)).astype(np.uint16)
    frames[1, 2, 3, 4] = 20
    return frames


@pytest.fixture
def masks():
    good = np.ones((2, ROWS, COLUMNS), np.uint8)
    good[0, 2, 2] = good[1, 5, 6] = 0
    return good


@pytest.fixture
def config(tmp_path, photons, masks):
    with h5py.File(tmp_path / "masks.h5", "w") as file:
        for code, run in enumerate(("r0001", "r0002")):
            file[run] = masks[code]
            with h5py.File(tmp_path / f"{run}.h5", "w") as data:
                data["data"] = photons[code]
                data["trainId"] = 1000 * code + np.arange(N_FRAMES)
    return Config.model_validate(
        {
            "runs": {
                "files": [str(tmp_path / "r*.h5")],
                "dataset": "data",
                "mask": f"{tmp_path}/masks.h5:{{run}}",
            },
            "output": str(tmp_path / "out"),
            "geometry": {"beam_centre_y_px": -1.0, "beam_centre_x_px": 3.5},
            "preprocessing": {
                "region": {"y": [Y.start, Y.stop], "x": [X.start, X.stop]},
                "saturation_adu": 20,
            },
            "hits": {"threshold": "none"},
        }
    )


@pytest.fixture
def frames(config):
    return open_runs(config.runs.files, config.runs.dataset)


@pytest.fixture
def labels(frames, config):
    """Frames 0, 3 and 6 of each run are misses, the first of the others is too large."""
    patterns = preprocess(frames, config)
    names = ("run", "index", "trainId", "run_name", "photon_count", "readable")
    known = {name: patterns[name].variable.compute() for name in names}
    hit = known["index"].values % 3 != 0
    return xr.Dataset(known).assign(
        hit=("frame", hit),
        scores=(("frame", "member"), np.where(hit, 0.75, np.nan).astype(np.float32)[:, None]),
        diameter=("frame", np.where(known["index"].values == 1, 90, 70).astype(np.float32)),
    )


@pytest.fixture
def selection(labels, config):
    return select(labels, [0.5], config.selection)


HITS = [(0, 1), (0, 2), (0, 4), (0, 5), (1, 1), (1, 2), (1, 4), (1, 5)]
SELECTED = [hit for hit in HITS if hit[1] != 1]


def region_of(photons, hits):
    """Photons that Dragonfly has to get: none where a run's mask or saturation hides them."""
    frames = np.stack([photons[run, index, Y, X] for run, index in hits]).astype(int)
    frames[:, 1, 2] = frames[:, 4, 6] = 0
    frames[frames >= 20] = 0
    return frames


def test_photons_of_all_hits_and_a_blacklist(selection, frames, config, photons, tmp_path):
    counts = export(selection, frames, config, tmp_path)
    found = read_photons(tmp_path / "dragonfly" / "photons.h5").toarray()
    assert found.tolist() == region_of(photons, HITS).reshape(8, -1).tolist()
    excluded = read_blacklist(tmp_path / "dragonfly" / "blacklist.txt")
    assert excluded.tolist() == [index == 1 for _, index in HITS]
    assert counts == {
        "hits": 8,
        "selected": 6,
        "photons_written": 1,
        "pixels": 35,
        "pixels_ignored": 2,
        "missing_values": 1,
    }


def test_the_index_tells_which_frame_is_which(selection, frames, config, tmp_path):
    export(selection, frames, config, tmp_path)
    index = pd.read_csv(tmp_path / "dragonfly" / "index.csv")
    assert list(index.columns) == ["frame", "run", "index", "trainId"]
    assert index["frame"].tolist() == list(range(8))
    assert index[["run", "index"]].values.tolist() == [[f"r000{run + 1}", i] for run, i in HITS]
    assert index["trainId"].tolist() == [1000 * run + i for run, i in HITS]
    selected = pd.read_csv(tmp_path / "selected.csv")
    assert selected["trainId"].tolist() == [1000 * run + i for run, i in SELECTED]


def test_the_detector_ignores_what_any_run_masks(selection, frames, config, tmp_path):
    export(selection, frames, config, tmp_path)
    detector = read_detector(tmp_path / "dragonfly" / "detector.h5")
    assert np.argwhere(detector.mask.reshape(5, 7) == 2).tolist() == [[1, 2], [4, 6]]
    distance = 0.13 / 75e-6
    assert detector.detd == detector.ewald_rad == pytest.approx(distance)
    # Pixel (1, 0) of the frame, the region's first, is 2 rows above and 3.5 left of the beam.
    f = np.sqrt(2**2 + 3.5**2 + distance**2)
    found = [getattr(detector, name)[0] for name in ("qx", "qy", "qz", "corr")]
    expected = [-3.5 * distance / f, 2 * distance / f, distance * (distance / f - 1)]
    np.testing.assert_allclose(found, [*expected, distance / f**3 * (1 - 3.5**2 / f**2)])


def test_runs_without_hits_mask_nothing(labels, frames, config, tmp_path):
    labels["hit"] = labels["hit"] & (labels["run"] == 0)
    export(select(labels, [0.5], config.selection), frames, config, tmp_path)
    mask = read_detector(tmp_path / "dragonfly" / "detector.h5").mask.reshape(5, 7)
    assert np.argwhere(mask == 2).tolist() == [[1, 2]]


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
    for key in ("in_photons_file", "in_detector_file", "blacklist_file"):
        assert (tmp_path / "dragonfly" / ini["emc"][key]).is_file()


def test_patterns_as_cxi(selection, frames, config, photons, tmp_path):
    export(selection, frames, config, tmp_path)
    patterns = read_cxi(tmp_path / "selection.cxi")
    expected = region_of(photons, SELECTED).astype(float)
    expected[:, 1, 2] = expected[:, 4, 6] = np.nan
    # The one saturated pixel is missing in its frame alone.
    expected[SELECTED.index((1, 2)), 2, 4] = np.nan
    np.testing.assert_array_equal(patterns["patterns"], expected)
    assert patterns["score"].values.tolist() == [0.25] * 6
    assert patterns["trainId"].values.tolist() == [1000 * run + i for run, i in SELECTED]
    setup = patterns.attrs["setup"]
    assert setup["beam_centre"] == (-2.0, 3.5)
    assert setup["pixel_size"] == pytest.approx(75e-6)
    assert Config.model_validate_json(patterns.attrs["provenance"]["settings"]) == config


def test_squares_of_pixels(selection, frames, config, photons, tmp_path):
    config = Config.model_validate(config.model_dump() | {"handoff": {"bin": 2}})
    counts = export(selection, frames, config, tmp_path)
    whole = np.stack([photons[run, index, Y, X] for run, index in HITS]).astype(int)
    whole = whole[:, :4, :6].reshape(8, 2, 2, 3, 2).sum(axis=(2, 4))
    # Pixel (1, 2) of the region is masked in a run, pixel (2, 4) is saturated in one frame.
    whole[:, 0, 1] = 0
    whole[HITS.index((1, 2)), 1, 2] = 0
    found = read_photons(tmp_path / "dragonfly" / "photons.h5").toarray().reshape(8, 2, 3)
    assert found.tolist() == whole.tolist()
    detector = read_detector(tmp_path / "dragonfly" / "detector.h5")
    assert detector.mask.tolist() == [0, 2, 0, 0, 0, 0]
    assert detector.detd == pytest.approx(0.13 / 150e-6)
    # The first square's centre is (1.5, 0.5): 2.5 rows and -3 columns from the beam.
    assert detector.qy[0] / detector.qx[0] == pytest.approx(2.5 / -3)
    f = np.sqrt(1.25**2 + 1.5**2 + detector.detd**2)
    assert detector.qx[0] == pytest.approx(-1.5 * detector.detd / f)
    assert read_cxi(tmp_path / "selection.cxi").attrs["setup"]["beam_centre"] == (-1.25, 1.5)
    assert counts["pixels"] == 6


def test_another_size_window_writes_the_blacklist_alone(
    selection, labels, frames, config, tmp_path
):
    export(selection, frames, config, tmp_path)
    names = ("photons.h5", "detector.h5", "index.csv")
    before = [(tmp_path / "dragonfly" / name).stat().st_mtime_ns for name in names]
    wider = config.selection.model_copy(update={"size_window_nm": (55.0, 95.0)})
    again = select(labels, [0.5], wider)
    assert photons_are_current(again, config, tmp_path)
    # The raw frames are not needed any more.
    counts = export(again, None, config, tmp_path)
    assert (counts["photons_written"], counts["selected"]) == (0, 8)
    assert [(tmp_path / "dragonfly" / name).stat().st_mtime_ns for name in names] == before
    assert not read_blacklist(tmp_path / "dragonfly" / "blacklist.txt").any()
    assert read_cxi(tmp_path / "selection.cxi").sizes["frame"] == 8


def test_other_hits_photons_or_pixels_are_written_anew(selection, labels, frames, config, tmp_path):
    export(selection, frames, config, tmp_path)
    fewer = labels.assign(hit=labels["hit"] & (labels["index"] < 5))
    fewer = select(fewer, [0.5], config.selection)
    assert not photons_are_current(fewer, config, tmp_path)
    brighter = selection.assign(photon_count=selection["photon_count"] + 1)
    assert not photons_are_current(brighter, config, tmp_path)
    for changes in ({"handoff": {"bin": 2}}, {"geometry": {"detector_distance_m": 0.2}}):
        other = Config.model_validate(config.model_dump() | changes)
        assert not photons_are_current(selection, other, tmp_path)
    with pytest.raises(DataError, match="does not hold these hits"):
        export(fewer, None, config, tmp_path)
    assert export(fewer, frames, config, tmp_path)["photons_written"] == 1
    assert read_photons(tmp_path / "dragonfly" / "photons.h5").shape == (6, 35)


def test_an_interrupted_export_is_no_export(selection, frames, config, tmp_path, monkeypatch):
    export(selection, frames, config, tmp_path)
    other = Config.model_validate(config.model_dump() | {"geometry": {"detector_distance_m": 0.2}})
    monkeypatch.setattr("spidask.io.emc.write_photons", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # detector and index are the other's by now
        export(selection, frames, other, tmp_path)
    assert not photons_are_current(selection, config, tmp_path)


@pytest.mark.parametrize("damage", ["no detector", "short detector", "no index"])
def test_a_damaged_folder_is_written_anew(selection, frames, config, tmp_path, damage):
    export(selection, frames, config, tmp_path)
    folder = tmp_path / "dragonfly"
    if damage == "short detector":
        with h5py.File(folder / "detector.h5", "a") as file:
            del file["mask"]
            file["mask"] = np.zeros(34, np.uint8)
    else:
        (folder / {"no detector": "detector.h5", "no index": "index.csv"}[damage]).unlink()
    assert not photons_are_current(selection, config, tmp_path)
    export(selection, frames, config, tmp_path)
    assert photons_are_current(selection, config, tmp_path)


def test_the_answer_does_not_depend_on_tasks_or_workers(
    selection, frames, config, tmp_path, monkeypatch
):
    from distributed import Client

    export(selection, frames, config, tmp_path / "inline")
    monkeypatch.setattr("spidask.handoff.FRAMES_PER_TASK", 3)
    settings = {"distributed.scheduler.active-memory-manager.start": False}
    with (
        dask.config.set(settings),
        Client(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as client,
    ):
        export(selection, frames, config, tmp_path / "client", client)
    whole, parts = (tmp_path / name / "dragonfly" / "photons.h5" for name in ("inline", "client"))
    assert read_photons(whole).toarray().tolist() == read_photons(parts).toarray().tolist()
    some = slice(0, 8)
    for one, other in zip(read_missing(whole, some), read_missing(parts, some), strict=True):
        assert one.tolist() == other.tolist()
    assert [len(missing) for missing in read_missing(whole, some)] == [0, 0, 0, 0, 0, 1, 0, 0]


def test_no_hits(labels, frames, config, tmp_path):
    labels["hit"] = labels["hit"] & False
    counts = export(select(labels, [0.5], config.selection), frames, config, tmp_path)
    assert (counts["hits"], counts["selected"]) == (0, 0)
    assert read_photons(tmp_path / "dragonfly" / "photons.h5").shape == (0, 35)
    assert read_cxi(tmp_path / "selection.cxi").sizes["frame"] == 0
    assert (tmp_path / "selected.csv").read_text().startswith("run,index")


@pytest.mark.parametrize(("centre", "accepted"), [(-0.7, True), (0.5, False)])
def test_runs_share_one_detector_within_half_a_pixel(
    selection, frames, config, tmp_path, centre, accepted
):
    changes = {"per_run": {"r0002": {"geometry": {"beam_centre_y_px": centre}}}}
    config = Config.model_validate(config.model_dump() | changes)
    if accepted:
        assert export(selection, frames, config, tmp_path)["hits"] == 8
        return
    with pytest.raises(ConfigError, match=r"r0002 is off that of r0001 by 1\.5 pixels"):
        export(selection, frames, config, tmp_path)


def test_hits_of_other_runs_are_refused(selection, frames, config, tmp_path):
    renamed = selection.assign(run_name=("run_code", np.array(["r0001", "r0009"], object)))
    with pytest.raises(DataError, match="4 of 8 rows match no frame"):
        export(renamed, frames, config, tmp_path)


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


@pytest.fixture
def dragonfly_python():
    python = os.environ.get("SPIDASK_DRAGONFLY_PYTHON")
    if not python:
        pytest.skip("SPIDASK_DRAGONFLY_PYTHON is not set; .ci/dragonfly-env makes its environment")
    return python


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
