"""Training: splits, stages, calibration, and the ensemble on disk."""

import numpy as np
import pandas as pd
import pytest

from spidask.config import Ensemble
from spidask.errors import TrainingError
from spidask.io.labels import read_labels
from spidask.io.runs import open_runs
from spidask.networks.member import load_member
from spidask.training import calibrate, pick_stages, split, train

RUNS = np.repeat(["r0001", "r0002"], 40)
CLASSES = np.tile([1, 1, 2, 3], 20)


def test_split_by_run(beamtime, tmp_path):
    parts = split(RUNS, CLASSES, beamtime.config(tmp_path), seed=0)
    assert parts.training.tolist() == list(range(40))
    assert parts.validation.tolist() == list(range(40, 80))


def test_drawn_split_is_a_share_of_each_class(beamtime, tmp_path):
    config = beamtime.config(
        tmp_path, training={"runs": None}, validation={"runs": None, "fraction": 0.25}
    )
    parts = split(RUNS, CLASSES, config, seed=0)
    assert np.bincount(CLASSES[parts.validation]).tolist() == [0, 10, 5, 5]
    assert sorted([*parts.training, *parts.validation]) == list(range(80))
    assert parts.validation.tolist() == split(RUNS, CLASSES, config, seed=0).validation.tolist()
    assert parts.validation.tolist() != split(RUNS, CLASSES, config, seed=1).validation.tolist()


def test_split_without_singles_is_refused(beamtime, tmp_path):
    classes = np.where(RUNS == "r0002", 2, CLASSES)
    with pytest.raises(TrainingError, match=r"validation: 0 single hits and 40 others"):
        split(RUNS, classes, beamtime.config(tmp_path), seed=0)


def test_split_refuses_a_run_on_both_sides(beamtime, tmp_path):
    config = beamtime.config(tmp_path, validation={"runs": ["r000*"]})
    with pytest.raises(TrainingError, match=r"r0001 is in training\.runs and in validation\.runs"):
        split(RUNS, CLASSES, config, seed=0)


def test_stages_are_shifted_inward_at_both_ends():
    rising, falling = [0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.3, 0.2, 0.1]
    three, apart = Ensemble(n_members=3), Ensemble(n_members=3, spacing=2)
    assert pick_stages(rising, three) == [2, 3, 4]
    assert pick_stages(falling, three) == [0, 1, 2]
    assert pick_stages(rising, apart) == [0, 2, 4]
    with pytest.raises(TrainingError, match="needs 7 checkpoints and there are 5"):
        pick_stages(rising, Ensemble(n_members=3, spacing=3))


def test_calibration_finds_slope_and_intercept_again():
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, 40_000).astype(np.float32)
    is_single = random.random(40_000) < 1 / (1 + np.exp(-(0.7 * logits - 0.4)))
    slope, intercept = calibrate(logits, is_single, None)
    assert slope == pytest.approx(0.7, abs=0.03)
    assert intercept == pytest.approx(-0.4, abs=0.04)


def test_calibration_knows_that_single_hits_are_rarer_elsewhere():
    random = np.random.default_rng(0)
    is_single = np.arange(20_000) % 2 == 0
    logits = np.where(is_single, random.normal(1, 1, 20_000), random.normal(-1, 1, 20_000))
    slope, intercept = calibrate(logits.astype(np.float32), is_single, 0.05)
    # Two normal distributions at +-1 have log odds 2 x; the prior adds log(0.05 / 0.95).
    assert slope == pytest.approx(2.0, abs=0.1)
    assert intercept == pytest.approx(np.log(0.05 / 0.95), abs=0.1)


def test_train_writes_an_ensemble_and_says_what_it_used(beamtime, tmp_path):
    config = beamtime.config(tmp_path, training={"ensemble": {"n_members": 3}})
    frames = open_runs(config.runs.files, "data")
    members, used = train(frames, read_labels(config.labels.file), config, tmp_path)
    assert [path.name for path in members] == [f"member{i}.safetensors" for i in range(3)]
    assert {run: len(index) for run, index in used.items()} == {"r0001": 150, "r0002": 150}
    stages = [load_member(path).provenance["iteration"] for path in members]
    assert np.diff(stages).tolist() == [2, 2]
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert table["iteration"].tolist() == list(range(1, 13))
    assert table["validation_f1"].notna().sum() == 6


def test_seeds_make_different_members(beamtime, tmp_path):
    ensemble = {"kind": "seeds", "n_members": 2}
    config = beamtime.config(tmp_path, training={"ensemble": ensemble, "iterations": 2})
    frames = open_runs(config.runs.files, "data")
    members, _ = train(frames, read_labels(config.labels.file), config, tmp_path)
    seeds = [load_member(path).provenance["seed"] for path in members]
    assert seeds == [0, 1]
    assert members[0].read_bytes() != members[1].read_bytes()
