"""Damaged files of every format, each opened in a child process: how every reader takes them.

    python jobs/fuzz_readers.py --cases 10000

Each case is a healthy file that is cut off, overwritten, given other dtypes, shapes, offsets,
attributes or links, and then read as `spidask run` reads it. Right is a refusal in one clear line,
or data equal to what h5py, zarr, csv or NumPy alone see in the damaged file, where frames that
these cannot read either are filled. Wrong is a crash, a hang, more than 1 GB of memory, another
exception, another value or another label. A case is given by seed and number alone:

    python jobs/fuzz_readers.py --seed 1 --only 4711 --keep failed
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from fuzz.children import MOST_MB, Ended, run_in_child
from fuzz.frames import is_filled
from fuzz.module_formats import MODULE_FORMATS
from fuzz.mutations import mutate
from fuzz.run_formats import RUN_FORMATS
from fuzz.tables import TABLE_FORMATS

FORMATS = [*RUN_FORMATS, *MODULE_FORMATS, *TABLE_FORMATS]
OUTCOMES = ("refused", "as before", "changed", "filled", "unjudged", "FAILED")
"""A clear error; the healthy file's values; other values, which are there; some frames filled;
right or wrong cannot be told, as the independent reader crashes; none of these."""
MOST_LETTERS = 3000
"""A message that is longer is not clear."""


@dataclass(frozen=True)
class Case:
    """What became of a damaged file.

    Attributes
    ----------
    number : int
        Of the case.
    format : str
        What it was.
    damage : str
        What was done to it.
    outcome : str
        One of `OUTCOMES`.
    text : str
        The refusal, or what failed.
    peak_mb, seconds : float
        Memory and processor time.
    """

    number: int
    format: str
    damage: str
    outcome: str
    text: str
    peak_mb: float
    seconds: float


def main() -> None:
    """Run the cases, print how many ended in which way, and exit with 1 where any failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="number of one case")
    parser.add_argument("--keep", type=Path, help="folder for the files of cases that fail")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    numbers: Any = range(options.start, options.start + options.cases)
    numbers = numbers if options.only is None else [options.only]
    start = time.perf_counter()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory) as folder:
        run = partial(run_case, seed=options.seed, folder=Path(folder), keep=options.keep)
        prepare(Path(folder))
        gc.freeze()  # what is here already need not be copied for every child
        with multiprocessing.get_context("fork").Pool(options.processes) as pool:
            cases = []
            for case in pool.imap_unordered(run, numbers):
                cases.append(case)
                if case.outcome == "FAILED" or options.only is not None:
                    text = case.text if options.only is not None else _shorten(case.text)
                    print(f"{case.number} {case.format}: {case.damage}\n  {case.outcome} {text}")
                    sys.stdout.flush()
    print(tabulate(cases))
    print(
        f"{len(cases)} damaged files in {time.perf_counter() - start:.0f} s, at most "
        f"{max(c.peak_mb for c in cases):.0f} MB and {max(c.seconds for c in cases):.1f} s for one"
    )
    for what in ("peak_mb", "seconds"):
        most = sorted(cases, key=lambda case: -getattr(case, what))[:5]
        print(
            what, ", ".join(f"{getattr(c, what):.1f} (case {c.number}, {c.format})" for c in most)
        )
    sys.exit(any(case.outcome == "FAILED" for case in cases))


def _shorten(text: str) -> str:
    """Of a traceback, its last line and the last place in the package."""
    lines = text.strip().splitlines()
    places = [line.strip() for line in lines if "File" in line and "/spidask/" in line]
    return " | ".join([lines[0], *places[-1:], *lines[-1:]]) if len(lines) > 1 else text


def prepare(folder: Path) -> None:
    """Write a healthy file of each format, and see that it is read rightly.

    Parameters
    ----------
    folder : pathlib.Path
        Where they go.
    """
    for code, form in enumerate(FORMATS):
        home = folder / "seeds" / str(code)
        form.prepare(home)
        for parity in range(2):
            step = partial(read_and_judge, form, home / "seed", home, parity)
            ended = run_in_child(step, folder / "log")
            if ended.how != "done" or "refused" in ended.values[0] or ended.values[1:] != [[]]:
                raise RuntimeError(f"{form.name}: a healthy file: {ended}")
            healthy = np.array(ended.values[0], object)
            np.save(home / f"healthy{parity}.npy", healthy, allow_pickle=True)
        # What is imported at the first use is then there in every child; but zarrs works in
        # threads, which would be missing there.
        if not form.name.startswith("Zarr"):
            form.read(home / "seed", home, 0)
        (home / "seed" / "index.json").unlink(missing_ok=True)


def read_and_judge(
    form: Any, case: Path, home: Path, number: int, healthy: dict[str, Any] | None = None
) -> Iterator[Any]:
    """Read a file as spidask does, and then look at it without spidask.

    Parameters
    ----------
    form : FramesFormat or TableFormat
        What it is.
    case, home : pathlib.Path
        The folder of the file, and that of its healthy ones.
    number : int
        Of the case.
    healthy : dict, optional
        What the healthy file gives; without it this one is taken for it.

    Yields
    ------
    dict or list of str
        What was read or why it was refused, and then, if it was read, what is wrong with it.
    """
    found = form.read(case, home, number)
    yield found
    if "refused" not in found:
        yield form.judge(case, found, healthy or found)


def copy_seed(seed: Path, case: Path) -> list[Path]:
    """Copy healthy files.

    Parameters
    ----------
    seed, case : pathlib.Path
        Their folder, and where they go.

    Returns
    -------
    list of pathlib.Path
        The files that may be damaged.
    """
    shutil.copytree(seed, case)
    return sorted(path for path in case.rglob("*") if path.is_file())


def run_case(number: int, seed: int, folder: Path, keep: Path | None) -> Case:
    """Damage a file and read it.

    Parameters
    ----------
    number, seed : int
        Which case.
    folder : pathlib.Path
        With the healthy files of `prepare`.
    keep : pathlib.Path or None
        Where the file goes if the case fails.

    Returns
    -------
    Case
        What became of it.
    """
    code = number % len(FORMATS)
    form, home = FORMATS[code], folder / "seeds" / str(code)
    case, log = folder / f"case{number}", folder / f"log{number}"
    subjects = copy_seed(home / "seed", case)
    rng = np.random.default_rng([seed, number])
    told = folder / f"told{number}"
    healthy = np.load(home / f"healthy{number % 2}.npy", allow_pickle=True).item()

    def work() -> Iterator[Any]:
        told.write_text(mutate(subjects, rng))
        yield from read_and_judge(form, case, home, number, healthy)

    ended = run_in_child(work, log)
    outcome, text = classify(ended, healthy)
    if outcome == "FAILED" and keep:
        shutil.copytree(case, keep / str(number), symlinks=True, dirs_exist_ok=True)
    damage = told.read_text() if told.exists() else "none: the damage itself failed"
    shutil.rmtree(case, ignore_errors=True)
    for path in (log, told):
        path.unlink(missing_ok=True)
    return Case(number, form.name, damage, outcome, text, ended.peak_mb, ended.seconds)


def classify(ended: Ended, healthy: dict[str, Any]) -> tuple[str, str]:
    """Say which of `OUTCOMES` a case has, and why.

    Parameters
    ----------
    ended : Ended
        How `read_and_judge` ended.
    healthy : dict
        What is read of the healthy file.

    Returns
    -------
    outcome : str
        One of `OUTCOMES`.
    text : str
        The refusal, or what is wrong.
    """
    if not ended.values:
        return "FAILED", f"{ended.how}: {ended.text}"
    found = ended.values[0]
    if "refused" in found:
        return _classify_refusal(ended, healthy)
    if found["peak_mb"] > MOST_MB:
        return "FAILED", f"memory: {found['peak_mb']:.0f} MB"
    if len(ended.values) == 2 and ended.values[1]:
        return "FAILED", "; ".join(ended.values[1])[:2000]
    if found["digest"] == healthy["digest"]:
        return "as before", ""
    if ended.how in ("signal", "hang", "memory"):
        return "unjudged", f"the independent reader: {ended.how} {ended.text}"
    if ended.how == "exception":
        return "FAILED", f"read, though another reader cannot: {ended.text}"
    is_frames = "frames" in found
    return ("filled" if is_frames and any(map(is_filled, found["frames"])) else "changed"), ""


def _classify_refusal(ended: Ended, healthy: dict[str, Any]) -> tuple[str, str]:
    text, others = ended.values[0]["refused"], ended.values[0].get("others")
    if ended.how != "done":
        return "FAILED", f"{ended.how}: {ended.text}"
    if others is not None and not np.array_equal(others, healthy["others"], equal_nan=True):
        return "FAILED", "frames of other runs are other ones"
    is_clear = 10 < len(text) < MOST_LETTERS and text.isprintable()
    return ("refused", text) if is_clear else ("FAILED", f"unclear: {text!r}")


def tabulate(cases: list[Case]) -> str:
    """Count cases by format and outcome.

    Parameters
    ----------
    cases : list of Case
        The cases.

    Returns
    -------
    str
        A table.
    """
    counts = Counter((case.format, case.outcome) for case in cases)
    lines = [f"{'format':28}" + "".join(f"{name:>11}" for name in OUTCOMES) + f"{'all':>8}"]
    for name in [*(form.name for form in FORMATS), "all"]:
        row = [
            sum(n for (form, o), n in counts.items() if o == outcome and name in (form, "all"))
            for outcome in OUTCOMES
        ]
        lines.append(f"{name:28}" + "".join(f"{n:11}" for n in row) + f"{sum(row):8}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
