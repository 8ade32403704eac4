"""The patterns that the report shows: which, read once, as small images and as sums."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from PIL import Image

from spidask.config import Config
from spidask.io.labels import locate
from spidask.io.runs import take_frames
from spidask.preprocessing import preprocess
from spidask.schema import REASONS

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

N_CHECKED = 100
"""Selected patterns to check by eye."""
N_SHEET = 20
"""Patterns of another contact sheet."""
N_POWDER = 140
"""Patterns of a powder sum."""
FRAMES_AT_ONCE = 32
WIDEST = 160
"""Columns of a small image; patterns that are wider are summed in squares."""
MISSING = "#7a8494"
"""Colour of missing pixels, which no intensity has."""


@dataclass(frozen=True)
class Sheet:
    """A contact sheet.

    Attributes
    ----------
    key : str
        Anchor on the page.
    title, text : str
        What it shows.
    rows : numpy.ndarray
        Positions in the selection, int64, in the order shown.
    """

    key: str
    title: str
    text: str
    rows: Ints


@dataclass(frozen=True)
class Powder:
    """Mean of some patterns.

    Attributes
    ----------
    n : int
        Number of patterns.
    mean : numpy.ndarray
        Shape (y, x), float64, photons; NaN where no pattern has a pixel.
    corner : tuple of int
        Row and column of the first pixel in the full frame.
    """

    n: int
    mean: npt.NDArray[np.float64]
    corner: tuple[int, int]


def draw(mask: npt.NDArray[np.bool_], n: int, seed: int) -> Ints:
    """Draw frames at random.

    Parameters
    ----------
    mask : numpy.ndarray
        Frames to draw from, shape (frame,), bool.
    n : int
        How many; all where there are fewer.
    seed : int
        Of the draw.

    Returns
    -------
    numpy.ndarray
        Positions, int64, in random order, none twice.
    """
    rows = np.flatnonzero(mask)
    return np.random.default_rng(seed).choice(rows, min(n, len(rows)), replace=False)


def choose_powder(selection: xr.Dataset, seed: int) -> dict[str, Ints]:
    """Choose the frames of the powder sums.

    Parameters
    ----------
    selection : xarray.Dataset
        What `selection.select` gives.
    seed : int
        Of the draw.

    Returns
    -------
    dict of str to numpy.ndarray
        ``selected`` and ``rejected`` (hits alone): positions, int64, in random order.
    """
    reason = selection["reason"].values
    return {
        "selected": draw(reason == 0, N_POWDER, seed),
        "rejected": draw(reason >= REASONS.index("not_single"), N_POWDER, seed),
    }


def choose_sheets(selection: xr.Dataset, seed: int) -> list[Sheet]:
    """Choose the frames of the contact sheets.

    Parameters
    ----------
    selection : xarray.Dataset
        What `selection.select` gives.
    seed : int
        Of the draw.

    Returns
    -------
    list of Sheet
        Selected ones first; sheets without a frame are left out.
    """
    reason, score = selection["reason"].values, selection["score"].values
    sheets = _selected_sheets(reason == 0, score, seed)
    not_single = reason == REASONS.index("not_single")
    close = not_single & np.isfinite(score)
    sheets += [
        Sheet(
            "close",
            "Not single, closest to the threshold",
            "Hits that the ensemble rejects by the smallest margin; single hits among these were "
            "lost.",
            _ranked(np.flatnonzero(close), score, N_SHEET),
        ),
        Sheet(
            "not_single",
            "Not single, at random",
            "Hits that at least one member rejects.",
            draw(not_single, N_SHEET, seed),
        ),
        Sheet(
            "size",
            "Outside the size window, at random",
            "Single hits by the ensemble whose diameter fails the window.",
            draw(reason == REASONS.index("size"), N_SHEET, seed),
        ),
        Sheet(
            "miss",
            "Misses, at random",
            "Frames that hit finding rejects.",
            draw(reason == REASONS.index("miss"), N_SHEET, seed),
        ),
    ]
    return [sheet for sheet in sheets if len(sheet.rows)]


def read_patterns(
    selection: xr.Dataset,
    frames: xr.Dataset,
    config: Config,
    shown: Ints,
    powder: Mapping[str, Ints],
) -> tuple[dict[int, Floats], dict[str, Powder]]:
    """Read patterns, each once and some at a time.

    Parameters
    ----------
    selection : xarray.Dataset
        What `selection.select` gives.
    frames : xarray.Dataset
        What `open_runs` gives, of the same runs; frames are matched by run and index.
    config : Config
        What preprocessing needs.
    shown : numpy.ndarray
        Positions in the selection of the patterns to show, int64.
    powder : mapping of str to numpy.ndarray
        Positions in the selection of the patterns to sum.

    Returns
    -------
    small : dict of int to numpy.ndarray
        Position in the selection to the pattern, summed in squares until it is small, shape
        (y, x), float32, photons.
    sums : dict of str to Powder
        Their means; groups without a frame are left out.

    Raises
    ------
    DataError
        If a frame is not among `frames`.
    """
    small: dict[int, Floats] = {}
    total: dict[str, Any] = dict.fromkeys(powder, 0.0)
    number: dict[str, Any] = dict.fromkeys(powder, 0)
    corner = (0, 0)
    wanted = np.unique(np.concatenate([shown, *powder.values()])).astype(np.int64)
    for rows, lazy in _blocks(selection, frames, config, wanted):
        patterns = lazy.data.compute(scheduler="threads")
        corner = (int(lazy["y"][0]), int(lazy["x"][0]))
        for position in np.flatnonzero(np.isin(rows, shown)):
            small[int(rows[position])] = shrink(patterns[position])
        for name, chosen in powder.items():
            members = patterns[np.isin(rows, chosen)]
            total[name] = total[name] + np.nansum(members, axis=0, dtype=np.float64)
            number[name] = number[name] + np.isfinite(members).sum(axis=0)
    sums = {
        name: Powder(len(rows), _mean(total[name], number[name]), corner)
        for name, rows in powder.items()
        if len(rows)
    }
    return small, sums


def shrink(pattern: Floats) -> Floats:
    """Sum a pattern in squares until it is no wider than a small image.

    Parameters
    ----------
    pattern : numpy.ndarray
        Shape (y, x), float32, photons, NaN where missing.

    Returns
    -------
    numpy.ndarray
        Photons in each square, float32: the mean of its pixels times their number; NaN where
        most pixels are missing. Squares at the far edges may be smaller, and count as whole.

    Examples
    --------
    >>> wide = np.zeros((2, 320), np.float32)
    >>> wide[0, :3] = [4, 2, np.nan]
    >>> shrink(wide)[0, :2]
    array([6., 0.], dtype=float32)
    """
    side = -(-pattern.shape[1] // WIDEST)
    rows, columns = (-(-n // side) for n in pattern.shape)
    padded = np.full((rows * side, columns * side), np.nan)
    padded[: pattern.shape[0], : pattern.shape[1]] = pattern
    squares = padded.reshape(rows, side, columns, side)
    inside = np.zeros(padded.shape, bool)
    inside[: pattern.shape[0], : pattern.shape[1]] = True
    n_inside = inside.reshape(squares.shape).sum(axis=(1, 3))
    n_here = np.isfinite(squares).sum(axis=(1, 3))
    out = np.full((rows, columns), np.nan)
    np.divide(np.nansum(squares, axis=(1, 3)), n_here, out=out, where=2 * n_here >= n_inside)
    return np.asarray(out * side**2, np.float32)


def choose_brightest(patterns: Mapping[int, Floats]) -> float:
    """Choose the intensity that gets the brightest colour, one for all patterns.

    Parameters
    ----------
    patterns : mapping of int to numpy.ndarray
        Patterns, photons.

    Returns
    -------
    float
        The 99.9th percentile of all lit pixels, at least 4 photons.
    """
    lit = [pattern[pattern > 0] for pattern in patterns.values()]
    values = np.concatenate(lit) if lit else np.zeros(0)
    return max(4.0, float(np.quantile(values, 0.999))) if len(values) else 4.0


def paint(pattern: Floats, brightest: float) -> str:
    """Turn a pattern into an image on a logarithmic scale.

    Parameters
    ----------
    pattern : numpy.ndarray
        Shape (y, x), float32, photons, NaN where missing.
    brightest : float
        Photons from which on the colour is the brightest.

    Returns
    -------
    str
        A PNG as a data URI, row 0 at the top: log(1 + photons), and missing pixels grey.
    """
    level = np.log1p(np.clip(np.nan_to_num(pattern), 0, brightest)) / np.log1p(brightest)
    codes = np.where(np.isnan(pattern), 255, np.round(level * 254)).astype(np.uint8)
    image = Image.fromarray(codes)
    colours = matplotlib.colormaps["inferno"](np.linspace(0, 1, 255), bytes=True)[:, :3]
    image.putpalette([*colours.ravel().tolist(), *bytes.fromhex(MISSING[1:])])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _selected_sheets(selected: npt.NDArray[np.bool_], score: Floats, seed: int) -> list[Sheet]:
    rows = np.flatnonzero(selected)
    if len(rows) <= N_CHECKED:
        title = f"All {len(rows)} selected frames, the highest score first"
        text = "To check by eye: each should be one whole particle."
        return [Sheet("check", title, text, _ranked(rows, score, N_CHECKED))]
    lowest = _ranked(rows, -score, N_SHEET)
    return [
        Sheet(
            "check",
            f"{N_CHECKED} selected frames at random",
            "To check by eye: the share of those that are not one whole particle is the impurity.",
            # Some of those in the powder sum, so that they are read once.
            draw(selected, N_POWDER, seed)[:N_CHECKED],
        ),
        Sheet("best", "Selected, the highest scores", "", _ranked(rows, score, N_SHEET)),
        Sheet("lowest", "Selected, closest to the threshold", "", lowest),
    ]


def _ranked(rows: Ints, score: Floats, n: int) -> Ints:
    return rows[np.argsort(-score[rows], kind="stable")[:n]]


def _blocks(
    selection: xr.Dataset, frames: xr.Dataset, config: Config, rows: Ints
) -> Iterator[tuple[Ints, xr.DataArray]]:
    """Give the patterns of a few frames at a time, lazily, in the order of the files."""
    names = selection["run_name"].values.astype(str)[selection["run"].values[rows]]
    table = pd.DataFrame({"run": names, "index": selection["index"].values[rows]})
    places = locate(table, frames) if len(rows) else rows
    order = np.argsort(places)
    for start in range(0, len(order), FRAMES_AT_ONCE):
        part = order[start : start + FRAMES_AT_ONCE]
        yield rows[part], preprocess(take_frames(frames, places[part]), config)["patterns"]


def _mean(total: npt.NDArray[np.float64], number: Ints) -> npt.NDArray[np.float64]:
    mean = np.full(total.shape, np.nan)
    np.divide(total, number, out=mean, where=number > 0)
    return mean
