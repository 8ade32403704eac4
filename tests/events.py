"""Events of the monitor, for tests."""

from __future__ import annotations

from typing import Any

from spidask.monitor.totals import Totals

START = 1_000_000.0
SHARD: dict[str, Any] = {
    "kind": "shard",
    "time": START + 10,
    "run": "r0001",
    "number": 0,
    "n_frames": 1000,
    "n_hits": 20,
    "n_single": 5,
    "seconds": 10.0,
    "read_s": 2.0,
    "preprocess_s": 3.0,
    "score_s": 4.0,
    "write_s": 0.5,
}


def shard(**changes: Any) -> dict[str, Any]:
    return {**SHARD, **changes}


def add_all(*events: dict[str, Any]) -> Totals:
    totals = Totals()
    for event in events:
        totals.add(event)
    return totals
