import numpy as np

from spidask.handoff import export
from spidask.selection import select
from tests.handoff.conftest import SELECTED


def read(path):
    return [line.split() for line in path.read_text().splitlines()]


def test_lists_by_run_and_index_and_by_train(selection, frames, config, tmp_path):
    pulses = selection["index"].values * 4
    selection = selection.assign(pulseId=("frame", pulses))
    export(selection, frames, config, tmp_path)
    assert sorted(p.name for p in (tmp_path / "lists").iterdir()) == [
        "r0001.txt",
        "r0001_events.txt",
        "r0002.txt",
        "r0002_events.txt",
    ]
    for code, run in enumerate(("r0001", "r0002")):
        here = [index for number, index in SELECTED if number == code]
        assert read(tmp_path / "lists" / f"{run}.txt") == [[run, str(i)] for i in here]
        expected = [[str(1000 * code + i), str(4 * i)] for i in here]
        assert read(tmp_path / "lists" / f"{run}_events.txt") == expected


def test_lists_by_timestamp_and_fiducial(selection, frames, config, tmp_path):
    # Beyond 2^53, where a float would lose digits; one frame has none.
    stamps = (1_533_081_600 << 32) + np.arange(14)
    stamps[2] = -1
    ids = {"timestamp": ("frame", stamps), "fiducial": ("frame", np.arange(14) + 7)}
    export(selection.assign(ids), frames, config, tmp_path)
    expected = [[str(stamps[i]), str(i + 7)] for i in (4, 5)]
    assert read(tmp_path / "lists" / "r0001_events.txt") == expected
    assert len(read(tmp_path / "lists" / "r0001.txt")) == 3


def test_lists_of_a_selection_before_are_gone(selection, labels, frames, config, tmp_path):
    export(selection, frames, config, tmp_path)
    fewer = labels.assign(hit=labels["hit"] & (labels["run"] == 1))
    export(select(fewer, [0.5], config.selection), frames, config, tmp_path)
    assert [p.name for p in (tmp_path / "lists").iterdir()] == ["r0002.txt"]
