"""Hits of an output folder against what the raw runs hold."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spidask import open_runs, pipeline, preprocess
from spidask.baselines import hits
from spidask.baselines.hits import Result, find_hits, is_done, label_hits, make_grid, read_patterns
from spidask.errors import DataError, StoreError
from spidask.frames.polar import polar_grid
from spidask.io.tables import read_selection_csv, read_trained_frames


@pytest.fixture(scope="module")
def config(beamtime, tmp_path_factory):
    """Pixels of 60 photons are missing, and a column is masked."""
    folder = tmp_path_factory.mktemp("hits")
    mask = np.ones((40, 48), np.uint8)
    mask[:, 20] = 0
    np.save(folder / "mask.npy", mask)
    config = beamtime.config(
        folder / "out",
        runs={"mask": str(folder / "mask.npy")},
        preprocessing={"saturation_adu": 60},
        inference={"members": [str(beamtime.members[0])]},
        selection={"size_window_nm": [30, 60]},
    )
    pipeline.run(config, "export")
    return config


@pytest.fixture
def output(config) -> Path:
    return Path(config.output)


def test_patterns_are_those_of_the_runs(config, output, monkeypatch):
    monkeypatch.setattr(hits, "PER_BLOCK", 50)
    frames = preprocess(open_runs(config.runs.files, config.runs.dataset), config).compute()
    found = find_hits(output)
    assert len(found) == frames["hit"].values.sum()
    some = found.iloc[3:160:2]
    blocks = list(read_patterns(output, some))
    assert [len(block) for block in blocks] == [50, 29]
    patterns = np.concatenate(blocks)
    expected = frames["patterns"].values[frames["hit"].values][3:160:2]
    np.testing.assert_array_equal(patterns, expected)
    missing = np.isnan(patterns)
    assert missing[:, :, 16].all()  # the region begins at column 4
    assert missing.sum() > missing[:, :, 16].size  # saturated ones besides
    runs = frames["run_name"].values[frames["run"].values[frames["hit"].values]]
    assert found["run"].tolist() == runs.tolist()


def test_the_grid_lies_around_the_beam(config, output):
    grid = make_grid(output, config, 5, 8)
    expected = polar_grid((36, 40), (-3.0, 19.5), (3.0, 20.5), 5, 8)
    np.testing.assert_array_equal(grid.cells.toarray(), expected.cells.toarray())


def test_summed_pixels_have_a_grid_of_their_own(config, tmp_path):
    values = config.model_dump() | {"handoff": {"bin": 2}, "output": str(tmp_path)}
    binned = type(config).model_validate(values)
    pipeline.run(binned, "export")
    grid = make_grid(tmp_path, binned, 5, 8)
    # The first pixel's centre is at column 4.5, and the beam at 23.5: 19 columns, 9.5 squares.
    expected = polar_grid((18, 20), (-1.75, 9.5), (1.75, 10.5), 5, 8)
    np.testing.assert_array_equal(grid.cells.toarray(), expected.cells.toarray())


def test_labels_find_their_hits_by_any_id(config, output, tmp_path):
    def ask(text: str) -> list[object]:
        (tmp_path / "labels.csv").write_text(text)
        labels = config.labels.model_copy(update={"file": str(tmp_path / "labels.csv")})
        asked = config.model_copy(update={"labels": labels})
        return label_hits(some, asked).tolist()

    some = find_hits(output).iloc[[0, 4, 7]].assign(timestamp=[7, 8, 9])
    run, index = some["run"].iloc[1], some["index"].iloc[1]
    # A label of a frame that is no hit is no matter.
    text = f"run,index,label\n{run},{index},multiple\n{run},99999,single\n"
    assert ask(text)[1] == "multiple"
    assert pd.isna(ask(text)[::2]).all()
    assert ask("timestamp,label\n9,single\n")[2] == "single"
    with pytest.raises(DataError, match="names frames by trainId, pulseId"):
        ask("trainId,pulseId,label\n1,2,single\n")


def test_every_frame_gets_its_reason(config, output):
    found = find_hits(output)
    judged = found.iloc[:6]
    reason = ["", "not_single", "", "", "not_single", ""]
    verdicts = judged[["run", "index"]].assign(score=np.arange(6.0), reason=reason)
    result = Result("a name", verdicts, judged[:2], 7, 12.5)
    hits.write_result(output, "some", result, {"a": [1, 2]}, config)
    table, own = read_selection_csv(output / "some"), read_selection_csv(output)
    keys = judged[["run", "index"]].apply(tuple, axis=1)
    told = table.set_index(["run", "index"]).loc[list(keys)]
    inside = judged["diameter_nm"].between(30, 60).to_numpy()
    expected = [r if r or i else "size" for r, i in zip(reason, inside, strict=True)]
    assert told["reason"].tolist() == expected
    assert told["score"].tolist() == [0, 1, 2, 3, 4, 5]
    # Misses stay misses; hits that nobody judged are of a wrong size.
    np.testing.assert_array_equal(table["reason"] == "miss", own["reason"] == "miss")
    assert (table["reason"] == "size").sum() == len(found) - 6 + expected.count("size")
    seen = judged[:2].groupby("run")["index"].apply(list).to_dict()
    assert read_trained_frames(output / "some") == seen
    assert json.loads((output / "some" / "row.json").read_text()) == {
        "name": "a name",
        "n_parameters": 7,
        "patterns_per_second": 12.5,
        "device": "cpu",
    }
    assert is_done(output, "some", {"a": [1, 2]})
    assert not is_done(output, "other", {"a": [1, 2]})
    with pytest.raises(StoreError, match=r"other settings: a\. Set them back") as caught:
        is_done(output, "some", {"a": [1, 3]})
    assert caught.value.changed == ["a"]


def test_a_table_that_lacks_hits_is_refused(output, tmp_path):
    (tmp_path / "dragonfly").symlink_to(output / "dragonfly")
    lines = (output / "selection.csv").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("r0003")]
    (tmp_path / "selection.csv").write_text("\n".join(kept) + "\n")
    with pytest.raises(StoreError, match=r"selection\.csv lacks \d+ of the \d+ hits"):
        find_hits(tmp_path)
    with pytest.raises(StoreError, match="holds no hits"):
        find_hits(tmp_path / "nowhere")
