"""Job scripts as text, against golden files, and what is made of the queue's words."""

import os
import signal
from pathlib import Path

import pytest

from spidask.cluster import job_script, list_jobs, say_jobs
from spidask.cluster.queues import JobState, import_jobqueue
from spidask.config import Cluster, parse_config
from spidask.errors import ConfigError

GOLDEN = Path(__file__).parent / "golden"
SITES = Path(__file__).parents[2] / "configs" / "sites"


def script_of(cluster: dict) -> str:
    """The script, with the folder where it was made named <here>."""
    job = {"python": "/env/bin/python", **cluster.get("job", {})}
    values = {"runs": {"files": ["r.h5"]}, "output": "out", "cluster": {**cluster, "job": job}}
    script = job_script(parse_config(values).cluster, "/data/out")
    return script.replace(os.getcwd(), "<here>")


def compare(name: str, script: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("SPIDASK_WRITE_GOLDEN"):
        path.write_text(script)
    assert script == path.read_text()


@pytest.mark.parametrize("site", sorted(path.stem for path in SITES.glob("*.yaml")))
def test_scripts_of_the_sites(site, tmp_path, monkeypatch):
    cluster = {"site": str(SITES / f"{site}.yaml")}
    monkeypatch.chdir(tmp_path)
    compare(site, script_of(cluster))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["pbs", "sge", "lsf", "htcondor"])
def test_scripts_of_other_batch_systems(kind):
    directives = ["+WantGPU = true"] if kind == "htcondor" else ["-l ngpus=2"]
    job = {"queue": "gpu", "account": "spi", "directives": directives, "cores": 8}
    if kind == "htcondor":
        job = {"directives": directives, "cores": 8, "disk": "20GB"}
    job |= {"prologue": ["module load python"], "walltime": "1-02:30:00", "memory": "64GB"}
    compare(kind, script_of({"kind": kind, "gpus": 2, "cpu_workers": 2, "job": job}))


def test_a_directive_that_condor_cannot_read_is_named():
    with pytest.raises(ConfigError, match="--gres"):
        script_of({"kind": "htcondor", "job": {"directives": ["--gres"]}})


def test_the_queues_words_are_counted():
    jobs = [
        JobState("1", "RUNNING", "node1"),
        JobState("2", "RUNNING", "node2"),
        JobState("3", "PENDING", "(Priority)"),
    ]
    assert say_jobs(jobs) == "1 PENDING (Priority), 2 RUNNING"
    assert say_jobs([]) == "no jobs in the queue"
    assert say_jobs(None) == "the queue gives no answer"


def test_no_slurm_is_no_answer(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert list_jobs(["1"]) is None
    assert list_jobs([]) == []


def test_ctrl_c_still_interrupts():
    import_jobqueue()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_workers_leave_before_the_walltime():
    script = script_of({"kind": "slurm", "job": {"walltime": "00:20:00", "cores": 1}})
    # 20 minutes less twice two: with a stagger of two minutes either way the last goes at 18.
    assert "--lifetime 960s --lifetime-stagger 120s" in script


@pytest.mark.parametrize(
    ("cluster", "match"),
    [
        ({"kind": "scheduler"}, "scheduler"),
        ({"kind": "slurm", "gpus": 4, "job": {"cores": 2}}, "job.cores"),
        ({"kind": "slurm", "job": {"walltime": "4 hours"}}, "cluster.job.walltime"),
        ({"kind": "slurm", "job": {"memory": "much"}}, "cluster.job.memory"),
        ({"kind": "slurm", "job": {"queu": "x"}}, "Did you mean 'queue'"),
        ({"site": "nowhere.yaml"}, r"cluster\.site: nowhere\.yaml: cannot be read"),
    ],
)
def test_settings_that_cannot_work_are_refused(cluster, match):
    with pytest.raises(ConfigError, match=match):
        parse_config({"runs": {"files": ["r.h5"]}, "output": "out", "cluster": cluster})


def test_what_is_given_goes_before_the_sites_file(tmp_path):
    site = tmp_path / "here.yaml"
    site.write_text("cluster: {kind: slurm, gpus: 2, job: {queue: gpu, cores: 4}}\n")
    cluster = {"site": str(site), "gpus": 1, "job": {"cores": 2}}
    got = parse_config({"runs": {"files": ["r"]}, "output": "o", "cluster": cluster}).cluster
    assert (got.kind, got.gpus, got.job.queue, got.job.cores) == ("slurm", 1, "gpu", 2)
    # The merged settings stand on their own.
    assert Cluster.model_validate(got.model_dump()) == got


def test_a_sites_file_is_checked_and_named(tmp_path):
    site = tmp_path / "here.yaml"
    site.write_text("cluster: {kindd: slurm}\n")
    cluster = {"site": str(site)}
    with pytest.raises(ConfigError, match=r"here.yaml: cluster.kindd: unknown key"):
        parse_config({"runs": {"files": ["r"]}, "output": "o", "cluster": cluster})
    site.write_text("training: {}\n")
    with pytest.raises(ConfigError, match=r"expected one section 'cluster:'.* holds training"):
        parse_config({"runs": {"files": ["r"]}, "output": "o", "cluster": cluster})
    for text in ("cluster:\n", "cluster: {site: other.yaml}\n"):
        site.write_text(text)
        with pytest.raises(ConfigError, match=r"here\.yaml: expected one section 'cluster:'"):
            parse_config({"runs": {"files": ["r"]}, "output": "o", "cluster": cluster})
