"""Several ensembles on one beamtime, compared with each other."""

import dataclasses
import runpy
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from spidask.io.tables import read_selection_csv
from spidask.metrics import iou
from spidask.networks.member import load_member, save_member

JOB = Path(__file__).parents[2] / "jobs" / "reprocess_beamtime.py"


def reprocess(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(JOB), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def base(beamtime, tmp_path):
    file = tmp_path / "base.yaml"
    config = beamtime.config(
        tmp_path / "unused", labels={"truth": None}, selection={"size_window_nm": [1, 500]}
    )
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return file


def test_two_ensembles_are_compared(beamtime, base, tmp_path):
    folder = tmp_path / "members"
    for path in beamtime.members:
        save_member(dataclasses.replace(load_member(path), threshold=0.2), folder / path.name)
    one = folder / beamtime.members[0].name
    ensembles = ["--ensemble", f"both={folder}", "--ensemble", f"one={one}"]
    runs = ["--runs", beamtime.folder / "r0001.h5", beamtime.folder / "r0003.h5"]
    done = reprocess(base, tmp_path / "out", *ensembles, *runs)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "out" / "comparison.csv", index_col=0)
    assert list(table.index) == ["both", "one", "both and one"]
    assert list(table["frames"].dropna()) == [450, 450]
    chosen = []
    for name in ("both", "one"):
        found = read_selection_csv(tmp_path / "out" / name)
        chosen.append(found[found["selected"]])
        assert 0 < len(chosen[-1]) == table.loc[name, "selected"]
    assert table.loc["both and one", "iou_of_both"] == pytest.approx(iou(*chosen))


def test_an_ensemble_that_is_not_there_is_named(base, tmp_path):
    gone = f"old={tmp_path / 'gone'}"
    for given, expected in (
        ([gone, "new=x"], "no members there; give a folder or a file of them"),
        ([gone, "../up=x"], "expected NAME=PLACE, NAME being a folder's name"),
        ([gone], "give two or more, each with a name of its own"),
    ):
        ensembles = [part for text in given for part in ("--ensemble", text)]
        done = reprocess(base, tmp_path / "out", *ensembles)
        assert done.returncode == 1
        assert done.stderr.strip().endswith(expected)


def test_a_folder_stands_for_its_files_that_are_named_as_the_configs(base, tmp_path):
    find_files = runpy.run_path(str(JOB))["find_files"]
    assert find_files(str(base), [str(tmp_path), "x.h5"]) == [f"{tmp_path}/r*.h5", "x.h5"]
