"""The pretended cluster behaves like one: what the tests on Slurm rest on."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.slurm import CPUS, GPUS, MEMORY_MB, NODES, Slurm

pytestmark = pytest.mark.slurm


@pytest.fixture
def cluster(slurm: Slurm) -> Iterator[Slurm]:
    """Idle before and after."""
    slurm.clear()
    yield slurm
    slurm.clear()


def test_two_idle_nodes_with_gpus(cluster):
    assert cluster.nodes() == dict.fromkeys(NODES, "idle")
    listed = cluster.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %c %m %G").splitlines()
    assert listed == [f"{node} {CPUS} {MEMORY_MB} gpu:{GPUS}" for node in NODES]


def test_plain_commands_find_it(cluster):
    assert os.environ["SLURM_CONF"] == str(cluster.conf)
    partitions = subprocess.run(["sinfo", "-h", "-o", "%R"], capture_output=True, text=True)
    assert sorted(partitions.stdout.split()) == ["main", "preemptable"]


def test_each_job_sees_its_own_gpu(cluster):
    script = 'echo "$CUDA_VISIBLE_DEVICES"; exec sleep 600'
    jobs = [cluster.submit(script, "--gres=gpu:1", "--nodelist=vn1") for _ in range(GPUS)]
    cluster.wait(lambda: all(cluster.log(job) for job in jobs), "output of both jobs")
    assert {cluster.job(job).node for job in jobs} == {"vn1"}
    assert sorted(cluster.log(job) for job in jobs) == ["0\n", "1\n"]


def test_a_step_on_every_node(cluster):
    script = "srun sh -c 'echo $SLURM_PROCID of $SLURM_NTASKS on $SLURMD_NODENAME'"
    job = cluster.submit(script, "--nodes=2", "--ntasks-per-node=1")
    assert cluster.wait_for(job).state == "COMPLETED"
    assert sorted(cluster.log(job).splitlines()) == ["0 of 2 on vn1", "1 of 2 on vn2"]


def test_nothing_outlives_a_cancelled_job(cluster):
    # The second one's parent is gone, as when a nanny is killed and its worker is not.
    job = cluster.submit("sleep 600 & (setsid sleep 600 &) ; echo started; wait")
    cluster.wait(lambda: cluster.log(job), "output")
    assert len(cluster.processes(job)) == 3
    cluster.cancel(job)
    assert cluster.wait_for(job).state == "CANCELLED"
    cluster.wait(lambda: not cluster.processes(job), "end of its processes")


def test_a_failed_job_says_so(cluster):
    job = cluster.wait_for(cluster.submit("exit 3", "--job-name=fails"))
    assert (job.state, job.reason, job.name) == ("FAILED", "NonZeroExitCode", "fails")


def test_a_requeued_job_starts_again_soon(cluster):
    # The log starts anew with the job.
    job = cluster.submit("echo ${SLURM_RESTART_COUNT-first}; exec sleep 600")
    cluster.wait(lambda: cluster.log(job) == "first\n", "first start")
    cluster.requeue(job)
    assert cluster.wait_for(job, "PENDING").reason == "BeginTime"
    cluster.wait(lambda: cluster.log(job) == "1\n", "second start")
    assert cluster.job(job).restarts == 1


def test_a_job_is_superseded_and_goes_on_later(cluster):
    script = "echo ${SLURM_RESTART_COUNT-first}; exec sleep 600"
    low = cluster.submit(script, "--partition=preemptable", "--exclusive", "--nodelist=vn2")
    cluster.wait(lambda: cluster.log(low) == "first\n", "first start")
    high = cluster.submit("exec sleep 600", "--exclusive", "--nodelist=vn2")
    cluster.wait_for(high, "RUNNING")
    assert cluster.wait_for(low, "PENDING").restarts == 1
    cluster.cancel(high)
    cluster.start_now(low)
    cluster.wait(lambda: cluster.log(low) == "1\n", "second start", 10)


def test_a_pending_job_has_a_reason(cluster):
    cluster.wait_for(cluster.submit("exec sleep 600", "--exclusive", "--nodes=2"), "RUNNING")
    waiting = cluster.submit("exec sleep 600", "--gres=gpu:1")
    held = cluster.submit("exec sleep 600", "--hold")
    cluster.wait(lambda: cluster.job(waiting).reason == "Resources", "reason of the one")
    assert cluster.job(held).reason == "JobHeldUser"
    assert {cluster.job(job).state for job in (waiting, held)} == {"PENDING"}


def test_more_than_a_node_has_is_refused(cluster):
    with pytest.raises(RuntimeError, match="Requested node configuration is not available"):
        cluster.submit("true", f"--gres=gpu:{GPUS + 1}", "--nodes=1")


def test_a_wait_in_vain_shows_the_queue(cluster):
    job = cluster.submit("exec sleep 600", "--hold", "--job-name=idler")
    with pytest.raises(TimeoutError, match=r"no RUNNING of \d+ after 0.3 s\n(.*\n)*.*idler"):
        cluster.wait_for(job, "RUNNING", seconds=0.3)
