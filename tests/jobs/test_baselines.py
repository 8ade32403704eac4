"""Rings are told from fringes without a network."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spidask import compare, gather_labels, load_config, pipeline
from spidask.frames.hits import find_hits
from spidask.io.tables import read_selection_csv, read_trained_frames

JOB = Path(__file__).parents[2] / "jobs" / "baselines.py"
CONFIG = Path(__file__).parents[2] / "configs" / "lcls2018_pr772.yaml"
SHARED = Path(__file__).parents[3] / "shared" / "data"
TWO = ("--set", "em.n_classes=2", "--set", "em.n_starts=2")


@pytest.fixture(scope="module")
def exported(beamtime, tmp_path_factory):
    """All hits of the shared beamtime, ready for orientation determination."""
    config = beamtime.config(
        tmp_path_factory.mktemp("exported"),
        inference={"members": [str(path) for path in beamtime.members]},
        selection={"size_window_nm": [1, 1000]},
    )
    pipeline.run(config, "export")
    return Path(config.output)


@pytest.fixture
def output(exported, tmp_path):
    """The same without any baseline; links, for nothing in it is written again."""
    for path in exported.iterdir():
        if path.name not in ("em", "rule", "forest", ".lock"):
            (tmp_path / path.name).symlink_to(path)
    return tmp_path


def call(output: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(JOB), str(output), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def classify(output: Path, *arguments: str) -> str:
    done = call(output, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_all_are_done_once_and_tell_rings_from_fringes(output, beamtime):
    told = classify(output, *TWO)
    assert "begins" in told
    assert "is done" not in told
    truth = beamtime.folder / "truth.csv"
    f1 = {
        n: compare(output, output / n, truth=truth)["f1"].iloc[1] for n in ("em", "rule", "forest")
    }
    # In the truth rings are the single hits; half of the hits are, and the rule takes all.
    assert f1["em"] > 0.95
    assert f1["forest"] > 0.95
    assert 0.5 < f1["rule"] < 0.8
    for name in f1:
        row = json.loads((output / name / "row.json").read_text())
        assert set(row) == {"name", "n_parameters", "patterns_per_second", "device"}
        assert row["patterns_per_second"] > 10
        table, own = read_selection_csv(output / name), read_selection_csv(output)
        for column in ("run", "index", "diameter_nm"):
            np.testing.assert_array_equal(table[column], own[column])
        assert set(table.loc[table["selected"], "reason"]) == {""}
        assert (table["reason"] != "")[~table["selected"]].all()
    counts = pd.read_csv(output / "em" / "classes.csv")
    assert counts["hits"].sum() == read_selection_csv(output)["diameter_nm"].notna().sum()
    assert counts["selected"].sum() == 1
    assert (output / "em" / "classes.png").stat().st_size > 5000
    before = {n: (output / n / "selection.csv").stat().st_mtime_ns for n in f1}
    again = classify(output, *TWO)
    assert again.count("is done; remove") == 3
    assert "begins" not in again
    assert {n: (output / n / "selection.csv").stat().st_mtime_ns for n in f1} == before


def test_labels_that_were_seen_are_told(output, beamtime):
    classify(output, "rule", "forest")
    assert read_trained_frames(output / "rule") == {}
    labels = pd.read_csv(beamtime.folder / "labels.csv")
    hits = pd.read_csv(output / "dragonfly" / "index.csv")
    expected = hits.merge(labels, on=["run", "index"]).groupby("run")["index"].apply(list)
    assert read_trained_frames(output / "forest") == expected.to_dict()
    assert set(expected.index) == {"r0001", "r0002"}
    shutil.rmtree(output / "forest")
    classify(output, "forest", "--set", "validation.runs=[r0009]")
    assert set(read_trained_frames(output / "forest")) == {"r0001"}


def test_the_rule_is_the_adaptive_threshold_of_each_run(output):
    classify(output, "rule", "--set", "hits.window=100", "--set", "hits.n_sigma=1")
    labels = gather_labels(output / "labels.zarr")
    table = read_selection_csv(output / "rule")
    n_hits = 0
    for code, run in enumerate(labels["run_name"].values):
        scores, lit = (
            labels[name].values[labels["run"].values == code]
            for name in ("hit_score", "lit_pixels")
        )
        hit = find_hits(scores, lit, window=100, n_sigma=1.0)
        rows = table[table["run"] == run]
        n_hits += hit.sum()
        np.testing.assert_array_equal(rows["selected"], hit & rows["diameter_nm"].notna())
        np.testing.assert_array_equal(rows["score"] > 0, hit)
        np.testing.assert_array_equal(rows["reason"] == "miss", ~hit)
    # It is blind in the runs that hold hits for the most part.
    assert 40 < n_hits < 80


def test_the_size_window_counts(output):
    table = read_selection_csv(output)
    low, high = table["diameter_nm"].quantile([0.3, 0.7])
    window = ("--set", f"selection.size_window_nm=[{low}, {high}]")
    classify(output, *TWO, *window)
    inside = table["diameter_nm"].between(low, high)
    for name in ("em", "rule", "forest"):
        chosen = read_selection_csv(output / name)
        assert not chosen.loc[~inside, "selected"].any()
        assert (chosen["reason"] == "size").any()
    forest = read_selection_csv(output / "forest")
    assert ((forest["score"] >= 0) & ~inside & table["diameter_nm"].notna()).any()
    np.testing.assert_array_equal(forest["selected"], (forest["score"] >= 0) & inside)
    assert read_selection_csv(output / "em")["score"].notna().sum() == inside.sum()


def test_classes_may_be_named(output):
    classify(output, "em", *TWO, "--set", "em.classes=[1]")
    counts = pd.read_csv(output / "em" / "classes.csv")
    assert counts["selected"].tolist() == [False, True]
    table = read_selection_csv(output / "em")
    assert table["selected"].sum() == counts.loc[1, "hits"]
    # After a look at the pictures: chosen anew, of the same classes.
    fit = (output / "em" / "fit.npz").stat()
    classify(output, "em", *TWO, "--set", "em.classes=[0]")
    chosen = read_selection_csv(output / "em")
    assert chosen["selected"].sum() == counts.loc[0, "hits"]
    assert not (chosen["selected"] & table["selected"]).any()
    assert (output / "em" / "fit.npz").stat().st_ino == fit.st_ino
    done = call(output, "em", *TWO, "--set", "em.classes=[0]", "--set", "em.n_steps=3")
    assert done.returncode == 1
    assert f"{output}/em was made with other settings: em.n_steps" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["em", "--set", "em.n_classes=900"], "hits pass the size window; 900 classes need more"),
        (["em", "--set", "labels.file="], "em.classes: missing"),
        (["forest", "--set", "labels.file="], "labels.file: missing"),
        (["forest", "--set", "training.runs=[x]"], "0 single hits and 0 others"),
        (["florest"], "florest: no baseline; they are em, rule, forest"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(output, arguments, expected):
    extra = ["--set", "validation.runs=[y]"] if "training.runs=[x]" in arguments else []
    done = call(output, *arguments, *extra)
    assert done.returncode == 1
    assert expected in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_folder_without_hits(output):
    (output / "dragonfly").unlink()
    done = call(output, "rule")
    assert done.stderr.splitlines()[-1].endswith("holds no hits; run the stage export first")


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the independent test beamtime is not there")
def test_the_forest_ranks_the_independent_beamtime(tmp_path, beamtime):
    config = load_config(
        CONFIG,
        [
            f"runs.files={[str(path) for path in sorted(SHARED.glob('r*.h5'))]}",
            f"runs.mask={SHARED}/masks.h5:{{run}}",
            f"labels.file={SHARED}/labels.csv",
            f"inference.members={[str(beamtime.members[0])]}",
            "cluster.kind=inline",
            f"output={tmp_path}",
        ],
    )
    pipeline.run(config, "export")
    classify(tmp_path, "forest", "--truth", f"{SHARED}/truth_r0103.csv")
    judged = compare(tmp_path, tmp_path / "forest", truth=SHARED / "truth_r0103.csv")
    # The share of single hits is 0.057, and that is what chance reaches.
    assert judged["average_precision"].iloc[1] > 0.45
