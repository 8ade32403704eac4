"""The monitor: sums checked by hand, the page over HTTP and in a browser, the report."""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from bokeh.document import Document
from distributed import Client, LocalCluster

from spidask.monitor import (
    TOPIC,
    Monitor,
    gpu_facts,
    report_performance,
    shrink_pattern,
    tell,
    watch,
)
from spidask.monitor.events import PICTURE_SIDE
from spidask.monitor.totals import Totals
from tests.chromium import find_chromium, open_page
from tests.events import START, add_all, shard


def tell_shard(**changes: Any) -> None:
    tell(**shard(**changes))


@contextmanager
def local_client(**options: Any) -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            host="tcp://127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster, **options) as client,
    ):
        yield client


def page_url(client: Client, page: str = TOPIC) -> str:
    return f"{client.dashboard_link.rpartition('/')[0]}/{page}"


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()


def totals_of(client: Client) -> Totals:
    """A copy of what the scheduler holds."""
    return client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.plugins["spidask"].totals)


# --- what is told


def test_tell_does_nothing_where_nobody_listens():
    tell("shard", run="r0001")


def test_tell_never_raises_and_sends_numpy_numbers():
    with local_client() as client, watch(client):
        tell("shard", unsendable=object())
        client.submit(tell, "shard", unsendable=object(), pure=False).result()
        numbers = {"n_frames": np.int64(1000), "seconds": np.float32(10)}
        client.submit(tell_shard, **numbers, pure=False).result()
        wait_until(lambda: totals_of(client).all_runs.n_frames == 1000)
        (event,) = totals_of(client).recent
        (worker,) = client.scheduler_info(n_workers=-1)["workers"]
        assert event["worker"] == worker


def wait_until(holds: Any, timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (128, 100), (123, 240), (1030, 1064)])
def test_pictures_are_small(shape):
    pattern = np.random.default_rng(0).poisson(0.1, shape).astype(np.float32)
    picture = shrink_pattern(pattern)
    assert max(picture["shape"]) <= PICTURE_SIDE
    assert len(base64.b64decode(picture["pixels"])) == np.prod(picture["shape"])
    json.dumps(picture)


def test_a_block_misses_only_if_all_its_pixels_do():
    pattern = np.zeros((2, 2 * PICTURE_SIDE), np.float32)
    pattern[:, :2] = np.nan
    pattern[0, 2] = np.nan
    pattern[:, -2:] = 5
    pixels = list(base64.b64decode(shrink_pattern(pattern)["pixels"]))
    assert (pixels[0], pixels[1], pixels[-1]) == (0, 1, 255)


def test_a_pattern_without_any_pixel_is_a_picture():
    empty = shrink_pattern(np.full((2, 3), np.nan, np.float32))
    assert list(base64.b64decode(empty["pixels"])) == [0] * 6


def test_gpu_facts(monkeypatch):
    assert torch.cuda.is_initialized() or gpu_facts() is None
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3, 10))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    monkeypatch.setattr(torch.cuda, "utilization", lambda: 1 / 0)  # as without pynvml
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert gpu_facts() == {
        "device": "A100 3",
        "used_bytes": 7,
        "total_bytes": 10,
        "utilisation": None,
    }


# --- the page


def test_the_monitor_is_pickled_by_import_path():
    data = pickle.dumps(Monitor())
    assert b"spidask.monitor.plugin" in data
    assert len(data) < 20_000


def test_the_page_has_a_tab_and_needs_nothing_from_the_net():
    with local_client() as client, watch(client), watch(client):
        client.submit(tell_shard, pure=False).result()
        html = get(page_url(client))
        assert html.count('href="spidask"') == 1
        assert get(page_url(client, "status")).count('href="spidask"') == 1
        assert not re.search(r'<script[^>]+src="(https?:)?//', html)
        assert totals_of(client).all_runs.n_shards == 1


def test_the_page_on_a_scheduler_in_another_process(tmp_path):
    place = tmp_path / "scheduler.json"
    flags = ["--host=127.0.0.1", "--port=0", "--dashboard-address=127.0.0.1:0"]
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", *flags]
    process = subprocess.Popen(
        [*command, f"--scheduler-file={place}"], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(place.exists, timeout=60)
        with Client(scheduler_file=str(place)) as client, watch(client):
            tell_shard()
            assert client.get_events(TOPIC)[0][1]["n_frames"] == 1000
            port = client.scheduler_info()["services"]["dashboard"]
            assert 'href="spidask"' in get(f"http://127.0.0.1:{port}/{TOPIC}")
    finally:
        process.kill()
        process.wait()


def test_a_scheduler_that_refuses_plugins_only_loses_the_page(caplog, monkeypatch):
    with local_client() as client:
        monkeypatch.setattr(Client, "register_plugin", Mock(side_effect=ValueError("not here")))
        with watch(client):
            pass
    assert "not here" in caplog.text


def test_nothing_to_watch_inline(tmp_path):
    with watch(None), report_performance(None, tmp_path / "report.html"):
        pass
    assert not list(tmp_path.iterdir())


def show(totals: Totals, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Texts of the page's named parts."""
    from spidask.monitor.page import show_page

    monitor = Monitor()
    monitor.totals = totals
    monkeypatch.setattr(time, "time", lambda: START + 20)
    document = Document()
    show_page(SimpleNamespace(plugins={TOPIC: monitor}), {}, document)
    return {
        name: document.get_model_by_name(name).text for name in ("numbers", "pictures", "failures")
    }


def test_the_page_shows_the_sums(monkeypatch):
    stage = {"kind": "stage", "time": START, "name": "classify", "n_shards": 4, "n_frames": 4000}
    ends = (10, 10, 20)
    shards = [shard(time=START + t, number=i) for i, t in enumerate(ends)]
    texts = show(add_all(stage, *shards), monkeypatch)
    text = re.sub(r"<[^>]+>", " ", texts["numbers"])
    shown = re.sub(r" +", " ", text)
    assert "frames labelled 3,000 of 4,000" in shown
    assert "frames / s 150 last 20 s" in shown
    assert "hit rate 2.00 % 60 hits" in shown
    assert "single hits 0.50 % 15 frames" in shown
    assert "time left 0:00:06" in shown  # one shard at 0.15 a second
    assert "No failed shards" in texts["failures"]


def test_text_from_files_is_text_on_the_page(monkeypatch):
    bad = "<script>alert(1)</script>"
    picture = {"kind": "picture", "time": START, "run": bad, "index": 3, "score": 0.5}
    totals = add_all(
        {"kind": "failed", "time": START, "run": bad, "number": 1, "cause": bad},
        {"kind": "stage", "time": START, "name": bad},
        {**picture, "pattern": shrink_pattern(np.ones((3, 4), np.float32))},
    )
    texts = show(totals, monkeypatch)
    assert all("<script" not in text and "&lt;script" in text for text in texts.values())
    assert 'src="data:image/png;base64,' in texts["pictures"]


def send_some(first: int, n: int) -> None:
    """What a short job would tell."""
    y, x = np.mgrid[:60, :100]
    rings = 20 * (1 + np.cos(np.hypot(y, x - 50) / 4)).astype(np.float32)
    if first == 0:
        tell("stage", name="classify", n_shards=100, n_frames=100_000)
        for i in range(200):
            f1 = {"validation_f1": 0.5 + i / 500} if i % 40 == 0 else {}
            tell("loss", seed=i % 2, iteration=i, loss=2 / (1 + i), **f1)
    for i in range(first, first + n):
        tell_shard(time=time.time(), run=f"r{i // 4:04}", number=i % 4, n_hits=10 + i % 20)
        tell("picture", run="r0001", index=i, score=0.9, pattern=shrink_pattern(rings))
    tell("failed", run="r0009", number=1, cause="r0009.h5 cannot be opened: truncated")


@pytest.mark.chromium
@pytest.mark.skipif(find_chromium() is None, reason="chromium is not installed (.ci/chromium)")
def test_numbers_move_in_a_browser(tmp_path):
    with local_client() as client, watch(client):
        client.submit(send_some, 0, 12, pure=False).result()
        with open_page(page_url(client)) as page:
            # The parts of an update come in several messages: each is waited for.
            page.wait_for(lambda text: "12,000" in text and "r0001 / 11" in text)
            page.wait_for(lambda text: "cannot be opened: truncated" in text)
            client.submit(send_some, 12, 8, pure=False).result()
            after = page.wait_for(lambda text: "20,000" in text and "r0001 / 19" in text)
            assert "12,000" not in after
            # The plots are canvases, whose titles are in their models.
            wait_until(lambda: "Shards done: 20 of 100 (dashed)" in page.evaluate(TITLES))
            page.screenshot(tmp_path / "page.png")
            sizes = page.evaluate("[document.body.scrollWidth, innerWidth]")
            assert sizes[0] <= sizes[1]
    picture = (tmp_path / "page.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 30_000  # an empty page is smaller


TITLES = """
JSON.stringify([...Bokeh.documents[0]._all_models.values()].map(m => m.title?.text))
"""


# --- the performance report


def test_the_performance_report_is_complete_and_of_the_given_client(tmp_path):
    path = tmp_path / "report.html"
    with local_client() as other, local_client(set_as_default=False) as client:
        with report_performance(client, path):
            assert client.submit(sum, [1, 2]).result() == 3
            assert Client.current() is other  # the block itself is left as it is
        assert client.scheduler.address in path.read_text()
    html = path.read_text()
    assert not re.search(r'<(script|link)[^>]+(src|href)="(https?:)?//', html)
    assert "number of tasks: 1" in html
    assert "def test_the_performance_report" in html  # the code that it quotes


def test_a_failing_stage_keeps_its_error_and_has_its_report(tmp_path):
    path = tmp_path / "report.html"
    with (
        local_client() as client,
        pytest.raises(ValueError, match="the stage's own"),
        report_performance(client, path),
    ):
        raise ValueError("the stage's own")
    assert path.exists()


def test_a_report_that_cannot_be_written_costs_no_stage(tmp_path, caplog):
    with local_client() as client, report_performance(client, tmp_path):  # a folder
        pass
    assert "no performance report" in caplog.text
    assert os.listdir(tmp_path) == []
