"""Training: splits, stages, calibration, and the ensemble on disk."""

import functools
import logging
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import dask
import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from spidask.cluster import connect
from spidask.config import Cluster, Ensemble
from spidask.errors import ConfigError, TrainingError
from spidask.io.labels import BOX, read_labels
from spidask.io.runs import open_runs
from spidask.labelled import load_labelled, split
from spidask.metrics import judge
from spidask.networks.calibration import choose_threshold
from spidask.networks.cascade import score_members
from spidask.networks.checkpoints import list_checkpoints
from spidask.networks.classifier import SINGLE
from spidask.networks.member import load_member
from spidask.networks.runtime import Ready
from spidask.networks.tensors import load_tensors
from spidask.training import pick_stages, train

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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_threshold_is_that_of_the_intersection(beamtime, tmp_path, precision):
    settings = {"ensemble": {"n_members": 3}, "precision": precision}
    config = beamtime.config(tmp_path, training=settings)
    frames, labels = open_runs(config.runs.files, "data"), read_labels(config.labels.file)
    members = [load_member(path) for path in train(frames, labels, config, tmp_path)[0]]
    members = [replace(m, network=Ready(m.network, precision)) for m in members]
    labelled, runs, _ = load_labelled(frames, labels, config)
    unseen = runs == "r0002"
    is_single = labelled.classes[unseen] == SINGLE
    sizes = [16] * len(members)
    scores = score_members(members, labelled.patterns[unseen], sizes, early_exit=False).T
    (threshold,) = {member.threshold for member in members}
    best, f1 = choose_threshold(logit(scores.min(0).astype(float)), is_single, None)
    assert threshold == pytest.approx(expit(best), rel=1e-4)
    assert judge((scores >= threshold).all(0), is_single)["f1"] == pytest.approx(f1)
    told = [member.provenance["validation_f1_together"] for member in members]
    assert told == pytest.approx([f1] * 3)


def test_boxes_of_the_table_go_before_those_of_the_signal(beamtime, tmp_path):
    config = beamtime.config(tmp_path, training=YOLO)
    frames, labels = open_runs(config.runs.files, "data"), read_labels(config.labels.file)
    drawn = labels.assign(x_min=14.0, y_min=9.0, x_max=24.0, y_max=27.0)
    boxes = load_labelled(frames, drawn, config)[0].boxes
    np.testing.assert_allclose(boxes, np.tile([15 / 40, 0.5, 0.25, 0.5], (300, 1)), rtol=1e-6)
    drawn.loc[labels["run"] == "r0001", [*BOX]] = np.nan
    mixed, own = (load_labelled(frames, table, config)[0].boxes for table in (drawn, labels))
    np.testing.assert_array_equal(mixed[:150], own[:150])
    np.testing.assert_array_equal(mixed[150:], boxes[150:])


def test_seeds_make_different_members(beamtime, tmp_path):
    ensemble = {"kind": "seeds", "n_members": 2}
    config = beamtime.config(tmp_path, training={"ensemble": ensemble, "iterations": 2})
    frames = open_runs(config.runs.files, "data")
    members, _ = train(frames, read_labels(config.labels.file), config, tmp_path)
    seeds = [load_member(path).provenance["seed"] for path in members]
    assert seeds == [0, 1]
    assert members[0].read_bytes() != members[1].read_bytes()


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    # Within that time of a loss Dask would close a worker's nanny for good, if it is lost again.
    patient = dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"})
    folder = tmp_path_factory.mktemp("cluster")
    with connect(Cluster(cpu_workers=3, gpus=0), folder) as client, patient:
        yield client


def train_here(beamtime, folder, client=None, **training):
    config = beamtime.config(folder, training=training)
    frames = open_runs(config.runs.files, "data")
    return train(frames, read_labels(config.labels.file), config, folder, client)


def files(folder, seed: int = 0) -> dict[str, bytes]:
    paths = [*folder.glob("members/*"), *folder.glob(f"checkpoints/seed{seed}/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def weights(folder) -> list[dict[str, np.ndarray]]:
    checkpoints = [load_tensors(p)[0] for p in list_checkpoints(folder / "checkpoints" / "seed0")]
    learned = re.compile(r"(?!validation|.*(running_|num_batches))")
    return [{k: v.numpy() for k, v in c.items() if learned.match(k)} for c in checkpoints]


SIX = {"iterations": 6, "checkpoint_every": 2, "ensemble": {"n_members": 3}}


YOLO = {
    "architecture": "yolov2",
    "width": 1 / 16,
    "optimizer": "sgd",
    "burn_in": 3,
    "learning_rate": 1e-3,
    "representation": {"colours": "grey", "maximum": "own", "size": [64, 64]},
}


# Steps of Adam would show the rounding of gradients that are nearly 0.
DIVIDED = {"subdivisions": 2, "optimizer": "sgd", "burn_in": 3, "learning_rate": 1e-3}


@pytest.mark.parametrize("changes", [{}, DIVIDED, YOLO], ids=["compact", "divided", "yolov2"])
def test_two_ranks_learn_what_one_does_that_takes_their_pieces_in_turn(
    beamtime, tmp_path, client, changes
):
    training = {**SIX, **changes, "ranks": 2}
    train_here(beamtime, tmp_path / "one", **training)
    train_here(beamtime, tmp_path / "two", client, **training)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert len(one) == len(two) == 3
    # Equal but for rounding. Of pieces of pieces the sums are taken in another order: 4e-9 after
    # two iterations, which grew to 2e-5 after six, when weights had moved by 0.01.
    later = 1e-4 if changes is DIVIDED else 1e-5
    for a, b, apart in zip(one, two, (1e-6, later, later), strict=True):
        assert len(a) > 20
        for name in a:
            np.testing.assert_allclose(a[name], b[name], atol=apart, err_msg=name)
    assert not (tmp_path / "two" / "checkpoints" / "labelled.safetensors").exists()


@pytest.mark.parametrize("ranks", [2, 3])
def test_resumed_ranks_are_equal_bit_for_bit(beamtime, tmp_path, client, ranks):
    # Three ranks have to sum in one order, for floating point knows no associative law.
    # The rate of sgd does not depend on the number of iterations, so two of six can be done before.
    training = {**SIX, "ranks": ranks, "batch_size": 12, "optimizer": "sgd", "burn_in": 3}
    train_here(beamtime, tmp_path / "whole", client, **training)
    first = {"iterations": 2, "ensemble": {"n_members": 1}}
    train_here(beamtime, tmp_path / "parts", client, **training | first)
    train_here(beamtime, tmp_path / "parts", client, **training)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_seeds_side_by_side_are_those_one_after_another(beamtime, tmp_path, client, caplog):
    caplog.set_level(logging.INFO, "spidask")
    training = {**SIX, "ensemble": {"kind": "seeds", "n_members": 2}}
    train_here(beamtime, tmp_path / "here", **training)
    caplog.clear()
    train_here(beamtime, tmp_path / "there", client, **training)
    for seed in (0, 1):
        assert files(tmp_path / "here", seed) == files(tmp_path / "there", seed)
        assert any(text.startswith(f"seed {seed}: iteration 6") for text in caplog.messages)


def test_a_loss_that_is_not_finite_on_workers_is_told_at_once(beamtime, tmp_path, client):
    with pytest.raises(TrainingError, match=r"the loss is nan .* lower training\.learning_rate"):
        train_here(beamtime, tmp_path, client, ranks=2, learning_rate=1e30)


def test_a_batch_that_ranks_cannot_share_is_refused(beamtime, tmp_path):
    with pytest.raises(ConfigError, match=r"^training\.batch_size: 16 patterns cannot .* 3 equal"):
        beamtime.config(tmp_path, training={"ranks": 3})


@pytest.fixture(scope="module")
def undisturbed(beamtime, tmp_path_factory, client):
    folder, start = tmp_path_factory.mktemp("undisturbed"), time.perf_counter()
    train_here(beamtime, folder, client, **LONGER)
    return files(folder), time.perf_counter() - start


LONGER = {"iterations": 40, "checkpoint_every": 4, "ranks": 2, "timeout_s": 10.0}


def wait_until(condition, timeout_s: float = 60):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (signal.SIGKILL, "vanished"),
        (signal.SIGSTOP, f"hung for {LONGER['timeout_s']:g} s"),
    ],
)
def test_a_rank_lost_in_the_middle_changes_no_bit(
    beamtime, tmp_path, client, undisturbed, caplog, number, cause, tell_lost
):
    client.wait_for_workers(3, timeout=60)
    start = time.perf_counter()
    pids = client.run(os.getpid)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(functools.partial(train_here, beamtime, tmp_path, client, **LONGER))
        wait_until(lambda: list_checkpoints(tmp_path / "checkpoints" / "seed0"))
        tasks = client.processing()
        (struck,) = (a for a, keys in tasks.items() if any(k.startswith("rank1") for k in keys))
        os.kill(pids[struck], number)
        job.result(timeout=120)
    (told,) = (r.getMessage() for r in caplog.records if r.name == "spidask.ranks.launching")
    assert told.startswith(f"rank 1 on {struck} {cause}")
    assert files(tmp_path) == undisturbed[0]
    fault = f"{signal.Signals(number).name} of one of two ranks, timeout {LONGER['timeout_s']:g} s"
    tell_lost(fault, time.perf_counter() - start, undisturbed[1])
