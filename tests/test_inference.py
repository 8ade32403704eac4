"""Inference: the same answer whatever the blocks, shards and workers."""

import dataclasses
import threading
import urllib.request

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

from spidask import preprocessing
from spidask.cluster import Pool, connect, connection_facts, read_cluster
from spidask.config import Cluster, Selection, parse_config
from spidask.errors import ClusterError, DataError
from spidask.inference import classify, classify_runs, enclose_windows
from spidask.io.labels import read_labels
from spidask.io.progress import read_progress
from spidask.io.runs import open_runs, select_run, sign_files
from spidask.io.store import gather_labels, missing_shards
from spidask.monitor import shrink_pattern, watch
from spidask.networks.device import choose_device, resolve_device
from spidask.networks.member import load_member, save_member
from spidask.preprocessing import preprocess
from spidask.selection import select
from tests.conftest import Beamtime, write_run


def label(beamtime, output, client=None, **inference):
    config = beamtime.config(output, hits={"threshold": "adaptive"}, inference=inference)
    frames = open_runs(
        config.runs.files, "data", frames_per_block=config.inference.frames_per_block
    )
    done = classify_runs(
        frames, beamtime.members, config, output / "labels.zarr", sign_files(frames), client
    )
    return done, gather_labels(output / "labels.zarr")


@pytest.fixture(scope="module")
def reference(beamtime, tmp_path_factory):
    return label(beamtime, tmp_path_factory.mktemp("reference"))[1]


def assert_equal_bits(found: xr.Dataset, expected: xr.Dataset) -> None:
    assert set(found.variables) == set(expected.variables)
    for name in expected.variables:
        np.testing.assert_array_equal(found[name].values, expected[name].values, err_msg=name)


def test_classify_is_lazy_and_needs_patterns_and_members(beamtime, tmp_path):
    config = beamtime.config(tmp_path)
    patterns = preprocess(open_runs(config.runs.files, "data"), config)
    out = classify(patterns, beamtime.members, config)
    assert isinstance(out["scores"].data, da.Array)
    assert out["scores"].dims == ("frame", "member")
    assert out["member"].values.tolist() == ["m0", "m1"]
    with pytest.raises(DataError, match="no members"):
        classify(patterns, [], config)
    with pytest.raises(DataError, match="'hit'"):
        classify(patterns.drop_vars("hit"), beamtime.members, config)


def test_only_hits_are_scored_and_sized(beamtime, reference):
    hit = reference["hit"].values
    truth = read_labels(beamtime.folder / "truth.csv")["label"].to_numpy()
    np.testing.assert_array_equal(hit[300:], truth != "background")
    assert np.isnan(reference["scores"].values[~hit]).all()
    assert np.isfinite(reference["scores"].values[hit]).all()
    assert np.isnan(reference["diameter"].values[~hit]).all()


@pytest.mark.parametrize("frames_per_block", [7, 64, 500])
def test_block_size_changes_nothing(beamtime, reference, tmp_path, frames_per_block):
    _, found = label(beamtime, tmp_path, frames_per_block=frames_per_block)
    assert_equal_bits(found, reference)


def test_an_early_exit_selects_the_same(beamtime, reference, tmp_path):
    order = np.nanmedian(reference["scores"].values, axis=0)
    members = []
    for number, path in enumerate(beamtime.members):  # half of the hits end at each
        members.append(tmp_path / path.name)
        save_member(
            dataclasses.replace(load_member(path), threshold=float(order[number])), members[-1]
        )
    early = dataclasses.replace(beamtime, members=members)
    _, found = label(early, tmp_path / "out", ensemble="early_exit")
    everything, scores = reference["scores"].values, found["scores"].values
    first = everything[:, 0].astype(float) >= order[0]
    assert 0 < first.sum() < np.isfinite(everything[:, 0]).sum()
    np.testing.assert_array_equal(scores[:, 0], everything[:, 0])
    np.testing.assert_array_equal(scores[first, 1], everything[first, 1])
    assert np.isnan(scores[~first, 1]).all()
    chosen = [
        select(labels, order, Selection())["selected"].values for labels in (reference, found)
    ]
    np.testing.assert_array_equal(*chosen)


def test_shard_size_changes_nothing(beamtime, reference, tmp_path):
    done, found = label(beamtime, tmp_path, frames_per_shard=100)
    assert sorted((s.run, s.number, s.n_frames) for s in done)[:2] == [
        ("r0001", 0, 100),
        ("r0001", 1, 50),
    ]
    assert_equal_bits(found, reference)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(beamtime, reference, tmp_path, workers):
    with connect(Cluster(cpu_workers=workers), tmp_path) as client:
        _, found = label(beamtime, tmp_path, client)
    assert_equal_bits(found, reference)


def test_finished_shards_are_not_done_again(beamtime, reference, tmp_path):
    done, _ = label(beamtime, tmp_path)
    assert len(done) == 2 + 2 + 3
    again, found = label(beamtime, tmp_path)
    assert again == []
    assert_equal_bits(found, reference)
    assert missing_shards(tmp_path / "labels.zarr", "r0003") == []


def test_a_failing_shard_is_named_and_the_others_are_stored(beamtime, tmp_path):
    config = beamtime.config(
        tmp_path,
        per_run={"r0002": {"preprocessing": {"dark": str(tmp_path / "gone.h5:dark")}}},
    )
    frames = open_runs(config.runs.files, "data")
    store = tmp_path / "labels.zarr"
    with pytest.raises(DataError, match=r"2 of 7 shards failed, first shard 0 of r0002: .*gone"):
        classify_runs(frames, beamtime.members, config, store, sign_files(frames))
    assert missing_shards(store, "r0002") == [0, 1]
    assert missing_shards(store, "r0001") == missing_shards(store, "r0003") == []


def test_windows_are_enclosed():
    assert enclose_windows(slice(0, 10), 100, 250) == slice(0, 100)
    assert enclose_windows(slice(110, 120), 100, 250) == slice(100, 250)
    assert enclose_windows(slice(240, 250), 100, 250) == slice(100, 250)
    assert enclose_windows(slice(0, 50), 100, 50) == slice(0, 50)


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    values = {"runs": {"files": ["r.h5"]}, "output": "out"}
    assert resolve_device(parse_config(values)) == "cpu"
    with pytest.raises(ClusterError, match=r"inference\.device: cuda, but torch sees no CUDA"):
        resolve_device(parse_config({**values, "inference": {"device": "cuda"}}))


def test_on_workers_elsewhere_the_settings_say_what_labels_are_made_on():
    values = {"runs": {"files": ["r.h5"]}, "output": "out"}
    slurm = {"kind": "slurm", "jobs": 2}
    assert choose_device(parse_config(values)) == "auto"
    assert choose_device(parse_config({**values, "cluster": {"gpus": 0}})) == "cpu"
    assert choose_device(parse_config({**values, "cluster": slurm})) == "cpu"
    on_gpu = {**values, "cluster": {**slurm, "gpus": 2}}
    assert choose_device(parse_config(on_gpu)) == "cuda"
    assert choose_device(parse_config({**on_gpu, "inference": {"device": "cpu"}})) == "cpu"


def test_what_a_shard_took_and_showed_is_told(beamtime, tmp_path):
    for path in beamtime.members:  # that accept some
        member = dataclasses.replace(load_member(path), threshold=0.1)
        save_member(member, tmp_path / path.name)
    easy = Beamtime(beamtime.folder, [tmp_path / path.name for path in beamtime.members])
    with connect(Cluster(cpu_workers=1, gpus=0), tmp_path) as client, watch(client):
        label(easy, tmp_path, client)
        workers = read_cluster(tmp_path)
        events = [event for _, event in client.get_events("spidask")]
        facts = connection_facts(client, Cluster())
        page = urllib.request.urlopen(facts["dashboard"], timeout=30)
        assert page.status == 200
    pictures = [event for event in events if event["kind"] == "picture"]
    assert pictures
    for event in pictures:
        assert event["score"] >= 0
        config = easy.config(tmp_path)
        run = select_run(open_runs(config.runs.files, "data"), event["run"])
        pattern = preprocess(run, config)["patterns"][event["index"]].values
        assert event["pattern"]["pixels"] == shrink_pattern(pattern)["pixels"]
        assert tuple(event["pattern"]["shape"]) == (36, 40)
    shards = [event for event in events if event["kind"] == "shard"]
    (stage,) = (event for event in events if event["kind"] == "stage")
    assert (stage["n_shards"], stage["n_frames"]) == (7, 600)
    assert sum(event["n_frames"] for event in shards) == 600
    for event in shards:
        spent = [event[f"{work}_s"] for work in ("read", "preprocess", "score", "size", "write")]
        assert all(0 <= seconds <= event["seconds"] for seconds in spent)
    progress = read_progress(tmp_path)
    assert (progress["done"], progress["shards"], progress["ended"]) == (7, 7, True)
    assert workers["tunnel"].startswith("ssh ")
    assert workers["workers"] == 1
    assert read_cluster(tmp_path) == {}


def test_a_core_reads_a_block_while_it_works_on_another_and_holds_no_more(
    beamtime, tmp_path, monkeypatch
):
    lock, at_work, seen = threading.Lock(), set(), []
    calibrate, together = preprocessing._calibrate_block, threading.Barrier(2, timeout=60)

    def work(*args, **more):
        with lock:
            at_work.add(threading.get_ident())
            seen.append(len(at_work))
        together.wait()  # for a second block, which must be there
        result = calibrate(*args, **more)
        with lock:
            at_work.remove(threading.get_ident())
        return result

    monkeypatch.setattr(preprocessing, "_calibrate_block", work)
    monkeypatch.setattr("spidask.inference.shards._n_threads", lambda: 1)
    write_run(tmp_path / "r0001.h5", 1024, 5, 0.1)
    one_run = Beamtime(tmp_path, beamtime.members)
    label(one_run, tmp_path, frames_per_block=128, frames_per_shard=1024)
    assert len(seen) == 8
    assert max(seen) == 2


@pytest.mark.parametrize("threshold", ["adaptive", "none"])
def test_shards_of_one_process_leave_the_scheduler_of_others_alone(
    beamtime, tmp_path, monkeypatch, threshold
):
    seen, before = [], dask.config.get("scheduler", None)
    calibrate = preprocessing._calibrate_block

    def work(*args, **more):
        seen.append(dask.config.get("scheduler", None))
        return calibrate(*args, **more)

    monkeypatch.setattr(preprocessing, "_calibrate_block", work)
    config = beamtime.config(tmp_path, hits={"threshold": threshold})
    frames = open_runs(config.runs.files, "data")
    classify_runs(
        frames, beamtime.members, config, tmp_path / "labels.zarr", sign_files(frames), None
    )
    assert set(seen) == {before}


def label_with_gpu(beamtime, output, client, **cluster):
    # The GPU is pretended: all compute on the CPU.
    config = beamtime.config(
        output,
        hits={"threshold": "adaptive"},
        cluster={"kind": "local", "gpus": 1, **cluster},
        inference={"device": "cpu"},
    )
    frames = open_runs(config.runs.files, "data")
    store = output / "labels.zarr"
    classify_runs(frames, beamtime.members, config, store, sign_files(frames), client)
    return gather_labels(store)


def test_workers_without_a_gpu_read_for_those_with_one(beamtime, reference, tmp_path):
    with connect(Cluster(gpus=1, cpu_workers=2), tmp_path) as client, watch(client):
        found = label_with_gpu(beamtime, tmp_path, client, cpu_workers=2)
        workers = client.scheduler_info(n_workers=-1)["workers"]
        events = [event for _, event in client.get_events("spidask") if event["kind"] == "shard"]
    for name in reference.data_vars:
        np.testing.assert_array_equal(found[name].values, reference[name].values, err_msg=name)
    assert len(events) == 7
    assert {kind for event in events for kind in workers[event["worker"]]["resources"]} == {"GPU"}
    # Of seven shards the one with the GPU read some itself, and the others the rest.
    readers = [kind for event in events for kind in workers[event["reader"]]["resources"]]
    assert set(readers) == {"GPU", "CPU"}
    for event in events:
        assert all(event[f"{work}_s"] > 0 for work in ("read", "preprocess", "write"))


def test_shards_that_wait_for_workers_which_are_gone_are_taken_back(
    beamtime, reference, tmp_path, monkeypatch
):
    # One helper is seen at the first two looks, but there is none that could begin.
    looks = iter([1, 1])
    monkeypatch.setattr(Pool, "n_helpers", property(lambda _: next(looks, 0)))
    with connect(Cluster(gpus=1, cpu_workers=0), tmp_path) as client:
        found = label_with_gpu(beamtime, tmp_path, client, cpu_workers=0)
    for name in reference.data_vars:
        np.testing.assert_array_equal(found[name].values, reference[name].values, err_msg=name)
    assert next(looks, None) is None
