"""The table of all classifiers, on a beamtime of rings and fringes."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

JOBS = Path(__file__).parents[2] / "jobs"
SHORT = (
    "training.iterations=20",
    "training.checkpoint_every=5",
    "training.batch_size=16",
    "training.learning_rate=0.003",
    "training.ensemble={n_members: 2}",
    "selection.size_window_nm=[1, 1000]",
)


@pytest.fixture
def config_file(beamtime, tmp_path):
    config = beamtime.config(tmp_path / "table").model_dump(mode="json")
    config["labels"]["truth"] = str(beamtime.folder / "truth.csv")
    del config["training"]["initial"]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def call(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(JOBS / "reproduce_table.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_rows_are_done_once_and_stand_in_one_table(config_file, tmp_path):
    settings = [part for setting in SHORT for part in ("--set", setting)]
    small = ["--set", "training.representation.size=[64, 64]", "--set", "training.burn_in=5"]
    first = call(config_file, "compact", "forest", "rule", *settings)
    assert first.returncode == 0, first.stderr
    done = call(config_file, "yolov2_grey_linear", "--reduced", *settings, *small)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "table" / "table.csv")
    names = table["name"].tolist()
    assert names[:5] == [
        "compact, pre-trained on simulated patterns",
        "YOLOv2 grey linear, reduced",
        "hit finder by rule",
        "random forest",
        "reject everything",
    ]
    assert names[5:] == [*table["name"][table["source"] == "published"]]
    assert len(names) == 12
    measured = table[:4].set_index("name")
    assert measured["frames"].nunique() == 1
    assert (measured["patterns_per_second"] > 1).all()
    assert measured["n_parameters"].iloc[1] > 1e6
    assert measured["f1"].iloc[0] > 0.9
    assert measured["f1"].iloc[3] > 0.9
    text = (tmp_path / "table" / "table.txt").read_text()
    assert text in done.stdout
    assert "published by Ignatenko" in text
    assert "YOLOv2 grey linear, reduced" in (tmp_path / "table/compact/report.html").read_text()
    again = call(config_file, "yolov2_grey_linear", "--reduced", *settings, *small)
    assert "yolov2_grey_linear is done; remove" in again.stderr
    assert not list((tmp_path / "table").glob("*/checkpoints"))
    other = call(config_file, "compact", *settings, "--set", "training.seed=7")
    assert other.returncode == 1
    assert "trained with other settings: training.seed (was 0, is 7)" in other.stderr


def test_unknown_rows_and_a_missing_truth_are_refused(config_file):
    found = call(config_file, "yolov9")
    assert found.returncode == 1
    assert found.stderr.startswith("error: yolov9: no row; they are compact, compact_random")
    found = call(config_file, "compact", "--set", "labels.truth=null")
    assert found.stderr == "error: labels.truth: missing; the table needs it\n"
