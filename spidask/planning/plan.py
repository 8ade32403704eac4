"""What a config costs, for people."""

from __future__ import annotations

from dataclasses import dataclass

from spidask.units import format_bytes, format_seconds


@dataclass(frozen=True)
class Plan:
    """What a config costs.

    Attributes
    ----------
    runs, files, frames : int
        What can be read.
    unreadable : list
        [path, reason] of files whose frames are unknown.
    shape : tuple of int
        Rows and columns of a frame.
    dtype : str
        NumPy dtype of a raw pixel.
    shards : int
        Tasks of the stage classify.
    frames_per_shard, frames_per_block : int
        Frames of a task, and of what it reads at once.
    raw_bytes, read_bytes : int
        Uncompressed raw frames, and the part of them that is read.
    task_bytes, process_bytes : int
        What a task reads, and the memory of the process that does it.
    train_bytes : int
        Memory of each process that trains, on its GPU where it has one; 0 where none does.
    processes : int
        Processes at a time, on this machine, in a job, or on an allocation's node.
    machine_bytes : int
        Memory of this machine, or of a batch job; 0 where the workers' machines are not known.
    hit_rate : float
        Share of hits that `output_bytes` assumes.
    output_bytes : dict
        File to the bytes expected.
    workers : int
        Workers of all jobs, of an allocation, or of this machine; of a scheduler that runs, what
        `gpus` and `cpu_workers` say.
    jobs : int
        Batch jobs at a time; 0 where there is no batch system.
    seconds : dict
        Stage to the time expected.
    script : str
        The job script, empty where there is no batch system.
    """

    runs: int
    files: int
    frames: int
    unreadable: list[list[str]]
    shape: tuple[int, int]
    dtype: str
    shards: int
    frames_per_shard: int
    frames_per_block: int
    raw_bytes: int
    read_bytes: int
    task_bytes: int
    process_bytes: int
    train_bytes: int
    processes: int
    machine_bytes: int
    hit_rate: float
    output_bytes: dict[str, int]
    workers: int
    jobs: int
    seconds: dict[str, float]
    script: str

    def lines(self) -> list[str]:
        """Say it to a person.

        Returns
        -------
        list of str
            Lines of text.
        """
        memory = self.processes * self.process_bytes
        output = ", ".join(f"{k} {format_bytes(v)}" for k, v in self.output_bytes.items())
        place = "a job's" if self.jobs else "this"
        has = f"{place} machine has {format_bytes(self.machine_bytes)}"
        times = ", ".join(f"{k} {format_seconds(v)}" for k, v in self.seconds.items())
        jobs = f"{self.jobs} jobs at a time, {self.workers} workers in all"
        told = [
            f"input    {self.frames} frames of {self.shape[0]} x {self.shape[1]} {self.dtype} in "
            f"{self.runs} runs, {self.files} files; {len(self.unreadable)} files unreadable",
            f"raw      {format_bytes(self.raw_bytes)}, of which "
            f"{format_bytes(self.read_bytes)} are within the region to read",
            f"work     {self.shards} shards of up to {self.frames_per_shard} frames, read in "
            f"blocks of up to {self.frames_per_block}",
            f"task     reads {format_bytes(self.task_bytes)}; its process takes about "
            f"{format_bytes(self.process_bytes)}",
            f"memory   {self.processes} processes at a time, about {format_bytes(memory)}; "
            + (has if self.machine_bytes else "the memory of their machines is not known here"),
            f"output   {format_bytes(sum(self.output_bytes.values()))} if {self.hit_rate:.1%} of "
            f"the frames are hits: {output}",
            f"time     {times}, at the rates of one CPU core for each worker; neither GPUs nor a "
            "busy file system are in that",
        ]
        if self.train_bytes:
            training = f"a process that trains takes about {format_bytes(self.train_bytes)}"
            told.insert(5, f"training {training}, on its GPU where it has one")
        return [*told, f"jobs     {jobs}; each:", "", self.script] if self.jobs else told
