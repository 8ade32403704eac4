"""Work in a child process of its own, which may crash, hang or grow without harm to its parent."""

from __future__ import annotations

import faulthandler
import gc
import io
import os
import pickle
import resource
import select
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

CPU_S = 10
"""Processor time after which a child hangs; the slowest healthy case takes a tenth of it."""
WALL_S = 120.0
"""The same for one that waits, on a machine that may have better things to do."""
MOST_MB = 1024
"""Memory of a child, with all that its parent had imported."""
ADDRESSES = 8 << 30
"""Address space beyond the parent's, so that no case harms the machine."""


@dataclass(frozen=True)
class Ended:
    """How a child came to its end.

    Attributes
    ----------
    how : str
        It did all, raised an exception, was killed by a signal, hung, or took too much memory.
    values : list
        What it gave, one for each step that it came to.
    text : str
        The traceback, the signal's name or the megabytes.
    peak_mb : float
        The most memory it had.
    seconds : float
        Processor time.
    """

    how: Literal["done", "exception", "signal", "hang", "memory"]
    values: list[Any]
    text: str
    peak_mb: float
    seconds: float


def run_in_child(work: Callable[[], Iterator[Any]], log: Path) -> Ended:
    """Do some work in a fork of this process, within bounds of time and memory.

    Parameters
    ----------
    work : callable
        Yields what can be pickled, step by step.
    log : pathlib.Path
        What the child prints, and where it was when it crashed.

    Returns
    -------
    Ended
        How it went; this process never fails with it.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _work_and_exit(work, write_end, log)
    os.close(write_end)
    answer, is_late = _receive(read_end, time.monotonic() + WALL_S)
    os.close(read_end)
    if is_late:
        os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    peak, seconds = usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    values, end = _unpack(answer)
    if is_late or number == signal.SIGXCPU:
        return Ended("hang", values, f"not done after {seconds:.0f} s of work", peak, seconds)
    if end is None:
        name = signal.Signals(number).name if number else f"exit status {status}"
        return Ended("signal", values, f"{name}\n{log.read_text(errors='replace')}", peak, seconds)
    if peak > MOST_MB:
        return Ended("memory", values, f"{peak:.0f} MB", peak, seconds)
    return Ended("exception" if end else "done", values, end, peak, seconds)


def _unpack(answer: bytes) -> tuple[list[Any], str | None]:
    """Give the values, and the traceback, which is empty where all went well."""
    values, stream = [], io.BytesIO(answer)
    while stream.tell() < len(answer):
        try:
            is_end, value = pickle.load(stream)
        except (EOFError, pickle.UnpicklingError):  # it ended while it told
            break
        if is_end:
            return values, value
        values.append(value)
    return values, None


def _work_and_exit(work: Callable[[], Iterator[Any]], write_end: int, log: Path) -> None:
    gc.disable()
    try:
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        faulthandler.enable(2)
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        for what, most in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_AS, mapped + ADDRESSES),
            (resource.RLIMIT_CPU, CPU_S),
        ):
            resource.setrlimit(what, (most, most + (what == resource.RLIMIT_CPU)))
        with open(write_end, "wb") as pipe:
            end = ""
            try:
                for value in work():
                    pickle.dump((False, value), pipe)
                    pipe.flush()
            except BaseException:
                end = traceback.format_exc()
            pickle.dump((True, end), pipe)
    finally:
        os._exit(0)


def _receive(read_end: int, deadline: float) -> tuple[bytes, bool]:
    """Read up to the end; tells too whether that did not come in time."""
    parts = []
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([read_end], [], [], left)[0]:
            return b"".join(parts), True
        part = os.read(read_end, 1 << 20)
        if not part:
            return b"".join(parts), False
        parts.append(part)
