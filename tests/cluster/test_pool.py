"""Jobs that are lost, refused, or end in vain, on a pretended PBS: commands that run jobs here."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from spidask.cluster import Pool, connect, pool, read_cluster
from spidask.config import parse_config
from spidask.errors import ClusterError

QSUB = """\
#!/bin/sh
cp "$1" {folder}/$$.sh
setsid sh {folder}/$$.sh >/dev/null 2>"{folder}/logs/spidask.$$.e" </dev/null &
echo $! >> {folder}/started
echo "$!.pretended"
"""
QDEL = """\
#!/bin/sh
kill -9 -- "-${1%.pretended}"
"""


@pytest.fixture(name="pbs")
def pretend_pbs(tmp_path, monkeypatch):
    """Put qsub and qdel first on the path; jobs are process groups."""
    monkeypatch.setattr(pool, "LOOK_EVERY_S", 0.3)
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "logs").mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    for name, text in (("qsub", QSUB.replace("{folder}", str(tmp_path))), ("qdel", QDEL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def config_of(output: Path, **job: object):
    job = {"cores": 1, "memory": "2GB", "walltime": "00:10:00", **job}
    settings = {"kind": "pbs", "jobs": 1, "job": job, "worker_timeout_s": 2, "wait_minutes": 1}
    values = {"runs": {"files": ["r.h5"]}, "output": str(output), "cluster": settings}
    return parse_config(values).cluster


def tend_until(tended: Pool, reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not reached():
        assert time.monotonic() < deadline
        tended.tend(9)
        time.sleep(0.1)


@pytest.mark.usefixtures("pbs")
def test_a_job_that_falls_silent_is_replaced_where_the_queue_is_not_asked(tmp_path):
    config = config_of(tmp_path)
    with connect(config, tmp_path) as client:
        tended = Pool(client, config, str(tmp_path))
        tend_until(tended, lambda: read_cluster(tmp_path).get("workers") == 1)
        (first,) = read_cluster(tmp_path)["jobs"]
        os.killpg(int(first.partition(".")[0]), signal.SIGKILL)
        tend_until(tended, lambda: tended.n_able == 1 and read_cluster(tmp_path)["jobs"] != [first])
        assert client.submit(lambda: 2, resources=tended.demand).result(timeout=30) == 2
    started = [int(line) for line in (tmp_path / "started").read_text().split()]
    assert len(started) == 2
    # The end takes the second one out of the queue.
    for pid in started:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).wait(timeout=30)


def test_the_queues_refusal_is_told(pbs, tmp_path):
    (pbs / "qsub").write_text("#!/bin/sh\necho 'qsub: Unknown queue: gppu' >&2\nexit 1\n")
    config = config_of(tmp_path, queue="gppu")
    expected = r"the queue refuses jobs: qsub: Unknown queue: gppu\. Check"
    with connect(config, tmp_path) as client, pytest.raises(ClusterError, match=expected):
        tend_until(Pool(client, config, str(tmp_path)), lambda: False)


@pytest.mark.usefixtures("pbs")
def test_jobs_that_worked_and_ended_between_two_stages_are_no_failure(tmp_path):
    config = config_of(tmp_path)
    with connect(config, tmp_path) as client:
        tend_until(
            Pool(client, config, str(tmp_path)),
            lambda: read_cluster(tmp_path).get("workers") == 1,
        )
        (first,) = read_cluster(tmp_path)["jobs"]
        os.killpg(int(first.partition(".")[0]), signal.SIGKILL)
        # The next stage has a pool of its own, which never heard of that worker.
        later = Pool(client, config, str(tmp_path))
        tend_until(later, lambda: later.n_able == 1 and read_cluster(tmp_path)["jobs"] != [first])


def test_jobs_that_wait_excuse_those_that_are_refused(pbs, tmp_path):
    # The first two are accepted and wait for ever; a limit refuses the others.
    (pbs / "qsub").write_text(
        f"#!/bin/sh\necho x >> {tmp_path}/asked\n"
        # Several are asked for at a time; a folder can be made once.
        f"for n in 1 2; do mkdir {tmp_path}/job$n 2>/dev/null && echo $n.pretended && exit; done\n"
        'echo "qsub: limit" >&2\nexit 1\n'
    )
    config = config_of(tmp_path).model_copy(update={"jobs": 8, "wait_minutes": 0.1})
    with (
        connect(config, tmp_path) as client,
        pytest.raises(ClusterError, match=r"no worker came within 0\.1 .* refusal: qsub: limit;"),
    ):
        tend_until(Pool(client, config, str(tmp_path)), lambda: False)
    # Eight at first, and then one at each of some twenty looks, not six.
    assert len((tmp_path / "asked").read_text().split()) < 40


def test_workers_that_are_paused_are_named(tmp_path, monkeypatch):
    values = {"runs": {"files": ["r.h5"]}, "output": str(tmp_path)}
    settings = parse_config({**values, "cluster": {"wait_minutes": 0.0001}}).cluster
    paused = {
        "tls://a:1": {"status": "paused", "resources": {"CPU": 1}, "nthreads": 1, "nanny": None}
    }
    monkeypatch.setattr(Pool, "workers", property(lambda _: paused))
    tended = Pool(None, settings, str(tmp_path))
    with pytest.raises(ClusterError, match=r"1 workers take no work .* start fewer workers"):
        tend_until(tended, lambda: False)
