"""A real Slurm on this machine, in one folder: two nodes, each with two GPUs that are not there.

Needs root and Debian's slurmctld, slurmd, slurm-client and munge (`.ci/slurm` installs them), but
neither systemd nor cgroups. No dask in here.
"""

import os
import random
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

NODES = ("vn1", "vn2")
GPUS = 2  # per node
CPUS = 8  # per node, however many there are
MEMORY_MB = 8192  # per node, claimed as well
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"}
ENDED |= {"OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
# Debian keeps the daemons where a plain user's PATH may not look.
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
# Variables of another Slurm, such as one whose job we may be.
FOREIGN = ("SLURM", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SINFO_", "SCANCEL_", "SCONTROL_")

# cred_expire is also how long a requeued job waits before it may start again, 120 s unless told.
# Below it a busy machine could launch a job too late for its credential.
# SlurmdParameters: a node may claim more than there is.
# MinJobAge is how long squeue remembers a job: longer than a session of tests.
# Both partitions hold both nodes; jobs in "main" push those in "preemptable" back into the queue.
CONF = """\
ClusterName=pretended
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
Epilog={folder}/epilog
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MinJobAge=7200
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=256
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF MaxTime=1:00:00
PartitionName=preemptable Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE MaxTime=1:00:00
"""

# Real clusters track a job's processes by cgroup, and nothing outlives the job. Here Slurm loses
# sight of a process whose parent died (a worker whose nanny was killed), so the end of a job looks
# for its environment. Epilogs carry it too, and say so.
EPILOG = """\
#!/bin/sh
for file in $(grep -l -s -z -x -F "SLURM_JOB_ID=$SLURM_JOB_ID" /proc/[0-9]*/environ); do
    grep -q -s -z '^SLURM_SCRIPT_CONTEXT=' "$file" && continue
    grep -q -s -z -x -F 'SLURM_CONF={conf}' "$file" && kill -9 "$(basename "${{file%/environ}}")"
done
exit 0
"""


@dataclass(frozen=True)
class Job:
    """What squeue says of one job."""

    id: int
    state: str  # PENDING, RUNNING, COMPLETING, COMPLETED, CANCELLED, ...
    reason: str  # why it is pending or how it ended, or "None"
    node: str  # where it runs or ran last, or ""
    restarts: int
    name: str


@dataclass(frozen=True)
class Slurm:
    """A running Slurm and its commands."""

    folder: Path

    @property
    def conf(self) -> Path:
        """Its slurm.conf."""
        return self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead Slurm's commands here."""
        return {"SLURM_CONF": str(self.conf)}

    def run(self, *command: object, cwd: Path | None = None) -> str:
        """Run one of Slurm's commands; gives what it prints."""
        words = [str(word) for word in command]
        environment = clean_environment() | self.environment
        done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def submit(self, script: str, *options: str) -> int:
        """Submit a script, with or without #! line and #SBATCH lines; gives the job's id.

        It runs and logs in the folder of this Slurm unless told otherwise.
        """
        file = self.folder / f"script-{secrets.token_hex(4)}.sh"
        file.write_text(script if script.startswith("#!") else f"#!/bin/sh\n{script}\n")
        said = self.run("sbatch", "--parsable", *options, file, cwd=self.folder)
        return int(said.split(";")[0])

    def jobs(self) -> dict[int, Job]:
        """All jobs of this session by id, ended ones too."""
        fields = ("jobid", "state", "reason", "nodelist", "restartcnt", "name")
        form = ",".join(f"{name}:.200\t" for name in fields)
        found = {}
        for line in self.run("squeue", "-h", "--states=all", "-O", form).splitlines():
            number, state, reason, node, restarts, name = (x.strip() for x in line.split("\t")[:6])
            found[int(number)] = Job(int(number), state, reason, node, int(restarts), name)
        return found

    def job(self, job: int) -> Job:
        """One job."""
        return self.jobs()[job]

    def log(self, job: int) -> str:
        """What a batch job has printed so far."""
        told = re.search(r"StdOut=(.+)", self.run("scontrol", "show", "job", job))
        assert told, f"job {job} is no batch job"
        path = Path(told[1])
        return path.read_text() if path.exists() else ""

    def nodes(self) -> dict[str, str]:
        """The state of each node: idle, mixed, allocated, completing, down, ..."""
        lines = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").splitlines()
        return dict(line.split() for line in lines)

    def cancel(self, *jobs: int) -> None:
        """Cancel jobs as a user would: SIGTERM, and SIGKILL five seconds later."""
        self.run("scancel", *jobs)

    def requeue(self, job: int) -> None:
        """Stop a batch job and queue it again; it starts after five seconds or more."""
        self.run("scontrol", "requeue", job)

    def start_now(self, job: int) -> None:
        """Let a requeued or preempted job start in the next second, without that wait.

        Within the same second its node would take it for the one just killed, and it would fail.
        """
        self.wait_for(job, "PENDING")
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now+1")

    def processes(self, job: int | None = None) -> list[int]:
        """The processes of one job or of all, those that left its process tree included."""
        conf = b"\0SLURM_CONF=%s\0" % os.fsencode(self.conf)
        number = b"\0SLURM_JOB_ID=" + (b"" if job is None else b"%d\0" % job)
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it may end while we look
                environment = b"\0" + (folder / "environ").read_bytes()
                ours = conf in environment and number in environment
                if ours and b"\0SLURM_SCRIPT_CONTEXT=" not in environment:
                    found.append(int(folder.name))
        return sorted(found)

    def wait(
        self, condition: Callable[[], object], what: str = "such state", seconds: float = 20
    ) -> None:
        """Poll until the condition holds; the timeout's error shows queue, nodes and logs."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what} after {seconds} s\n{self.describe()}")
            time.sleep(0.1)

    def wait_for(self, job: int, *states: str, seconds: float = 20) -> Job:
        """Wait until a job is in one of these states, or has ended if none is given."""
        wanted = states or ENDED
        self.wait(lambda: self.job(job).state in wanted, f"{'/'.join(wanted)} of {job}", seconds)
        return self.job(job)

    def clear(self, seconds: float = 30) -> None:
        """Cancel all jobs, kill what is left of them, and wait until both nodes are idle."""
        self.run("scancel", "--user=root")

        def idle() -> bool:
            for pid in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            ended = all(job.state in ENDED for job in self.jobs().values())
            return ended and set(self.nodes().values()) == {"idle"} and not self.processes()

        self.wait(idle, "empty cluster", seconds)

    def describe(self, lines: int = 8) -> str:
        """The queue, the nodes and the last lines of every daemon's log, for an error."""
        parts = []
        for command in (("squeue", "--states=all"), ("sinfo", "-N", "-l")):
            try:
                parts.append(self.run(*command))
            except RuntimeError as error:
                parts.append(str(error))
        for log in sorted(self.folder.glob("*.log")):
            text = log.read_text(errors="replace").splitlines()
            parts.append("\n".join([f"== {log.name}", *text[-lines:]]))
        return "\n".join(parts)


def reason_to_skip() -> str:
    """Why no Slurm can be started here, or ""."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    programs = ("munged", "slurmctld", "slurmd", "sbatch", "setpriv")
    absent = [name for name in programs if not shutil.which(name, path=PATH)]
    return f"not installed: {', '.join(absent)} (see .ci/slurm)" if absent else ""


def clean_environment() -> dict[str, str]:
    """Our environment without any other Slurm."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return kept | {"PATH": PATH}


@contextmanager
def start_slurm(folder: Path) -> Iterator[Slurm]:
    """Start munged, slurmctld and a slurmd per node in an empty folder; stop all at the end."""
    slurm = Slurm(folder)
    write_files(slurm)
    with ExitStack() as stack:
        # Forced: pytest's folders are closed to other users, which munged would refuse.
        options = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "pid", "seed")]
        munge = ("munged", "-F", "-f", f"--socket={folder}/munge.socket", *options)
        started = [stack.enter_context(daemon(slurm, *munge))]

        def alive() -> bool:
            dead = [process.args for process in started if process.poll() is not None]
            assert not dead, f"{dead} ended\n{slurm.describe()}"
            return True

        slurm.wait(lambda: alive() and (folder / "munge.socket").exists(), "munge socket")
        for words in [("slurmctld", "-D"), *[("slurmd", "-D", "-N", node) for node in NODES]]:
            started.append(stack.enter_context(daemon(slurm, *words)))
        idle = dict.fromkeys(NODES, "idle")
        slurm.wait(lambda: alive() and slurm.nodes() == idle, "idle nodes", 60)
        stack.callback(slurm.clear)
        yield slurm


@contextmanager
def daemon(slurm: Slurm, *words: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a daemon in the foreground, as a child that ends with us even if we are killed."""
    name = f"{words[0]}-{words[-1]}" if words[0] == "slurmd" else words[0]
    with (slurm.folder / f"{name}.stderr.log").open("wb") as out:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *words],
            env=clean_environment() | slurm.environment,
            stdout=out,
            stderr=out,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def write_files(slurm: Slurm) -> None:
    """Write the configuration and munge's key, and make the devices that stand for GPUs."""
    folder = slurm.folder
    host = socket.gethostname().split(".")[0]
    port, *ports = free_ports(1 + len(NODES))
    nodes = [
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} "
        f"RealMemory={MEMORY_MB} Gres=gpu:{GPUS}"
        for node, port in zip(NODES, ports, strict=True)
    ]
    text = CONF.format(host=host, port=port, folder=folder, nodes="\n".join(nodes))
    slurm.conf.write_text(text)
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/nvidia[0-{GPUS - 1}]\n")
    # Slurm sets CUDA_VISIBLE_DEVICES only for real devices. These are /dev/null by another name.
    for number in range(GPUS):
        os.mknod(folder / f"nvidia{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    epilog = folder / "epilog"
    epilog.write_text(EPILOG.format(conf=slurm.conf))
    epilog.chmod(0o755)
    key = folder / "munge.key"
    key.touch(mode=0o400)
    key.write_bytes(secrets.token_bytes(128))


def free_ports(n: int) -> list[int]:
    """Ports that nobody listens on, below those that the system gives to outgoing connections."""
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < n:
            port = random.randrange(20000, 32000)
            with suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
    return found
