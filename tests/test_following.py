"""Following a beamtime: runs that appear, grow, go, and labels that come late."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

from spidask import pipeline
from spidask.io.store import list_runs


def read_table(output: str | Path) -> pd.DataFrame:
    return pd.read_csv(Path(output) / "selection.csv", keep_default_na=False)


def test_runs_that_appear_are_followed(beamtime, tmp_path, monkeypatch):
    # Two are there at first; the third comes when these are done.
    folder, output = tmp_path / "runs", tmp_path / "out"
    folder.mkdir()
    for name in ("r0001.h5", "r0002.h5"):
        shutil.copy2(beamtime.folder / name, folder / name)
    done: list[str] = []

    def wait(_seconds):
        if len(done) == 4 and not (folder / "r0003.h5").exists():
            shutil.copy2(beamtime.folder / "r0003.h5", folder / "r0003.h5")
        elif len(done) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr("spidask.io.files.time.sleep", wait)
    config = beamtime.config(output, runs={"files": [str(folder / "r*.h5")]})
    manifest = pipeline.run(config, "select", lambda shard, _: done.append(shard.run), follow=True)
    assert done == ["r0001"] * 2 + ["r0002"] * 2 + ["r0003"] * 3
    assert manifest["counts"]["select"]["frames"] == 600
    once = beamtime.config(tmp_path / "once")
    pipeline.run(once, "select")
    for found in ("selection.csv", "metrics.csv"):
        assert (output / found).read_bytes() == (tmp_path / "once" / found).read_bytes()


def test_what_is_followed_may_be_cut_off_or_grow_later(beamtime, tmp_path, monkeypatch, caplog):
    folder, output = tmp_path / "runs", tmp_path / "out"
    folder.mkdir()
    whole = (beamtime.folder / "r0001.h5").read_bytes()
    (folder / "r0001.h5").write_bytes(whole[: len(whole) // 2])
    steps = iter(range(20))

    def wait(_seconds):
        match next(steps):
            case 2:
                (folder / "r0001.h5").write_bytes(whole)
            case 5:  # the run goes on in another file
                shutil.copy2(beamtime.folder / "r0002.h5", folder / "r0001_2.h5")
            case 8:
                raise KeyboardInterrupt

    monkeypatch.setattr("spidask.io.files.time.sleep", wait)
    runs = {"files": [str(folder / "r*.h5")], "pattern": r"(?P<run>r\d+)"}
    members = {"members": [str(path) for path in beamtime.members]}
    labels = {"file": None, "truth": None}
    config = beamtime.config(output, runs=runs, inference=members, labels=labels)
    manifest = pipeline.run(config, "select", follow=True)
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert any("r0001.h5" in text and "looking again" in text for text in told)
    assert "the files of run r0001 have changed: it is labelled anew" in told
    assert manifest["counts"]["select"]["frames"] == 300
    once = beamtime.config(tmp_path / "once", runs=runs, inference=members, labels=labels)
    pipeline.run(once, "select")
    assert read_table(output).equals(read_table(tmp_path / "once"))


def follow(monkeypatch, config, steps: dict, until: str = "select") -> dict:
    """Follow, and do something after each of some looks; after the last it ends."""
    looks = iter(range(99))

    def wait(_seconds):
        look = next(looks)
        if look > max(steps):
            raise KeyboardInterrupt
        steps.get(look, lambda: None)()

    monkeypatch.setattr("spidask.io.files.time.sleep", wait)
    return pipeline.run(config, until, follow=True)


def test_runs_that_are_moved_away_keep_their_labels(beamtime, tmp_path, monkeypatch):
    folder, output = tmp_path / "runs", tmp_path / "out"
    folder.mkdir()
    for name in ("r0001.h5", "r0002.h5"):
        shutil.copy2(beamtime.folder / name, folder / name)
    config = beamtime.config(
        output,
        runs={"files": [str(folder / "r*.h5")]},
        inference={"members": [str(path) for path in beamtime.members]},
        labels={"file": None, "truth": None},
    )
    steps = {
        3: (folder / "r0001.h5").unlink,
        5: lambda: shutil.copy2(beamtime.folder / "r0003.h5", folder),
        8: (folder / "r0002.h5").unlink,
        9: (folder / "r0003.h5").unlink,  # now there is nothing to look at
        12: lambda: None,
    }
    follow(monkeypatch, config, steps)
    assert list_runs(output / "labels.zarr") == ["r0001", "r0002", "r0003"]
    assert len(read_table(output)) == 600


def test_labels_may_come_late_and_be_corrected(beamtime, tmp_path, monkeypatch):
    config = beamtime.config(tmp_path / "out", labels={"file": str(tmp_path / "mine.csv")})
    good = Path(beamtime.config(tmp_path).labels.file).read_text()
    steps = {
        2: lambda: (tmp_path / "mine.csv").write_text(good + "r0009,1,single\n"),
        4: lambda: (tmp_path / "mine.csv").write_text(good),
        6: lambda: None,
    }
    manifest = follow(monkeypatch, config, steps)
    assert manifest["counts"]["train"]["frames"] > 0
    assert manifest["counts"]["select"]["frames"] == 600
