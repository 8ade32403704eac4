"""The diagrams of the report: what they show is computed before, a few thousand points at most."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from spidask.metrics import Curve, proportion_interval
from spidask.networks.member import Member
from spidask.reporting.patterns import MISSING, Powder
from spidask.schema import REASONS

TEXT = "#7b828d"
"""Grey that can be read on white and on black."""
QUIET, ACCENT, OTHER = "#9aa3af", "#2f81d6", "#e07b39"
MOST_POINTS = 2000
METERS = {
    "model": "with the model",
    "symmetry": "with itself, rotated as an icosahedron",
    "halves": "between the two halves",
}
"""Correlations of a recovered intensity and what they are called."""


@dataclass(frozen=True)
class Picture:
    """An image on the page.

    Attributes
    ----------
    source : str
        Data URI.
    alt : str
        What it shows, for those who cannot see it.
    """

    source: str
    alt: str


def draw_sizes(
    selection: xr.Dataset, window: tuple[float, float], tried: tuple[float, float]
) -> Picture | None:
    """Draw the diameters of hits, of single hits and of the selected ones.

    Parameters
    ----------
    selection : xarray.Dataset
        What `selection.select` gives.
    window : tuple of float
        The size window, nm.
    tried : tuple of float
        Range of the diameters that the fit tries, nm.

    Returns
    -------
    Picture or None
        None where no hit has a diameter.
    """
    diameter, reason = selection["diameter"].values, selection["reason"].values
    hit = (selection["readable"].values & selection["hit"].values) & np.isfinite(diameter)
    if not hit.any():
        return None
    single = hit & np.isin(reason, (0, REASONS.index("size")))
    edges = np.linspace(*tried, int(np.clip(2 * np.sqrt(hit.sum()), 40, 125)))
    figure, (left, right) = _figure(1, 2, (11.4, 3.2))
    _histogram(left, diameter[hit], edges, QUIET, f"{_n(hit)} hits")
    _histogram(right, diameter[single], edges, OTHER, f"{_n(single)} single hits")
    _histogram(right, diameter[reason == 0], edges, ACCENT, f"{_n(reason == 0)} selected")
    for axes in (left, right):
        axes.axvspan(*window, color=ACCENT, alpha=0.10, lw=0)
        axes.set(xlabel="diameter (nm)", ylabel="frames")
        _legend(axes)
    low, high = window
    return _picture(
        figure,
        f"Histogram of diameters with the size window from {low:g} to {high:g} nm; median of "
        f"the hits {np.median(diameter[hit]):.1f} nm",
    )


def draw_scores(selection: xr.Dataset, thresholds: Sequence[float]) -> Picture | None:
    """Draw each member's scores of the hits, those trained on left out.

    Parameters
    ----------
    selection : xarray.Dataset
        What `selection.select` gives.
    thresholds : sequence of float
        The members' thresholds; empty where they are not known.

    Returns
    -------
    Picture or None
        None where no hit has a score.
    """
    selected = selection["selected"].values
    used = selection["readable"].values & selection["hit"].values & ~selection["trained_on"].values
    scores = selection["scores"].values
    n_members = scores.shape[1]
    if not n_members or not np.isfinite(scores[used]).any():
        return None
    columns = min(n_members, 5)
    rows = -(-n_members // columns)
    figure, grid = _figure(rows, columns, (2.3 * columns + 0.6, 2.0 * rows + 0.5), sharey=True)
    edges = np.linspace(0, 1, 51)
    for member, axes in enumerate(grid[:n_members]):
        column = scores[:, member]
        _histogram(axes, column[used], edges, QUIET, "hits")
        _histogram(axes, column[used & selected], edges, ACCENT, "selected")
        axes.set_yscale("log", subs=[])
        axes.set_title(f"member {member}", color=TEXT, fontsize=9)
        if len(thresholds):
            axes.axvline(thresholds[member], color=OTHER, lw=1.2, ls="--", label="threshold")
    for axes in grid[n_members:]:
        axes.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel("frames")
    _legend(grid[0])
    figure.supxlabel("calibrated probability of a single hit", color=TEXT, fontsize=9)
    stated = ", ".join(f"{value:.2f}" for value in thresholds) or "not known"
    return _picture(
        figure, f"Score histograms of {n_members} members; their thresholds are {stated}"
    )


def draw_hit_rates(runs: Mapping[str, Mapping[str, int]]) -> Picture | None:
    """Draw hit rate and selected frames of each run.

    Parameters
    ----------
    runs : mapping
        Run name to its counts, as `selection.count_reasons` gives them.

    Returns
    -------
    Picture or None
        None where no run has a readable frame.
    """
    readable = np.array([run["frames"] - run["unreadable"] for run in runs.values()])
    hits = readable - np.array([run["miss"] for run in runs.values()], int)
    if not readable.sum():
        return None
    limits = np.array([proportion_interval(*pair) for pair in zip(hits, readable, strict=True)])
    rate = np.divide(hits, readable, out=np.full(len(hits), np.nan), where=readable > 0)
    place = np.arange(len(hits))
    size = (float(np.clip(0.35 * len(place) + 3, 5.4, 11.4)), 4.0)
    figure, (upper, lower) = _figure(2, 1, size, sharex=True)
    upper.vlines(place, *(100 * limits.T), color=QUIET, lw=1.5)
    upper.plot(place, 100 * rate, "o", color=ACCENT, ms=4)
    upper.set_ylabel("hit rate (%)")
    upper.set_ylim(0, 108 * limits[readable > 0].max())
    lower.bar(place, [run["selected"] for run in runs.values()], color=ACCENT, width=0.7)
    lower.set_ylabel("selected frames")
    step = -(-len(place) // 24)
    lower.set_xticks(place[::step], list(runs)[::step], rotation=90 if len(place) > 8 else 0)
    lower.set_xlim(-0.7, len(place) - 0.3)
    total = 100 * hits.sum() / readable.sum()
    return _picture(figure, f"Hit rate of {len(runs)} runs, {total:.3g} % of all readable frames")


def draw_training(metrics: pd.DataFrame, members: Sequence[Member]) -> Picture:
    """Draw loss and validation F1 with the stages that became members.

    Parameters
    ----------
    metrics : pandas.DataFrame
        Columns iteration, loss, validation_f1, validation_average_precision and seed.
    members : sequence of Member
        The ensemble; its provenance names iteration and seed.

    Returns
    -------
    Picture
        Two diagrams over the iterations.
    """
    figure, (left, right) = _figure(1, 2, (11.4, 3.2))
    for number, (seed, rows) in enumerate(metrics.groupby("seed")):
        name = f"seed {seed}" if number < 6 else None
        loss = _smooth(rows.dropna(subset="loss"))
        left.plot(loss["iteration"], loss["loss"], lw=1.2, color=_shade(number), label=name)
        judged = rows.dropna(subset="validation_f1")
        iteration = judged["iteration"]
        right.plot(iteration, judged["validation_f1"], "-o", ms=3, lw=1.2, color=_shade(number))
    stages = [member.provenance for member in members if "iteration" in member.provenance]
    right.plot(
        [stage["iteration"] for stage in stages],
        [_f1_at(metrics, stage) for stage in stages],
        "o",
        mfc="none",
        mec=OTHER,
        mew=1.8,
        ms=9,
        label="members",
    )
    for axes, label in ((left, "loss"), (right, "validation F1")):
        axes.set_xlabel("iteration")
        axes.set_ylabel(label)
        _legend(axes)
    if metrics["loss"].min() > 0:
        left.set_yscale("log")
    best = metrics["validation_f1"].max()
    return _picture(
        figure, f"Loss and validation F1 over the iterations; the best F1 is {best:.3f}"
    )


def draw_curve(curve: Curve, metrics: Mapping[str, float], average: float) -> Picture:
    """Draw precision over recall, with the selection as a point.

    Parameters
    ----------
    curve : Curve
        Precision and recall of the score.
    metrics : mapping
        What `metrics.judge` gives for the selection.
    average : float
        The average precision.

    Returns
    -------
    Picture
        One diagram.
    """
    figure, (axes,) = _figure(1, 1, (5.4, 4.0))
    some = _thin(len(curve.recall))
    recall, precision = curve.recall[some], curve.precision[some]
    axes.step(recall, precision, where="post", color=ACCENT, lw=1.8, label="threshold varied")
    chance = metrics["manual"] / metrics["frames"]
    axes.axhline(chance, color=QUIET, ls=":", lw=1.2, label=f"chance, {chance:.3f}")
    selection = "nothing is selected"
    if np.isfinite(metrics["precision"]):
        point = (metrics["recall"], metrics["precision"])
        selection = "the selection has recall {:.3f} and precision {:.3f}".format(*point)
        axes.plot(*point, "o", color=OTHER, ms=8, label="this selection, size window included")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.04))
    _legend(axes, loc="center left")
    return _picture(figure, f"Precision over recall, average precision {average:.3f}; {selection}")


def draw_powder(sums: Mapping[str, Powder]) -> Picture | None:
    """Draw the mean of selected and of rejected hits on one logarithmic scale.

    Parameters
    ----------
    sums : mapping of str to Powder
        Name to mean.

    Returns
    -------
    Picture or None
        None where there are no photons.
    """
    means = np.concatenate([powder.mean.ravel() for powder in sums.values()] or [np.zeros(0)])
    lit = means[means > 0]
    if not len(lit):
        return None
    low, high = np.quantile(lit, [0.02, 0.9995])
    norm = LogNorm(low, max(high, 2 * low), clip=True)
    colours = matplotlib.colormaps["inferno"].with_extremes(bad=MISSING)
    shape = next(iter(sums.values())).mean.shape
    height = float(np.clip(5.2 * shape[0] / shape[1], 1.5, 6)) + 0.7
    figure, grid = _figure(1, len(sums), (5.2 * len(sums) + 0.8, height))
    for axes, (name, powder) in zip(grid, sums.items(), strict=True):
        y, x = powder.corner
        extent = (x - 0.5, x + shape[1] - 0.5, y + shape[0] - 0.5, y - 0.5)
        image = axes.imshow(
            np.fmax(powder.mean, low, where=np.isfinite(powder.mean), out=powder.mean.copy()),
            norm=norm,
            cmap=colours,
            extent=extent,
            interpolation="none",
        )
        axes.set_title(f"{name}, mean of {powder.n}", color=TEXT, fontsize=9)
    bar = figure.colorbar(image, ax=list(grid), shrink=0.9, pad=0.02)
    _tint(bar.ax)
    bar.set_label("photons per pixel and frame", color=TEXT, fontsize=9)
    stated = " and ".join(f"{powder.n} {name}" for name, powder in sums.items())
    return _picture(figure, f"Mean pattern of {stated} on a logarithmic scale, missing pixels grey")


def draw_intensity(
    meters: Mapping[str, Any], slices: Mapping[str, npt.NDArray[np.float64]]
) -> Picture:
    """Draw cuts through the recovered intensity and the model's, and the correlation by shell.

    Parameters
    ----------
    meters : mapping
        What `orientation.measure` gives.
    slices : mapping of str to numpy.ndarray
        ``recovered`` and perhaps ``model``, shape (n, n), float64, NaN where not known.

    Returns
    -------
    Picture
        The cuts side by side on logarithmic scales of their own, then the diagram.
    """
    n = len(slices)
    figure, axes = _figure(1, n + 1, (3.6 * n + 5.0, 3.5), width_ratios=[1.0] * n + [1.4])
    colours = matplotlib.colormaps["inferno"].with_extremes(bad=MISSING)
    for cut, (name, values) in zip(axes, slices.items(), strict=False):
        half = (len(values) // 2 + 0.5) * meters["voxel"]
        low, high = np.quantile(values[values > 0], [0.05, 0.995])
        norm = LogNorm(low, max(high, 2 * low), clip=True)
        shown = np.fmax(values, low, where=np.isfinite(values), out=values.copy())
        cut.imshow(shown, norm=norm, cmap=colours, extent=(-half, half, -half, half))
        cut.set_xlabel("q (1/nm)")
        cut.set_title(name, color=TEXT, fontsize=9)
    first, last = meters["shells"]
    q = meters["voxel"] * np.arange(first, last + 1)
    for (name, label), colour in zip(METERS.items(), (ACCENT, OTHER, QUIET), strict=True):
        if meters[name]:
            values = np.array(meters[name]["shells"], float)
            axes[-1].plot(q, values, "-o", ms=3, lw=1.4, color=colour, label=label)
    axes[-1].set(xlabel="q (1/nm)", ylabel="correlation of a shell", ylim=(-0.1, 1.05))
    _legend(axes[-1])
    stated = [f"{METERS[name]} {meters[name]['mean']:.3f}" for name in METERS if meters[name]]
    return _picture(
        figure, f"Cuts of the {' and the '.join(slices)} intensity; {', '.join(stated)}"
    )


def _figure(
    rows: int, columns: int, size: tuple[float, float], **shared: Any
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **shared)
    for axes in grid.flat:
        _tint(axes)
    return figure, list(grid.flat)


def _tint(axes: Axes) -> None:
    # Nothing is black or white, so that the page may be either.
    axes.tick_params(colors=TEXT, which="both", labelsize=8)
    axes.xaxis.label.set(color=TEXT, fontsize=9)
    axes.yaxis.label.set(color=TEXT, fontsize=9)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(QUIET)


def _legend(axes: Axes, loc: Literal["best", "center left"] = "best") -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, labelcolor=TEXT, fontsize=8, loc=loc)


def _histogram(
    axes: Axes, values: npt.NDArray[Any], edges: npt.NDArray[np.float64], colour: str, label: str
) -> None:
    counts, _ = np.histogram(values[np.isfinite(values)], edges)
    axes.stairs(counts, edges, fill=True, color=colour, alpha=0.85, label=label)


def _smooth(rows: pd.DataFrame) -> pd.DataFrame:
    """Average over neighbouring iterations, so that a few hundred points are left."""
    group = np.arange(len(rows)) // max(1, len(rows) // 300)
    return rows[["iteration", "loss"]].groupby(group).mean()


def _f1_at(metrics: pd.DataFrame, stage: Mapping[str, Any]) -> float:
    here = metrics["iteration"] == stage["iteration"]
    if "seed" in stage:
        here &= metrics["seed"] == stage["seed"]
    return float(metrics.loc[here, "validation_f1"].max())


def _shade(number: int) -> Any:
    return ACCENT if number == 0 else matplotlib.colormaps["tab10"](number % 10)


def _thin(n: int) -> npt.NDArray[np.int64]:
    return np.unique(np.linspace(0, n - 1, min(n, MOST_POINTS)).astype(np.int64))


def _n(mask: npt.NDArray[np.bool_]) -> str:
    return f"{int(mask.sum()):,}".replace(",", "\u202f")


def _picture(figure: Figure, alt: str) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None}, dpi=150)
    return Picture("data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode(), alt)
