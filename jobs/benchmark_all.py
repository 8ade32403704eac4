"""All benchmarks in one run: one table, one JSON and a picture."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmark_picture import draw, judge

PACKAGES = ("spidask", "dask", "distributed", "torch", "numpy", "numba", "h5py", "zarr", "xarray")


def describe_machine() -> dict[str, str]:
    """Processor, cores, memory, system, date and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GB",
        "system": platform.platform(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        **{name: version(name) for name in PACKAGES},
    }


def measure_all(names: Sequence[str], script: Path, folder: Path, *, gpu: bool = False) -> None:
    """Run benchmarks one after the other, each in a process of its own.

    Parameters
    ----------
    names : sequence of str
        As of `script`.
    script : Path
        What measures one of them, prints its table and writes FOLDER/NAME/NAME.json.
    folder : Path
        Gets ``benchmark.json`` and ``benchmark.png`` besides; of a GPU, ``benchmark-gpu``.
    gpu : bool
        Measure the rows of the CUDA device.
    """
    found = {"machine": describe_machine(), "load": os.getloadavg()[0], "rows": {}}
    rows, suffix = [], "-gpu" if gpu else ""
    for name in names:
        start = time.perf_counter()
        command = [sys.executable, str(script), name, str(folder), *["--gpu"] * gpu]
        subprocess.run(command, check=True)
        print(f"  {name} took {time.perf_counter() - start:.0f} s", flush=True)
        given = json.loads((folder / name / f"{name}{suffix}.json").read_text())["rows"]
        found["rows"][name] = given
        rows += given
    found["aims"] = {text: round(times, 3) for text, times in judge(rows)}
    (folder / f"benchmark{suffix}.json").write_text(json.dumps(found, indent=1))
    machine = found["machine"]
    title = f"{machine['processor']}, {machine['cores']} cores, {machine['date']}"
    draw(rows, title, folder / f"benchmark{suffix}.png")
    print(f"{title}; 1 and more is reached:")
    for text, times in judge(rows):
        print(f"  {times:6.2f}  {text}")
