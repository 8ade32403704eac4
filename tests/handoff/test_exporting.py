import dask
import h5py
import numpy as np
import pandas as pd
import pytest

from spidask.config import Config
from spidask.errors import ConfigError, DataError
from spidask.handoff import export, needs_frames, photons_are_current
from spidask.io.cxi import read_cxi
from spidask.io.dragonfly import read_blacklist, read_detector
from spidask.io.emc import read_missing, read_photons
from spidask.io.runs import open_runs
from spidask.selection import select
from tests.handoff.conftest import HITS, SELECTED, X, Y, region_of


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
        "misses": 6,
        "misses_in_background": 6,
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
    monkeypatch.setattr("spidask.handoff.photons.FRAMES_PER_TASK", 3)
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


def test_adu_become_photons_by_the_calibrated_threshold(selection, config, photons, tmp_path):
    # 130 ADU a photon; n photons from n - 0.3 on. The charge of a pixel spreads by +-25 %.
    random = np.random.default_rng(6)
    spread = random.uniform(-0.25, 0.65, photons.shape)
    (tmp_path / "adu").mkdir()
    for code, run in enumerate(("r0001", "r0002")):
        with h5py.File(tmp_path / "adu" / f"{run}.h5", "w") as file:
            adu = (photons[code] + spread[code]) * 130
            file["data"] = np.rint(adu).astype(np.int16)
    settings = {"adu_per_photon": 130, "photon_threshold": 0.7, "saturation_adu": 19.5 * 130}
    changed = config.model_dump()
    changed["preprocessing"] |= settings
    config = Config.model_validate(changed)
    frames = open_runs(str(tmp_path / "adu" / "*.h5"), "data")
    export(selection, frames, config, tmp_path / "out")
    found = read_photons(tmp_path / "out" / "dragonfly" / "photons.h5").toarray()
    assert found.tolist() == region_of(photons, HITS).reshape(8, -1).tolist()


def test_what_needs_the_frames(selection, frames, config, tmp_path):
    assert needs_frames(selection, config, tmp_path)
    export(selection, frames, config, tmp_path)
    assert not needs_frames(selection, config, tmp_path)
    (tmp_path / "dragonfly" / "background.h5").write_bytes(b"cut off")
    assert needs_frames(selection, config, tmp_path)
    assert export(selection, frames, config, tmp_path)["photons_written"] == 0
