"""All ratios of the benchmarks against what they are to reach, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

Row = dict[str, str | float]


@dataclass(frozen=True)
class Aim:
    """What a number of rows, named by a pattern, is to reach: at least, or as a limit at most."""

    row: str
    number: str
    aim: float
    is_limit: bool = False


AIMS = (
    Aim("uncompressed", "x plain dask", 3.5),
    Aim("bitshuffle/LZ4", "x plain dask", 2.5),
    Aim("gzip", "x plain dask", 2),
    Aim("patterns and counts, one core", "of memcpy's bytes/s", 0.5),
    Aim("colour 416 by kernel, one core", "x published, CPU time", 150),
    Aim("colour 416 by kernel, two threads, by the clock", "x published", 250),
    Aim("compact, torch, fp32", "times eager", 2),
    Aim("compact, torch, bf16", "times eager", 5),
    Aim("compact, openvino, bf16", "times eager", 5),
    Aim("yolov2 416, torch, bf16", "times eager", 3.3),
    Aim("yolov2 416, openvino, bf16", "times eager", 3.3),
    Aim("5 members, early exit, torch, fp32", "times all members", 3),
    Aim("5 members, early exit, torch, bf16", "times all members", 3),
    Aim("5 members, early exit, torch, fp32", "times one YOLOv2-416", 100),
    Aim("5 members, early exit, torch, bf16", "times one YOLOv2-416", 100),
    Aim("bitshuffle/LZ4, fp32: whole", "of reading alone", 0.6),
    Aim("bitshuffle/LZ4, bf16: whole", "of reading alone", 0.6),
    Aim("uncompressed, fp32: whole", "of reading alone", 0.35),
    Aim("uncompressed, bf16: whole", "of reading alone", 0.35),
    Aim("bitshuffle/LZ4, fp32: whole", "of a plain loop's rate", 1 / 1.03),
    Aim("uncompressed, fp32: whole", "of a plain loop's rate", 1 / 1.03),
    Aim("two Dask workers", "x the time of plain loops", 1.03, is_limit=True),
    Aim("two Dask workers", "x the rate of one, for a second that a core computed", 0.95),
    Aim("memory of a worker of *", "MB", 1500, is_limit=True),
    Aim("yolov2* as inference runs it, bf16, *", "of the matrix rate", 0.35),
    Aim("*, whole pipeline, *", "of AGIPD's rate", 1),
    Aim("yolov2 416 trains, bf16, *", "minutes for 4400 iterations", 6, is_limit=True),
)
"""Issue "As fast as the hardware allows": all of it, but two workers for one is this file's."""


def judge(rows: Sequence[Row]) -> list[tuple[str, float]]:
    """Find the numbers that have an aim.

    Parameters
    ----------
    rows : sequence of dict
        Of all benchmarks.

    Returns
    -------
    list of (str, float)
        What was measured, and how many times better than the aim it is: from 1 on it is reached.
    """
    found = []
    for aim in AIMS:
        for row in rows:
            if fnmatchcase(str(row["what"]), aim.row) and aim.number in row:
                value = float(row[aim.number])
                text = f"{row['what']}: {value:.3g} {aim.number} (aim {aim.aim:.3g})"
                found.append((text, aim.aim / value if aim.is_limit else value / aim.aim))
    return found


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw a bar for every number that has an aim.

    Parameters
    ----------
    rows : sequence of dict
        Of all benchmarks.
    title : str
        Machine and date.
    path : Path
        A PNG.
    """
    found = judge(rows)
    figure, axes = pyplot.subplots(figsize=(11, 1 + 0.3 * len(found)), layout="constrained")
    ratios = [ratio for _, ratio in found]
    colours = ["tab:green" if ratio >= 1 else "tab:red" for ratio in ratios]
    axes.barh([text for text, _ in found], ratios, color=colours)
    axes.axvline(1, color="black")
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel("times better than the aim")
    axes.set_title(title)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
