"""The EM row: rings are told from fringes without a network."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from spidask import pipeline
from spidask.io.tables import read_selection_csv

JOB = Path(__file__).parents[2] / "jobs" / "em_reference.py"


@pytest.fixture
def output(beamtime, tmp_path):
    """All hits of the shared beamtime, ready for orientation determination."""
    config = beamtime.config(
        tmp_path,
        inference={"members": [str(path) for path in beamtime.members]},
        selection={"size_window_nm": [1, 1000]},
    )
    pipeline.run(config, "export")
    return tmp_path


def classify(output: Path, *arguments: str) -> str:
    command = [sys.executable, str(JOB), str(output), "--classes", "2", "--starts", "2", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_rings_are_found_by_the_classes_that_their_labels_fall_into(output):
    told = classify(output)
    classes = pd.read_csv(output / "em" / "classes.csv")
    assert classes["hits"].sum() == (read_selection_csv(output)["diameter_nm"].notna()).sum()
    assert classes["selected"].sum() == 1
    assert (output / "em" / "classes.png").stat().st_size > 5000
    # In the truth rings are the single hits; half of the hits are.
    f1 = next(line.split()[2] for line in told.splitlines() if line.startswith("f1"))
    assert float(f1) > 0.95
    table = read_selection_csv(output / "em")
    assert len(table) == 600
    assert set(table.loc[table["selected"], "reason"]) == {""}


def test_classes_may_be_named(output):
    classify(output, "--single", "1")
    classes = pd.read_csv(output / "em" / "classes.csv")
    table = read_selection_csv(output / "em")
    assert table["selected"].sum() == classes.loc[1, "hits"]


def test_too_few_hits_are_counted(output):
    command = [sys.executable, str(JOB), str(output), "--classes", "5000"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "hits pass the size window; 5000 classes need more" in done.stderr
