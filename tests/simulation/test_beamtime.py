"""Files of a beamtime, and patterns to train on."""

from __future__ import annotations

import csv
import time
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest

from spidask.config import Geometry, Region, Simulation
from spidask.errors import DataError
from spidask.schema import CLASSES
from spidask.simulation.beamtime import draw_labels, simulate_beamtime, simulate_patterns

MIX = {"single": 0.25, "multiple": 0.25, "contaminant": 0.5}


def settings(folder: Path, **changes: object) -> Simulation:
    values = {
        "folder": str(folder),
        "runs": 2,
        "frames": 6,
        "labelled_runs": 1,
        "hit_rate": 0.7,
        "hit_mix": MIX,
        "panel": {"dark_frames": 8},
    }
    return Simulation.model_validate({**values, **changes})


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def frames(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return np.asarray(file["entry_1/data_1/data"][:])


@pytest.fixture(scope="module")
def beamtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_beamtime(settings(tmp_path_factory.mktemp("beamtime")), workers=1)


def test_runs_hold_raw_frames_with_event_ids(beamtime: Path) -> None:
    with h5py.File(beamtime / "r0002.h5") as file:
        data = file["entry_1/data_1/data"]
        assert (data.shape, data.dtype, data.chunks) == ((6, 512, 1024), "u2", (1, 512, 1024))
        stamps = file["LCLS/timestamp"][:]
        assert np.all(np.diff(stamps) > 0)
        assert stamps[1] & 0xFFFFFFFF == 8_333_333  # 1 / 120 s in ns
        np.testing.assert_allclose(file["LCLS/photon_energy_eV"][:], 1700.7)
        assert file["LCLS/fiducial"].shape == (6,)


def test_darks_masks_and_gain_calibrate_the_frames(beamtime: Path) -> None:
    dark = frames(beamtime / "dark" / "r0001.h5").astype(float)
    assert dark.shape == (8, 512, 1024)
    with h5py.File(beamtime / "masks.h5") as file:
        assert sorted(file) == ["r0001", "r0002"]
        good = file["r0001"][:] == 1
    with h5py.File(beamtime / "gain.h5") as file:
        gain = file["gain"][:]
    rows = table(beamtime / "truth" / "truth_r0001.csv")
    raw = frames(beamtime / "r0001.h5").astype(float)
    photons = (raw - dark.mean(axis=0)) / (130 * gain)
    for row, pattern in zip(rows, photons, strict=True):
        near = np.zeros_like(good)
        near[:116, 392:632] = True
        seen = pattern[near & good].sum()
        # Signal within 120 px, stray light and the noise of 27 000 pixels besides.
        assert seen == pytest.approx(float(row["signal_photons"]), abs=2500), row


def test_labels_and_truth_are_apart(beamtime: Path) -> None:
    labels = table(beamtime / "labels.csv")
    truth = table(beamtime / "truth" / "truth_r0001.csv")
    assert list(labels[0]) == ["run", "index", "label"]
    assert [list(row.values()) for row in labels] == [
        [row["run"], row["index"], row["label"]] for row in truth
    ]
    assert {row["run"] for row in labels} == {"r0001"}
    for row in truth:
        one = row["label"] in {"single", "contaminant"}
        assert (row["diameter_nm"] != "") == one
        assert (float(row["signal_photons"]) > 2000) == (row["label"] != "background")


def test_workers_do_not_matter_and_seeds_do(beamtime: Path, tmp_path: Path) -> None:
    again = simulate_beamtime(settings(tmp_path / "again", runs=1), workers=3)
    np.testing.assert_array_equal(frames(again / "r0001.h5"), frames(beamtime / "r0001.h5"))
    np.testing.assert_array_equal(
        frames(again / "dark/r0001.h5"), frames(beamtime / "dark/r0001.h5")
    )
    other = simulate_beamtime(settings(tmp_path / "other", runs=1, frames=1, seed=1))
    assert np.any(frames(other / "r0001.h5")[0] != frames(beamtime / "r0001.h5")[0])
    assert (again / "labels.csv").read_text() == (beamtime / "labels.csv").read_text()


@pytest.mark.parametrize("name", ["r77.h5", "masks.h5", "gain.h5", "labels.csv"])
def test_files_of_somebody_else_stay(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(DataError, match=f"{tmp_path} already holds {name}, and no unfinished"):
        simulate_beamtime(settings(tmp_path, runs=1, frames=1))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"


def test_an_interrupted_simulation_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = settings(tmp_path, runs=1, frames=2, panel={"dark_frames": 2})
    with monkeypatch.context() as killed:
        killed.setattr("spidask.simulation.beamtime._write_truth", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            simulate_beamtime(small)
    (tmp_path / "r0001.h5").write_bytes(b"half a run")
    (tmp_path / "r0002.h5").write_bytes(b"half a run")
    with pytest.raises(DataError, match=r"holds r0001\.h5, r0002\.h5, and no unfinished"):
        simulate_beamtime(small.model_copy(update={"seed": 1}))
    with pytest.raises(DataError, match="no unfinished simulation of these settings"):
        simulate_beamtime(small, Geometry(detector_distance_m=0.2))
    simulate_beamtime(small)
    assert frames(tmp_path / "r0001.h5").shape == (2, 512, 1024)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("dark", "gain.h5", "labels.csv", "masks.h5", "r0001.h5", "truth")
    ]
    with pytest.raises(DataError, match="no unfinished simulation"):
        simulate_beamtime(small)


def test_classes_have_their_shares() -> None:
    enriched = settings(Path("x"), frames=500, hit_rate=0.8)
    assert Counter(draw_labels(enriched, 1)) == {
        "background": 100,
        "single": 100,
        "multiple": 100,
        "contaminant": 200,
    }
    assert draw_labels(enriched, 1) != draw_labels(enriched, 2)
    rare = Counter(draw_labels(Simulation(folder="x", frames=10_000), 1))
    assert rare == {"background": 9840, "single": 8, "multiple": 88, "contaminant": 64}


def test_particles_come_from_files_too(tmp_path: Path) -> None:
    places = np.random.default_rng(0).normal(0, 60, (4000, 3)).round(3)
    lines = [
        f"ATOM  {i:5d}  U   URA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 10.00           U"
        for i, (x, y, z) in enumerate(places, 1)
    ]
    path = tmp_path / "heavy.pdb"
    path.write_text("\n".join([*lines, "END", ""]))
    sample = {"particle": str(path)}
    only = {"single": 1, "multiple": 0, "contaminant": 0}
    folder = simulate_beamtime(
        settings(
            tmp_path / "out", runs=1, frames=2, hit_rate=1, hit_mix=only, sample=sample,
            beam={"hit_photons": 500, "transmission": 1.0},
        )
    )  # fmt: skip
    rows = table(folder / "truth" / "truth_r0001.csv")
    assert [(row["label"], row["kind"]) for row in rows] == [("single", "particle")] * 2


def test_patterns_have_labels_diameters_and_kinds() -> None:
    region = Region(y=(0, 40), x=(470, 550))
    patterns, labels, diameters, kinds = simulate_patterns(40, 1, region=region, workers=1)
    assert (patterns.shape, patterns.dtype) == ((40, 40, 80), np.float32)
    assert set(labels) == set(CLASSES)
    assert patterns.min() > 0
    one = np.isin(labels, ["single", "contaminant"])
    np.testing.assert_array_equal(np.isnan(diameters), ~one)
    assert set(kinds[labels == "single"]) == {"virus"}


def test_a_pattern_depends_on_its_number_alone() -> None:
    region = Region(y=(0, 20), x=(500, 530))
    many = simulate_patterns(12, 5, Geometry(), region, workers=2)[0]
    few = simulate_patterns(4, 5, Geometry(), region, workers=1)[0]
    np.testing.assert_array_equal(many[:4], few)


def test_a_mix_is_kept() -> None:
    region = Region(y=(0, 8), x=(500, 510))
    labels = simulate_patterns(30, 0, region=region, mix={"single": 1, "background": 1})[1]
    assert set(labels) == {"single", "background"}


def test_rates_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    n = 24
    start = time.perf_counter()
    simulate_beamtime(settings(tmp_path, runs=1, frames=n, hit_rate=0.016, hit_mix={}))
    rate = (n + 8) / (time.perf_counter() - start)
    start = time.perf_counter()
    simulate_patterns(60)
    patterns = 60 / (time.perf_counter() - start)
    with capsys.disabled():
        print(f"\nsimulation: {rate:.0f} frames/s, {patterns:.0f} training patterns/s")
