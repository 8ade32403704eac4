"""Expectation maximization on the hits of an output folder: classes, a picture, a selection."""

from __future__ import annotations

import functools
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from spidask.baselines import em
from spidask.baselines.hits import (
    Result,
    are_in_window,
    find_hits,
    label_hits,
    make_grid,
    read_patterns,
    sign_hits,
)
from spidask.baselines.turns import Polar, transform
from spidask.cluster import Pool, connect
from spidask.config import EM, Config
from spidask.errors import ConfigError, DataError
from spidask.frames.polar import to_polar
from spidask.io.labels import read_labels
from spidask.metrics import best_threshold
from spidask.networks.device import resolve_device

N_RINGS, N_ANGLES = 40, 72
FIT = "fit.npz"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classes:
    """Classes of an output folder's hits, and how many hits are judged a second on one core."""

    model: em.Model
    chance: npt.NDArray[np.float64]
    rate: float


def list_settings(config: Config) -> dict[str, Any]:
    """List the settings on which the result depends.

    Parameters
    ----------
    config : Config
        The beamtime.

    Returns
    -------
    dict
        The key's path to its value; the labels stand there as text.

    Raises
    ------
    ConfigError
        If neither labels nor `em.classes` say which classes are selected.
    """
    if config.labels.file is None and config.em.classes is None:
        raise ConfigError(
            "em.classes: missing, and without labels.file nothing says which classes are single "
            "hits; give numbers of classes"
        )
    labels = (
        read_labels(config.labels.file, config.labels).to_csv(index=False)
        if config.labels.file
        else None
    )
    em_settings = {f"em.{key}": value for key, value in config.em.model_dump(mode="json").items()}
    window = {"selection.size_window_nm": list(config.selection.size_window_nm)}
    fraction = {"selection.expected_single_fraction": config.selection.expected_single_fraction}
    return {**em_settings, **window, **fraction, "labels.file": labels}


def classify(output: str | Path, config: Config) -> Result:
    """Divide the hits of the right size into classes, and select the classes of single hits.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder of a run that was exported. Its folder ``em`` gets ``classes.csv``,
        ``classes.png``, a picture of every class, and ``fit.npz``, so that other classes can be
        chosen after a look at it without dividing the hits again.
    config : Config
        Sections `em`, `selection` (the size window), `labels` and `cluster`, whose workers do it.

    Returns
    -------
    Result
        Of the hits of the right size; the score is the probability of the classes selected. The
        time is that of one step without a new model, on one core.

    Raises
    ------
    DataError
        If there are fewer hits of the right size than classes.

    Notes
    -----
    Labels only choose the classes. Source: the EM row of Ignatenko et al. 2021, where people
    chose them.
    """
    settings, hits = config.em, find_hits(output)
    hits = hits[are_in_window(hits, config)].reset_index(drop=True)
    if len(hits) < settings.n_classes:
        raise DataError(
            f"{len(hits)} hits pass the size window; {settings.n_classes} classes need more"
        )
    folder = Path(output) / "em"
    folder.mkdir(exist_ok=True)
    found = _find_classes(folder / FIT, output, hits, config)
    belongs, label = found.chance.argmax(1), label_hits(hits, config)
    counts = count_classes(belongs, label, settings, config.selection.expected_single_fraction)
    counts.to_csv(folder / "classes.csv")
    draw_classes(found.model, counts, folder / "classes.png")
    chosen = np.flatnonzero(counts["selected"])
    if len(chosen) == 0:
        log.warning(
            "em: no class holds a labelled single hit, so nothing is selected; look at %s and set "
            "em.classes",
            folder / "classes.png",
        )
    reason = np.where(np.isin(belongs, chosen), "", "not_single")
    verdicts = hits[["run", "index"]].assign(score=found.chance[:, chosen].sum(1), reason=reason)
    return Result(
        f"expectation maximization, {settings.n_classes} classes",
        verdicts,
        hits[label.notna()],
        found.model.intensity.size + found.model.share.size,
        found.rate,
    )


def count_classes(
    belongs: npt.NDArray[np.integer[Any]],
    label: pd.Series[str],
    settings: EM,
    fraction: float | None = None,
) -> pd.DataFrame:
    """Count what is in every class, and choose those of single hits.

    Parameters
    ----------
    belongs : numpy.ndarray
        Class of each hit, shape (hit,), int.
    label : pandas.Series
        Name in `schema.CLASSES` for each hit, NaN without a label.
    settings : EM
        How many classes there are, and which ones were chosen by hand.
    fraction : float, optional
        Share of single hits that is expected; nothing: that of the labels.

    Returns
    -------
    pandas.DataFrame
        Index class; columns hits, labelled (hits with a label), single (with this one) and
        selected: by hand, or those that together have the largest F1 on the labelled hits, as
        `best_threshold` finds it on the classes' shares of single hits.

    Examples
    --------
    >>> label = pd.Series(["single", "single", "multiple", "single", "multiple", None])
    >>> count_classes(np.array([0, 0, 0, 1, 1, 1]), label, EM(n_classes=2)).values.tolist()
    [[3, 3, 2, True], [3, 2, 1, True]]
    >>> count_classes(np.array([0, 0, 0, 1, 1, 1]), label, EM(n_classes=2), 0.1)["selected"].values
    array([ True, False])
    """
    counts = pd.DataFrame(
        {
            name: np.bincount(belongs[rows], minlength=settings.n_classes)
            for name, rows in (
                ("hits", slice(None)),
                ("labelled", label.notna().to_numpy()),
                ("single", (label == "single").to_numpy()),
            )
        }
    ).rename_axis("class")
    if settings.classes is not None:
        return counts.assign(selected=counts.index.isin(settings.classes))
    share = counts["single"] / counts["labelled"].clip(lower=1)
    known = label.notna().to_numpy()
    is_single = (label[known] == "single").to_numpy()
    if not is_single.any():
        return counts.assign(selected=False)
    threshold, _ = best_threshold(share.to_numpy()[belongs[known]], is_single, fraction)
    return counts.assign(selected=share >= threshold)


def draw_classes(model: em.Model, counts: pd.DataFrame, path: Path) -> None:
    """Draw every class in rings and angles, five in a row.

    Parameters
    ----------
    model : em.Model
        The classes.
    counts : pandas.DataFrame
        As of `count_classes`; classes that are selected have a green title.
    path : pathlib.Path
        Picture to write.
    """
    n_rows = -(-len(counts) // 5)
    figure = Figure(figsize=(12, 2.8 * n_rows))
    edges = np.linspace(0, 2 * np.pi, N_ANGLES + 1), np.linspace(0, 1, N_RINGS + 1)
    for number, row in enumerate(counts.itertuples()):
        axes = figure.add_subplot(n_rows, 5, number + 1, projection="polar")
        axes.set_axis_off()
        axes.pcolormesh(*edges, np.log10(model.intensity[number] + 1e-3), cmap="viridis")
        colour = "green" if row.selected else "black"
        axes.set_title(f"class {number}: {row.hits} hits", fontsize=9, color=colour)
    figure.savefig(path, dpi=100)


def _find_classes(path: Path, output: str | Path, hits: pd.DataFrame, config: Config) -> Classes:
    """Take the classes of before, if they are of the same hits and settings, or divide the hits."""
    made_of = sign_hits(output, hits, config.em.model_dump(mode="json", exclude={"classes"}))
    try:
        with np.load(path) as kept:
            if str(kept["made_of"]) == made_of:
                model = em.Model(kept["intensity"], kept["share"])
                return Classes(model, kept["chance"], float(kept["rate"]))
    except FileNotFoundError:
        pass
    blocks, seconds = _read_blocks(output, hits, config)
    best = _fit(blocks, output, config)
    rate = len(hits) / (seconds + _time_judging(blocks, best.model))
    found = Classes(best.model, np.concatenate(best.chances), rate)
    part = path.with_suffix(".part.npz")
    np.savez(
        part,
        made_of=made_of,
        intensity=found.model.intensity,
        share=found.model.share,
        chance=found.chance,
        rate=found.rate,
    )
    os.replace(part, path)
    return found


def _read_blocks(
    output: str | Path, hits: pd.DataFrame, config: Config
) -> tuple[list[Polar], float]:
    """Read hits in rings and angles; also the seconds that these took."""
    grid, blocks, seconds = make_grid(output, config, N_RINGS, N_ANGLES), [], 0.0
    for patterns in read_patterns(output, hits):
        start = time.perf_counter()
        photons, n_pixels = to_polar(patterns, grid)
        seconds += time.perf_counter() - start
        blocks.append(Polar(photons, n_pixels))
    return blocks, seconds


def _fit(blocks: list[Polar], output: str | Path, config: Config) -> em.Fit:
    settings, fits = config.em, []
    device = functools.partial(resolve_device, config)
    with connect(config.cluster, output) as client:
        demand = Pool(client, config.cluster, str(output)).demand if client else None
        for seed in range(settings.n_starts):
            sizes = settings.n_classes, seed, settings.n_steps
            fits.append(em.fit(blocks, *sizes, client, device, demand))
            log.info("start %d: log likelihood %.8g", seed, fits[-1].log_likelihoods[-1])
    return max(fits, key=lambda one: one.log_likelihoods[-1])


def _time_judging(blocks: list[Polar], model: em.Model) -> float:
    start = time.process_time()
    for block in blocks:
        patterns = transform(block, "cpu")
        scale = em.rescale(patterns, np.ones(len(block.photons)), model)
        em.responsibilities(patterns, scale, model)
    return time.process_time() - start
