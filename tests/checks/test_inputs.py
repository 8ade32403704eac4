"""Checks of files, maps and geometry."""

import h5py
import numpy as np
import pytest
import zarr

from spidask.checks import check
from spidask.io import stretches
from spidask.io.layout import DATASET
from tests.conftest import SHAPE, write_run


def places(problems):
    return [(problem.severity, problem.place) for problem in problems]


@pytest.fixture
def asked(monkeypatch):
    """How many frames each read asks for."""
    asked = []
    read = stretches.StackReader.__getitem__

    def note(self, key):
        frames = read(self, key)
        asked.append(len(frames))
        return frames

    monkeypatch.setattr(stretches.StackReader, "__getitem__", note)
    return asked


@pytest.fixture
def runs(tmp_path):
    """Four runs of 40 frames, and a config for them without labels."""
    for number in range(1, 5):
        write_run(tmp_path / f"r{number}.h5", 40, number)
    return tmp_path


def config(beamtime, folder, **sections):
    given = {"members": [str(path) for path in beamtime.members]}
    sections["inference"] = given | sections.get("inference", {})
    files = [str(folder / "*.h5")]
    sections["runs"] = {"files": files} | sections.get("runs", {})
    sections["labels"] = {"truth": None}
    return beamtime.config(folder / "out", **sections)


def test_sound_files_have_no_problems_and_no_frame_is_read(beamtime, runs, asked):
    assert check(config(beamtime, runs)) == []
    assert asked == []
    assert not (runs / "out").exists()


def test_bad_files_are_named_and_the_others_go_on(beamtime, runs):
    whole = (runs / "r1.h5").read_bytes()
    (runs / "r1.h5").write_bytes(whole[:-1000])
    (runs / "r2.h5").write_bytes(b"")
    (runs / "r5.h5").write_text("no HDF5")
    for name, shape in (("r6", (5, 7, 9)), ("r7", (0, *SHAPE))):
        with h5py.File(runs / f"{name}.h5", "w") as file:
            file["data"] = np.zeros(shape, "u2")
    found = {problem.place: problem for problem in check(config(beamtime, runs))}
    assert [name.removeprefix(f"{runs}/") for name in found] == [
        *("r1.h5", "r2.h5", "r5.h5", "r7.h5", "r6.h5")
    ]
    assert {problem.severity for problem in found.values()} == {"warning"}
    texts = [problem.message for problem in found.values()]
    size = f"{len(whole):,}".replace(",", " ")
    assert f"of {size} bytes; transfer it again" in texts[0]
    assert texts[1].startswith("is empty (0 bytes)")
    assert texts[2].startswith("is no HDF5 file")
    assert texts[3].startswith("holds no frames")
    assert texts[4].startswith("frames of (7, 9), expected (40, 48)")


def test_many_bad_files_are_one_problem(beamtime, runs):
    for number in range(5, 10):
        (runs / f"r{number}.h5").write_bytes(b"")
    (problem,) = check(config(beamtime, runs))
    assert problem.place == f"{runs}/r5.h5, {runs}/r6.h5, {runs}/r7.h5 and 2 more"
    assert problem.message.endswith("(5 alike)")


def test_a_map_that_one_run_lacks(beamtime, runs):
    with h5py.File(runs / "masks.hdf", "w") as file:
        for name in ("r1", "r2", "r3"):
            file[name] = np.ones(SHAPE, "u1")
    (problem,) = check(config(beamtime, runs, runs={"mask": f"{runs}/masks.hdf:{{run}}"}))
    assert problem.place == "runs.mask"
    assert "has no dataset 'r4'; it holds r1, r2, r3" in problem.message


def test_a_mask_that_leaves_little(beamtime, runs):
    mask = np.ones(SHAPE, "u1")
    mask[:2, 4:44] = 0  # 80 of the region's 36 x 40 pixels are good where 0 means good
    np.save(runs / "mask.npy", mask)
    settings = config(beamtime, runs, runs={"mask": f"{runs}/mask.npy", "mask_good": "zero"})
    (problem,) = check(settings)
    assert (problem.severity, problem.place) == ("warning", "runs.mask")
    assert "leaves 5.6% of the region" in problem.message


def test_settings_of_a_run_that_is_not_there(beamtime, runs):
    (problem,) = check(config(beamtime, runs, per_run={"r9*": {}, "r[12]": {}}))
    assert (problem.severity, problem.place) == ("warning", "per_run.r9*")
    assert problem.message == "matches no run; runs are r1, r2, r3, r4"


@pytest.mark.parametrize(("y", "outside"), [(-12.0, None), (-13.0, 13), (53.0, 14)])
def test_a_beam_far_outside(beamtime, runs, y, outside):
    found = check(config(beamtime, runs, geometry={"beam_centre_y_px": y}))
    assert places(found) == ([("warning", "geometry")] if outside else [])
    assert outside is None or f"is {outside} px outside" in found[0].message


@pytest.mark.parametrize(("hit_rate", "is_told"), [(1.0, True), (0.1, False)])
def test_files_of_hits_only(beamtime, runs, asked, hit_rate, is_told):
    for number in range(1, 5):
        write_run(runs / f"r{number}.h5", 100, number, hit_rate)
    found = check(config(beamtime, runs, hits={"threshold": "adaptive"}))
    assert places(found) == ([("warning", "hits.threshold")] if is_told else [])
    assert not is_told or "set hits.threshold=none" in found[0].message
    assert sum(asked) == 128  # 64 of the first run, 64 of the last


def test_files_that_are_still_to_be_simulated(beamtime, tmp_path):
    simulation = {"folder": str(tmp_path / "beamtime")}
    (tmp_path / "out").mkdir()
    assert check(config(beamtime, tmp_path, simulation=simulation)) == []


def test_labels_of_a_run_that_cannot_be_read_are_left_out(beamtime, runs):
    (runs / "r4.h5").write_bytes(b"")
    rows = [
        f"r{n},{i},{label}" for n in (1, 2, 4) for i, label in enumerate(["single", "multiple"])
    ]
    (runs / "labels.csv").write_text("\n".join(["run,index,label", *rows]) + "\n")
    settings = beamtime.config(
        runs / "out",
        runs={"files": [str(runs / "*.h5")]},
        labels={"file": str(runs / "labels.csv"), "truth": None},
        training={"runs": ["r1"]},
        validation={"runs": ["r2"]},
    )
    found = check(settings)
    assert places(found) == [("warning", f"{runs}/r4.h5"), ("warning", "labels.file")]
    assert found[1].message == "2 labels are of runs that cannot be read, and do not train"


def test_a_virtual_cxi_of_zarr(beamtime, runs):
    handoff = {"cxi": "virtual"}
    assert check(config(beamtime, runs, handoff=handoff)) == []
    group = zarr.open_group(runs / "r5", mode="w")
    group.create_array("data", data=np.zeros((3, *SHAPE), np.uint16))
    files = [str(runs / "r*.h5"), str(runs / "r5")]
    found = check(config(beamtime, runs, handoff=handoff, runs={"files": files}))
    assert places(found) == [("error", "handoff.cxi")]
    assert found[0].message.endswith("r5 is none; set copy")


def test_a_virtual_cxi_of_modules_and_of_binned_pixels(beamtime, runs):
    changes = {"handoff": {"cxi": "virtual"}, "preprocessing": {"bin": 2}}
    found = check(config(beamtime, runs, **changes))
    assert [f.message for f in found if f.place == "handoff.cxi"] == [
        "virtual is of raw frames, and preprocessing.assembly or bin makes other pixels of them; "
        "set copy"
    ]
    rows, columns = SHAPE
    with h5py.File(runs / "r5.h5", "w") as file:
        file["data"] = np.zeros((3, 2, rows // 2, columns), np.uint16)
    found = check(config(beamtime, runs, handoff={"cxi": "virtual"}))
    assert places(found) == [("error", "handoff.cxi")]
    assert found[0].message.endswith("r5.h5 is none; set copy")


def test_a_mask_beside_frames_to_which_a_link_leads(beamtime, runs):
    home = "entry_1/instrument_1/detector_1"
    with h5py.File(runs / "r1.h5", "a") as file:
        file.move("data", f"{home}/data")
        file[f"{home}/mask"] = np.zeros(SHAPE, np.uint32)
        file["entry_1/data_1/data"] = h5py.SoftLink(f"/{home}/data")
    settings = config(beamtime, runs, runs={"files": [f"{runs}/r1.h5"], "dataset": DATASET})
    told = [problem for problem in check(settings) if "mask that is not used" in problem.message]
    assert [(one.severity, one.place) for one in told] == [("warning", f"{runs}/r1.h5")]
    assert f"set runs.mask to ':{home}/mask'" in told[0].message
    # Modules are read with their mask.
    with h5py.File(runs / "modules.cxi", "w") as file:
        file[f"{home}/data"] = np.ones((3, 2, *SHAPE), np.float32)
        file[f"{home}/mask"] = np.zeros((3, 2, *SHAPE), np.uint32)
    settings = config(beamtime, runs, runs={"files": [f"{runs}/modules.cxi"], "dataset": DATASET})
    assert not any("mask that is not used" in problem.message for problem in check(settings))
