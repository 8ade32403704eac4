"""The section `runs` of a config opens whatever the facility or the other program wrote."""

import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from spidask import checks, pipeline
from spidask.config import parse_config
from spidask.errors import StoreError
from spidask.io.beamtime import open_configured
from spidask.io.dragonfly import make_detector, write_detector
from spidask.io.emc import write_photons_binary
from spidask.io.labels import read_labels
from spidask.io.store import gather_labels
from spidask.io.tables import read_selection_csv
from tests.conftest import SHAPE, make_frames

HITS = {"threshold": "none"}


def config_of(beamtime, output, runs, **sections):
    """The config of the shared beamtime with other files and given members."""
    members = {"members": [str(path) for path in beamtime.members], "frames_per_shard": 64}
    config = beamtime.config(output, inference=members, hits=HITS, **sections)
    values = config.model_dump(mode="json", exclude={"labels"})
    return parse_config({**values, "runs": runs, "labels": sections.get("labels", {})})


@pytest.fixture
def hits(tmp_path):
    """150 hits of two runs, in no order, with bits of a mask and time stamps of LCLS."""
    photons, _ = make_frames(150, 1, 1.0)
    rng = np.random.default_rng(1)
    index = rng.permutation(5000)[:150]
    run = np.where(rng.random(150) < 0.5, 182, 91)
    mask = np.zeros(SHAPE, "u4")
    mask[5:9, 10:20] = 0x80
    with h5py.File(tmp_path / "hits.h5", "w") as file:
        file["somewhere/images"], file["somewhere/mask"] = photons, mask
        file["run"], file["index"] = run, index
        file["timestamp"] = np.arange(150)[::-1] + 1000
    with h5py.File(tmp_path / "smd.h5", "w") as file:
        file["event_time"] = rng.permutation(150) + 1000
        file["ebeam/photon_energy"] = 1690.0 + (file["event_time"][()] - 1000) % 20
    return tmp_path


def runs_of(folder):
    return {
        "files": [f"{folder}/hits.h5"],
        "dataset": "somewhere/images",
        "identity": ["run", "index"],
        "mask": ":somewhere/mask",
        "mask_good": "zero",
    }


def test_original_frames_go_through_the_whole_pipeline(beamtime, hits):
    events = {"files": [f"{hits}/smd.h5"]}
    config = config_of(beamtime, hits / "out", runs_of(hits), events=events)
    counts = pipeline.run(config, "export")["counts"]
    assert counts["read"]["frames"] == 150
    # The rows of the file are in reverse order of time.
    assert counts["read"]["ids"].keys() == {"unordered_ids"}
    table = read_selection_csv(config.output)
    with h5py.File(hits / "hits.h5") as file:
        names = [f"r{n:04d}" for n in file["run"][()]]
        expected = sorted(zip(names, file["index"][()].tolist(), strict=True))
    assert list(zip(table["run"].astype(str), table["index"], strict=True)) == expected
    labels = gather_labels(f"{config.output}/labels.zarr")
    np.testing.assert_array_equal(
        labels["photon_energy"].values, 1690.0 + (labels["timestamp"].values - 1000) % 20
    )
    assert labels["n_events"].values.tolist() == [1] * 150
    # The mask of the file is the mask of the detector: rows 5 to 8, columns 10 to 19.
    with h5py.File(f"{config.output}/dragonfly/detector.h5") as file:
        ignored = np.argwhere(file["mask"][()].reshape(36, 40) == 2)
    assert len(ignored) == 40
    assert ignored.min(0).tolist() == [5, 6]  # the region begins in column 4
    # Whoever selected these may be asked again, by the same names.
    assert set(read_labels(config.output)["run"]) <= {"r0091", "r0182"}


def test_other_energies_make_labels_stale(beamtime, hits):
    events = {"files": [f"{hits}/smd.h5"]}
    config = config_of(beamtime, hits / "out", runs_of(hits), events=events)
    pipeline.run(config, "classify")
    pipeline.run(config, "classify")
    with h5py.File(hits / "smd.h5", "a") as file:
        file["ebeam/photon_energy"][7] = 1720.0
    with pytest.raises(StoreError, match="photon energies of the events was changed"):
        pipeline.run(config, "classify")
    with h5py.File(hits / "smd.h5", "a") as file:
        file["ebeam/photon_energy"][7] = 1690.0 + (file["event_time"][7] - 1000) % 20
    pipeline.run(config, "classify")
    shared = parse_config({**config.model_dump(mode="json"), "events": None})
    with pytest.raises(StoreError, match="photon energies of the events went"):
        pipeline.run(shared, "classify")


def test_photons_of_dragonfly_are_reclassified(beamtime, tmp_path):
    photons, labels = make_frames(150, 2, 1.0)
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]] * 1.0
    hidden = np.zeros(SHAPE, bool)
    hidden[30:, 40:] = True
    write_detector(tmp_path / "detector.h5", make_detector(y + 3, x - 23.5, 1733.0, hidden))
    sparse = sp.csr_array(photons.reshape(150, -1).astype(np.int32))
    write_photons_binary(tmp_path / "theirs.emc", [sparse], 150, photons[0].size)
    letters = {"single": "s", "multiple": "m", "background": "b"}
    (tmp_path / "my_classes.dat").write_text("".join(letters[one] + "\n" for one in labels))
    runs = {"files": [f"{tmp_path}/theirs.emc"], "shape": f"{tmp_path}/detector.h5"}
    runs |= {"mask": f"{tmp_path}/detector.h5:mask", "mask_good": "zero"}
    told = {"truth": f"{tmp_path}/my_classes.dat", "run": "theirs"}
    told["letters"] = {letter: name for name, letter in letters.items()}
    config = config_of(beamtime, tmp_path / "out", runs, labels=told)
    np.testing.assert_array_equal(open_configured(config)["frames"].values, photons)
    assert [p for p in checks.check(config) if p.severity == "error"] == []
    manifest = pipeline.run(config, "export")
    assert manifest["counts"]["read"]["frames"] == 150
    assert manifest["counts"]["metrics"]["selection"]["frames"] == 150
    n_single = manifest["counts"]["metrics"]["selection"]["manual"]
    assert n_single == labels.count("single")
    counted = gather_labels(tmp_path / "out" / "labels.zarr")["photon_count"].values
    inside = np.where(hidden, 0, photons)[:, 0:36, 4:44].sum(axis=(1, 2))
    np.testing.assert_array_equal(counted, inside)


def test_check_tells_of_masks_and_odd_ids(beamtime, hits):
    runs = {key: value for key, value in runs_of(hits).items() if not key.startswith("mask")}
    with h5py.File(hits / "hits.h5", "a") as file:
        file["index"][1], file["run"][1] = file["index"][0], file["run"][0]
        file["timestamp"][2] = 5
    config = config_of(beamtime, hits / "out", runs, events={"files": [f"{hits}/smd.h5"]})
    told = {p.place: str(p) for p in checks.check(config)}
    assert "set runs.mask to ':somewhere/mask'" in told[f"{hits}/hits.h5"]
    assert "2 of 150 frames: repeated frames" in told["runs.identity"]
    assert "1 of 150 frames: without event; they have no energies" in told["events.files"]
    assert "geometry.photon_energy_ev is taken for them" in told["geometry"]
    assert not any(text.startswith("error") for text in told.values())
