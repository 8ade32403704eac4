"""What the events of a run add up to, checked by hand."""

from __future__ import annotations

import pickle

import numpy as np

from spidask.monitor import shrink_pattern
from spidask.monitor.totals import N_BINS, N_FAILED, N_PICTURES, N_RECENT, Totals, mean_curve
from tests.events import START, add_all, shard


def test_frames_per_second_by_hand():
    # Two workers: 1000 frames each after 10 s and after 20 s, so 2000 frames in 10 s.
    ends = (10, 10, 20, 20)
    totals = add_all(*(shard(time=START + t, number=i) for i, t in enumerate(ends)))
    done = totals.history(START + 20)
    assert done.width == 2.0
    assert done.end[0] == START + 2  # the first shard began at START
    assert done.window == 20.0  # twice the time of a shard
    assert done.smooth[-1] == 200.0
    assert done.shard_rate == 0.2
    assert done.n_shards[-1] == 4
    # The bin from 10 s to 12 s, which holds two shards.
    assert done.rate[5] == 1000.0
    # Without more shards the rate falls: 2000 frames in the last 20 s, nothing in the last 22 s.
    assert totals.history(START + 38).smooth[-1] == 100.0
    assert totals.history(START + 80).smooth[-1] == 0.0


def test_no_history_before_the_first_shard():
    assert len(Totals().history(START).rate) == 0


def test_hit_rates_and_funnel_by_hand():
    totals = add_all(shard(), shard(number=1, n_hits=0, n_single=0), shard(run="r0002", n_hits=500))
    run = totals.runs["r0001"]
    assert (run.n_shards, run.n_frames, run.n_hits, run.n_single) == (2, 2000, 20, 5)
    assert totals.runs["r0002"].n_hits == 500
    assert totals.funnel() == {"frames": 3000, "hits": 520, "single hits": 10}
    counts = {"frames": 3000, "unreadable": 10, "miss": 2470, "not_single": 510, "size": 3}
    totals.add({"kind": "selected", "time": START, "selected": 7, **counts})
    assert totals.funnel() == {
        "frames": 3000,
        "readable": 2990,
        "hits": 520,
        "single hits": 10,
        "selected": 7,
    }


def test_time_per_shard_is_split_and_adds_up():
    parts = add_all(shard(), shard(number=1, seconds=9.5)).parts()
    assert [list(part) for part in parts.values()] == [[2, 2], [3, 3], [4, 4], [0.5, 0.5], [0.5, 0]]


def test_planned_shards_count_from_what_is_done():
    stage = {"kind": "stage", "time": START, "name": "classify", "n_shards": 10, "n_frames": 10_000}
    totals = add_all(stage, shard(), shard(number=1))
    assert (totals.n_planned_shards, totals.n_planned_frames) == (10, 10_000)
    totals.add({**stage, "n_shards": 8, "n_frames": 8000})  # the driver is back: 8 to go
    assert (totals.n_planned_shards, totals.n_planned_frames) == (10, 10_000)


def test_the_first_cause_stays_until_the_shard_succeeds():
    failed = {"kind": "failed", "time": START, "run": "r0001", "number": 0}
    totals = add_all({**failed, "cause": "truncated"}, {**failed, "cause": "connection closed"})
    assert totals.failed == {("r0001", 0): "truncated"}
    totals.add(shard())
    assert totals.failed == {}


def test_losses_are_means_of_bins_and_start_anew_with_training():
    n = 4 * N_BINS
    losses = [
        {"kind": "loss", "time": START, "seed": 1, "iteration": i, "loss": float(i % 4)}
        for i in range(n)
    ]
    totals = add_all(*losses, {**losses[0], "loss": float("nan"), "validation_f1": 0.75})
    x, y = mean_curve(totals.losses["1"])
    assert list(x[:3]) == [0, 4, 8]
    assert set(y) == {1.5}
    assert mean_curve(totals.scores["1"])[1].tolist() == [0.75]
    assert totals.iterations == {"1": n - 1}
    totals.add({"kind": "stage", "time": START, "name": "train"})
    assert not totals.losses


def test_gpus_leave_with_their_worker():
    facts = {"kind": "gpu", "time": START, "used_bytes": 1, "total_bytes": 2, "utilisation": None}
    totals = add_all(*({**facts, "worker": w, "device": "GPU 0"} for w in ("a", "b", "a")))
    assert len(totals.gpus) == 2
    totals.forget_worker("a")
    assert list(totals.gpus) == [("b", "GPU 0")]


def test_unknown_kinds_are_left_alone():
    assert add_all({"kind": "weather", "time": START}).n_events == 0


def fill(n_shards: int) -> Totals:
    picture = shrink_pattern(np.zeros((512, 512), np.float32))
    totals = Totals()
    for i in range(n_shards):
        place = {"time": START + i, "run": f"r{i % 400:04}", "number": i // 400}
        totals.add(shard(**place))
        totals.add({"kind": "failed", "cause": "x" * 10_000, **place, "number": -i})
        totals.add({"kind": "loss", "seed": i % 5, "iteration": i, "loss": 1.0, **place})
        totals.add({"kind": "picture", "index": i, "score": 0.5, "pattern": picture, **place})
    return totals


def test_memory_does_not_grow_with_the_number_of_shards():
    few, many = fill(4000), fill(16_000)
    assert len(many.runs) == 400
    assert len(many.recent) == N_RECENT
    assert len(many.pictures) == N_PICTURES
    assert len(many.failed) == N_FAILED
    assert len(many.history(START + 16_000).rate) <= N_BINS
    sizes = [len(pickle.dumps(totals)) for totals in (few, many)]
    assert sizes[1] < 1.01 * sizes[0]
    assert sizes[1] < 2**21
