"""A whole beamtime, small: balance, resuming, stale folders, bad files."""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from spidask import pipeline
from spidask.config import EM, Config
from spidask.ensemble import find_members
from spidask.errors import ConfigError, SpidaskError, StoreError
from spidask.io.store import gather_labels
from spidask.networks.member import load_member
from spidask.schema import REASONS

FIXED_NAMES = (
    *("labels.zarr", "selection.csv", "members", "metrics.csv", "manifest.json", "report.html"),
    *(f"dragonfly/{name}" for name in ("photons.h5", "detector.h5", "blacklist.txt", "config.ini")),
    "selection.cxi",
)


@pytest.fixture(scope="module")
def done(beamtime, tmp_path_factory):
    """An output folder where everything is done."""
    config = beamtime.config(tmp_path_factory.mktemp("done"))
    return config, pipeline.run(config)


@pytest.fixture
def copied(done, tmp_path):
    """The same in a folder of its own, to change."""
    config, _ = done
    shutil.copytree(config.output, tmp_path / "out")
    return config.model_copy(update={"output": str(tmp_path / "out")})


def read_table(output: str | Path) -> pd.DataFrame:
    return pd.read_csv(Path(output) / "selection.csv", keep_default_na=False)


def test_everything_is_there_under_its_name(done):
    config, _ = done
    assert [n for n in FIXED_NAMES if not (Path(config.output) / n).exists()] == []


def test_frames_in_are_frames_out(done):
    config, manifest = done
    counts = manifest["counts"]["select"]
    table = read_table(config.output)
    assert len(table) == counts["frames"] == 600
    assert counts["selected"] + sum(counts[name] for name in REASONS[1:]) == 600
    found = table["reason"].value_counts()
    assert {name: int(found.get(name, 0)) for name in REASONS[1:]} == {
        name: counts[name] for name in REASONS[1:]
    }
    assert int((table["reason"] == "").sum()) == counts["selected"]


def test_the_manifest_counts_by_stage(done):
    config, _ = done
    counts = json.loads((Path(config.output) / "manifest.json").read_text())["counts"]
    table = read_table(config.output)
    assert counts["classify"]["frames"] == len(table) == 600
    assert counts["classify"]["unreadable"] == 0
    assert counts["classify"]["hits"] == (table["reason"] != "miss").sum()


def test_manifest_holds_the_merged_config_and_versions(done):
    config, manifest = done
    assert manifest["config"] == config.model_dump(mode="json")
    assert manifest["versions"]["spidask"]
    assert manifest["counts"]["train"]["frames"] == 300


def test_metrics_come_from_frames_that_did_not_train(done):
    _, manifest = done
    metrics = manifest["counts"]["metrics"]
    assert metrics["reject everything"]["recall"] == 0
    assert 0 <= metrics["selection"]["average_precision"] <= 1


def test_a_second_run_does_nothing_again(copied):
    output = Path(copied.output)
    before = {p: p.stat().st_mtime_ns for p in output.rglob("*") if "labels.zarr/" in str(p)}
    members = {p: p.read_bytes() for p in (output / "members").iterdir()}
    photons = (output / "dragonfly/photons.h5").stat().st_mtime_ns
    pipeline.run(copied)
    after = {p: p.stat().st_mtime_ns for p in before if p.name != "zarr.json"}
    assert after == {p: t for p, t in before.items() if p.name != "zarr.json"}
    assert {p: p.read_bytes() for p in (output / "members").iterdir()} == members
    assert (output / "dragonfly/photons.h5").stat().st_mtime_ns == photons


def test_a_changed_setting_stops_and_is_named(copied):
    changed = copied.model_copy(update={"hits": copied.hits.model_copy(update={"threshold": 50.0})})
    with pytest.raises(StoreError, match=r"hits\.threshold.*100.*50"):
        pipeline.run(changed)
    training = copied.training.model_copy(update={"seed": 1})
    with pytest.raises(StoreError, match=r"training\.seed \(was 0, is 1\)"):
        pipeline.run(copied.model_copy(update={"training": training}))


def test_select_again_changes_window_and_blacklist_only(copied):
    output = Path(copied.output)
    photons = (output / "dragonfly/photons.h5").stat().st_mtime_ns
    manifest = pipeline.select_again(output, ["selection.size_window_nm=[1, 2]"])
    assert manifest["counts"]["select"]["selected"] == 0
    assert (output / "dragonfly/photons.h5").stat().st_mtime_ns == photons
    assert set((output / "dragonfly/blacklist.txt").read_text().split()) == {"1"}
    assert (read_table(output)["reason"] == "size").any()
    assert manifest["config"]["selection"]["size_window_nm"] == [1, 2]


@pytest.mark.parametrize(
    ("override", "match"), [("handoff.bin=500", r"handoff\.bin: 500"), ("handoff.bin=2", "r0001")]
)
def test_a_select_that_is_refused_leaves_all_as_it_was(copied, override, match):
    output = Path(copied.output)
    manifest = json.loads((output / "manifest.json").read_text())
    manifest["config"]["runs"]["files"] = ["/nowhere/r0001.h5"]
    if "500" not in override:  # the raw files are gone
        (output / "manifest.json").write_text(json.dumps(manifest))
    names = ("selection.csv", "manifest.json", "report.html", "dragonfly/blacklist.txt")
    before = [(output / name).read_bytes() for name in names]
    with pytest.raises(SpidaskError, match=match):
        pipeline.select_again(output, [override, "selection.size_window_nm=[60, 61]"])
    assert [(output / name).read_bytes() for name in names] == before


def test_select_again_refuses_what_changes_labels(copied):
    for override in ("hits.n_sigma=3", "selection.expected_single_fraction=0.1"):
        with pytest.raises(ConfigError, match=override.split("=")[0]):
            pipeline.select_again(copied.output, [override])


def test_baselines_determine_neither_members_nor_labels(copied):
    weights = [path.read_bytes() for path in sorted(Path(copied.output).glob("members/*"))]
    changed = copied.model_copy(update={"em": EM(n_classes=3)})
    pipeline.run(changed, "select", progress=lambda *_: pytest.fail("a shard was done again"))
    assert [path.read_bytes() for path in sorted(Path(copied.output).glob("members/*"))] == weights
    manifest = pipeline.select_again(copied.output, ["em.classes=[0, 2]"])
    assert manifest["config"]["em"]["classes"] == [0, 2]


def test_a_refused_run_leaves_the_manifest_alone(copied):
    manifest = Path(copied.output) / "manifest.json"
    before = manifest.read_bytes()
    changed = copied.model_copy(update={"hits": copied.hits.model_copy(update={"threshold": 50.0})})
    with pytest.raises(StoreError):
        pipeline.run(changed)
    assert manifest.read_bytes() == before


def test_select_again_judges_the_new_selection_and_drops_the_old_report(copied):
    output = Path(copied.output)
    (output / "comparison.csv").write_text("of the old selection")
    manifest = pipeline.select_again(output, ["selection.size_window_nm=[1, 2]"])
    assert manifest["counts"]["metrics"]["selection"]["selected"] == 0
    assert not (output / "report.html").exists()
    assert not (output / "comparison.csv").exists()


def test_a_setting_that_went_is_a_change(beamtime, tmp_path):
    geometry = {"r0003": {"geometry": {"beam_centre_x_px": 20}}}
    config = beamtime.config(tmp_path, per_run=geometry)
    pipeline.run(config, "select")
    with pytest.raises(StoreError, match=r"per_run\.r0003"):
        pipeline.run(beamtime.config(tmp_path), "select")
    with pytest.raises(ConfigError, match=r"per_run\.r0003"):
        pipeline.select_again(tmp_path, ["per_run={}"])


def given(copied, tmp_path, order=1):
    """The beamtime once more, with the members of another output."""
    members = sorted((Path(copied.output) / "members").glob("*.safetensors"))[::order]
    inference = copied.inference.model_copy(update={"members": [str(path) for path in members]})
    return copied.model_copy(update={"inference": inference, "output": str(tmp_path / "given")})


def test_members_in_another_order_are_other_members(copied, tmp_path):
    pipeline.run(given(copied, tmp_path), "select")
    with pytest.raises(StoreError, match=r"members\.0 was .*members\.1"):
        pipeline.run(given(copied, tmp_path, -1), "select")


def test_given_members_bring_the_frames_they_were_trained_on(copied, tmp_path):
    labels = copied.labels.model_copy(update={"truth": copied.labels.file})
    config = given(copied, tmp_path).model_copy(update={"labels": labels})
    manifest = pipeline.run(config)
    assert manifest["counts"]["metrics"] == {}  # nothing is left to judge by
    assert (Path(config.output) / "report.html").exists()


def test_a_mask_for_a_new_run_leaves_the_others_alone(beamtime, tmp_path):
    runs, masks = tmp_path / "runs", tmp_path / "masks.h5"
    shutil.copytree(beamtime.folder, runs)
    with h5py.File(masks, "w") as file:
        for number in (1, 2, 3):
            file[f"r000{number}"] = np.ones((40, 48), np.uint8)
    change = {"runs": {"files": [str(runs / "r*.h5")], "mask": f"{masks}:{{run}}"}}
    config = beamtime.config(tmp_path / "out", **change)
    pipeline.run(config, "classify")
    shutil.copy2(runs / "r0003.h5", runs / "r0004.h5")
    with h5py.File(masks, "a") as file:
        file["r0004"] = np.ones((40, 48), np.uint8)
    shards = []
    pipeline.run(config, "classify", lambda shard, _: shards.append(shard.run))
    assert shards == ["r0004"] * 3
    with h5py.File(masks, "a") as file:
        file["r0004"][0, 5] = 0
    with pytest.raises(StoreError, match=r"masks\.h5:r0004 was changed"):
        pipeline.run(config, "classify")


def test_a_damaged_record_is_named(copied):
    record = Path(copied.output) / "members" / "training.json"
    record.write_text(record.read_text()[:40])
    with pytest.raises(StoreError, match=r"training\.json cannot be read"):
        pipeline.run(copied)


def test_checkpoints_do_not_outlive_their_settings(copied):
    shutil.rmtree(Path(copied.output) / "members")
    training = copied.training.model_copy(update={"learning_rate": 0.5})
    with pytest.raises(StoreError, match=r"training\.learning_rate"):
        pipeline.run(copied.model_copy(update={"training": training}))


def test_labels_of_an_unreadable_run_are_left_out(beamtime, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(beamtime.folder, runs)
    rows = (runs / "labels.csv").read_text() + "r0009,0,single\nr0009,1,background\n"
    (runs / "labels.csv").write_text(rows)
    (runs / "r0009.h5").write_bytes((runs / "r0001.h5").read_bytes()[:5000])
    change = {
        "runs": {"files": [str(runs / "r*.h5")]},
        "labels": {"file": str(runs / "labels.csv")},
    }
    manifest = pipeline.run(beamtime.config(tmp_path / "out", **change), "train")
    assert manifest["counts"]["train"]["frames"] == 300


def test_a_new_run_adds_work_for_itself_only(copied, beamtime, tmp_path):
    shutil.copytree(beamtime.folder, tmp_path / "runs")
    shutil.copy2(tmp_path / "runs/r0003.h5", tmp_path / "runs/r0004.h5")
    runs = copied.runs.model_copy(update={"files": [str(tmp_path / "runs" / "r*.h5")]})
    shards = []
    pipeline.run(
        copied.model_copy(update={"runs": runs}), "classify", lambda s, _: shards.append(s.run)
    )
    assert shards == ["r0004"] * 3


def run_and_die(config: Config) -> None:
    """Kill this process, as hard as can be, after the third shard."""
    count = 0

    def progress(_shard: object, _n: int) -> None:
        nonlocal count
        count += 1
        if count == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    pipeline.run(config, "classify", progress)


def test_a_killed_run_goes_on_to_the_same_labels(done, copied):
    output = Path(copied.output)
    shutil.rmtree(output / "labels.zarr")
    process = multiprocessing.get_context("spawn").Process(target=run_and_die, args=(copied,))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    shards = []
    pipeline.run(copied, "classify", lambda shard, _: shards.append(shard))
    assert len(shards) == 7 - 3
    found, expected = (gather_labels(Path(c.output) / "labels.zarr") for c in (copied, done[0]))
    for name in expected.variables:
        np.testing.assert_array_equal(found[name].values, expected[name].values)


def test_bad_neighbours_change_no_label(beamtime, copied, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(beamtime.folder, runs)
    whole = (runs / "r0003.h5").read_bytes()
    (runs / "r0005.h5").write_bytes(whole[: len(whole) // 2])
    (runs / "r0006.h5").write_bytes(b"")
    with h5py.File(runs / "r0007.h5", "w") as file:
        file["data"] = np.ones((5, 20, 20), np.uint16)
    with h5py.File(runs / "r0008.h5", "w") as file:
        frames = np.ones((4, 40, 48), np.float32)
        frames[2] = np.nan
        file["data"] = frames
    good = pd.read_csv(Path(copied.output) / "selection.csv")
    config = copied.model_copy(
        update={
            "runs": copied.runs.model_copy(update={"files": [str(runs / "r*.h5")]}),
            "inference": copied.inference.model_copy(
                update={
                    "members": [
                        str(p)
                        for p in sorted((Path(copied.output) / "members").glob("*.safetensors"))
                    ]
                }
            ),
            "output": str(tmp_path / "bad"),
        }
    )
    manifest = pipeline.run(config)
    read = manifest["counts"]["read"]
    named = {Path(path).name for path, _ in read["unreadable_files"]}
    assert named == {"r0005.h5", "r0006.h5"}
    assert [Path(path).name for path, _ in read["odd_files"]] == ["r0007.h5"]
    table = pd.read_csv(tmp_path / "bad/selection.csv")
    unreadable = table[table["reason"] == "unreadable"]
    assert unreadable.groupby("run").size().to_dict() == {"r0007": 5, "r0008": 1}
    assert unreadable[unreadable["run"] == "r0008"]["index"].tolist() == [2]
    same = table[table["run"].isin(["r0001", "r0002", "r0003"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, good)


def test_an_unknown_stage_is_refused(beamtime, tmp_path):
    with pytest.raises(ConfigError, match="stages are train, classify"):
        pipeline.run(beamtime.config(tmp_path), "clasify")


def test_training_needs_labels_or_members(beamtime, tmp_path):
    config = beamtime.config(tmp_path, labels={"file": None})
    with pytest.raises(ConfigError, match=r"labels\.file: missing"):
        pipeline.run(config)
    given = beamtime.config(
        tmp_path,
        labels={"file": None},
        inference={"members": [str(path) for path in beamtime.members]},
    )
    manifest = pipeline.run(given, "select")
    assert manifest["counts"]["select"]["frames"] == 600


def test_report_is_written_anew(copied):
    path = Path(copied.output) / "report.html"
    path.unlink()
    assert pipeline.report_again(copied.output) == path
    assert "600" in path.read_text()


def test_no_folder_without_a_manifest(tmp_path):
    with pytest.raises(SpidaskError, match=r"manifest\.json"):
        pipeline.select_again(tmp_path)


def test_the_papers_network_and_protocol_go_the_whole_way(beamtime, tmp_path):
    training = {
        "architecture": "yolov2",
        "width": 0.125,
        "optimizer": "sgd",
        "learning_rate": 5e-3,
        "weight_decay": 5e-4,
        "burn_in": 10,
        "iterations": 120,
        "checkpoint_every": 10,
        "ensemble": {"stages": [100, 110, 120]},
        "representation": {"colours": "jet", "maximum": "own", "size": [64, 96]},
    }
    inference = {"ensemble": "early_exit", "batch_size": 8}
    config = beamtime.config(tmp_path / "out", training=training, inference=inference)
    manifest = pipeline.run(config, "select")
    members = [load_member(path) for path in find_members(config)]
    assert [member.provenance["iteration"] for member in members] == [100, 110, 120]
    assert {member.network.name for member in members} == {"yolov2"}
    table = pd.read_csv(tmp_path / "out" / "metrics.csv")
    terms = table[["objectness", "localization", "classification"]].sum(axis=1)
    np.testing.assert_allclose(terms, table["loss"], atol=1e-5)
    assert len(table) == 120
    # What a member rejects is not shown to the next.
    scores = gather_labels(tmp_path / "out" / "labels.zarr")["scores"].values
    rejected = scores < [member.threshold for member in members]
    assert rejected[:, :2].any()
    for number in range(2):
        assert np.isnan(scores[rejected[:, number], number + 1 :]).all()
    truth = pd.read_csv(beamtime.folder / "truth.csv")
    found = read_table(tmp_path / "out").merge(truth, on=["run", "index"])
    single = found["label"] == "single"
    kept = found["reason"].isin(["", "size"])
    assert (kept & single).sum() / (kept | single).sum() > 0.8
    assert manifest["counts"]["select"]["frames"] == 600
