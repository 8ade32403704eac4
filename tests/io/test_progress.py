"""Counts of the stage classify in a file."""

import pytest

from spidask.errors import StoreError
from spidask.io import progress
from spidask.io.progress import Progress, read_progress


def test_nothing_before_the_first_write(tmp_path):
    assert read_progress(tmp_path) == {}


def test_counts_and_rate_by_hand(tmp_path, monkeypatch):
    clock = iter([100.0, 110.0, 120.0, 120.0])
    monkeypatch.setattr(progress.time, "time", lambda: next(clock))
    counted = Progress(tmp_path, 3)
    counted.add(500, 10)
    counted.add(500, 20)
    counted.write()
    found = read_progress(tmp_path)
    # 1000 frames from 100 s to 120 s.
    assert found["frames_per_second"] == 50
    assert [found[name] for name in ("shards", "done", "frames", "hits")] == [3, 2, 1000, 30]
    assert (found["ended"], found["stopped"]) == (False, "")


def test_it_is_not_written_all_the_time(tmp_path):
    counted = Progress(tmp_path, 9)
    counted.write()
    counted.add(5, 1)
    counted.write()
    assert read_progress(tmp_path)["done"] == 0
    counted.write(ended=True)
    assert read_progress(tmp_path)["done"] == 1


def test_the_first_failures_are_kept(tmp_path):
    counted = Progress(tmp_path, 99)
    for number in range(30):
        counted.fail("r1", number, "why")
    counted.write(ended=True)
    found = read_progress(tmp_path)
    assert found["failed"] == 30
    assert found["failures"][0] == ["r1", 0, "why"]
    assert len(found["failures"]) == 20


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "progress.json").write_text("{")
    with pytest.raises(StoreError, match=r"progress\.json"):
        read_progress(tmp_path)
