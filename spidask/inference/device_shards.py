"""A shard on a GPU: nothing but raw regions goes there, and nothing but numbers comes back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from spidask.config import Config, Hits
from spidask.frames import geometry, hits, sizing
from spidask.inference.scoring import score_patterns
from spidask.io.calibration import load_calibration, recipe_of
from spidask.networks import preprocess, spheres
from spidask.networks.staging import Parts, stage
from spidask.preprocessing import SIZES, TAKEN, Calibrated, load_library
from spidask.schema import annotate
from spidask.stopwatch import measure

SCORED_AT_ONCE = 256
"""Hits kept on the device until they are scored, so that batches are full."""

Labels = dict[str, npt.NDArray[Any]]
Ratio = npt.NDArray[np.float64] | None


def label_on_device(
    frames: xr.Dataset,
    inside: slice,
    members: Sequence[str | Path],
    config: Config,
    device: torch.device,
    n_threads: int,
) -> xr.Dataset:
    """Label frames of one run on a device.

    Parameters
    ----------
    frames : xarray.Dataset
        Raw frames as `open_runs` gives them, of one run, whole windows of the hits.
    inside : slice
        Positions of those whose hits are scored and sized.
    members : sequence of str or pathlib.Path
        The members' files.
    config : Config
        All sections that determine a label.
    device : torch.device
        What computes.
    n_threads : int
        Threads that read.

    Returns
    -------
    xarray.Dataset
        The variables of `label_lazily` for the frames inside, those that are computed in memory.

    Notes
    -----
    The device holds the blocks that `stage` sends ahead, the patterns of the windows that wait for
    their hit threshold, and up to `SCORED_AT_ONCE` hits besides those of the last windows.
    """
    name = str(frames["run_name"].values[frames["run"].values[0]])
    place = config.geometry_of(name)
    recipe = recipe_of(config, name, (frames.sizes["y"], frames.sizes["x"]))
    maps = preprocess.to_device(load_calibration(recipe), device)
    y0, y1, x0, x1 = recipe.region
    library = load_library(place, config.sizing, (y0, x0), (y1 - y0, x1 - x0))
    spheres_there = spheres.to_device(library, device)
    ratio = _energy_ratio(frames, place.photon_energy_ev)
    in_photons = recipe.adu_per_photon == 1

    def read(block: slice) -> Parts:
        regions = (frames["frames"].data[block, y0:y1, x0:x1] for y0, y1, x0, x1 in recipe.read)
        return [region.compute(scheduler="synchronous") for region in regions]

    blocks, ends = cut_blocks(frames["frames"].data.chunks[0], config.hits)
    labels = _nothing_yet(frames.sizes["frame"], len(members))
    paths = [str(path) for path in members]
    windows: list[torch.Tensor] = []  # patterns whose threshold is not known yet
    found: list[tuple[npt.NDArray[np.intp], torch.Tensor]] = []  # hits that are not scored yet
    for block, raw in zip(blocks, stage(read, blocks, device, n_threads), strict=True):
        known = None if in_photons else _at(ratio, block)
        one = _calibrate(raw, maps, known, config.hits.lit_photons)
        for variable, (_, _, take) in TAKEN.items():
            if variable != "patterns":
                labels[variable][block] = take(one)
        windows.append(one.patterns)
        if block.stop not in ends:
            continue
        start = block.stop - sum(map(len, windows))
        labels["hit"][start : block.stop] = _find_hits(labels, slice(start, block.stop), config)
        rows = np.flatnonzero(labels["hit"][: block.stop])
        rows = rows[(rows >= max(start, inside.start)) & (rows < inside.stop)]
        patterns = _take(windows, rows - start)
        labels["sizes"][rows] = _fit(patterns, _at(ratio, rows), spheres_there)
        found.append((rows, patterns))
        windows.clear()
        if sum(len(rows) for rows, _ in found) >= SCORED_AT_ONCE:
            _score(found, labels, paths, config)
    _score(found, labels, paths, config)
    return _describe(frames, labels).isel(frame=inside)


def cut_blocks(chunks: tuple[int, ...], settings: Hits) -> tuple[list[slice], set[int]]:
    """Cut blocks of frames where windows of the hits end.

    Parameters
    ----------
    chunks : tuple of int
        Frames that are read at once, one after the other, from the start of a window.
    settings : Hits
        Section `hits`.

    Returns
    -------
    blocks : list of slice
        Positions of the blocks.
    ends : set of int
        Where those end up to which hits can be told from the frames before.

    Examples
    --------
    >>> blocks, ends = cut_blocks((90, 90, 30), Hits(window=100))
    >>> [block.stop for block in blocks], sorted(ends)
    ([90, 100, 180, 210], [100, 210])
    """
    edges = np.cumsum(chunks)
    ends = edges
    if settings.threshold == "adaptive":
        ends = np.cumsum(hits.align_to_windows(chunks, settings.window))
    starts = np.union1d(edges, ends).tolist()
    blocks = [slice(a, b) for a, b in zip([0, *starts], starts, strict=False) if a < b]
    return blocks, set(ends.tolist())


def _nothing_yet(n_frames: int, n_members: int) -> Labels:
    labels: Labels = {
        name: np.empty(n_frames, dtype)
        for name, (_, dtype, _) in TAKEN.items()
        if name != "patterns"
    }
    labels["hit"] = np.zeros(n_frames, bool)
    labels["scores"] = np.full((n_frames, n_members), np.nan, np.float32)
    labels["sizes"] = np.full((n_frames, len(SIZES)), np.nan, np.float32)
    return labels


def _energy_ratio(frames: xr.Dataset, expected: float) -> Ratio:
    if "photon_energy" not in frames.variables:
        return None
    return geometry.energy_ratio(frames["photon_energy"].values, expected)


def _at(ratio: Ratio, frames: slice | npt.NDArray[np.intp]) -> Ratio:
    return None if ratio is None else ratio[frames]


@measure("preprocess")
def _calibrate(
    raw: torch.Tensor, maps: preprocess.DeviceCalibration, ratio: Ratio, lit_photons: float
) -> Calibrated:
    patterns, counts = preprocess.calibrate(raw, maps, ratio, lit_photons=lit_photons)
    return Calibrated(patterns, counts.cpu().numpy())


def _find_hits(labels: Labels, frames: slice, config: Config) -> npt.NDArray[np.bool_]:
    score, lit, readable = (labels[n][frames] for n in ("hit_score", "lit_pixels", "readable"))
    return np.asarray(hits.apply_threshold(score, lit, readable, config.hits))


def _take(blocks: Sequence[torch.Tensor], rows: npt.NDArray[np.intp]) -> torch.Tensor:
    """Patterns of some rows of blocks that lie one after the other."""
    ends = np.cumsum([len(block) for block in blocks])
    parts = np.split(rows, np.searchsorted(rows, ends[:-1]))
    starts = ends - [len(block) for block in blocks]
    return torch.cat(
        [
            block[torch.from_numpy(part - start).to(block.device)]
            for block, part, start in zip(blocks, parts, starts, strict=True)
        ]
    )


@measure("size")
def _fit(
    patterns: torch.Tensor, ratio: Ratio, library: spheres.DeviceLibrary
) -> npt.NDArray[np.float32]:
    fitted = spheres.fit_patterns(patterns, library)
    if ratio is not None:
        fitted[:, 0], fitted[:, 2] = sizing.rescale(fitted[:, 0], fitted[:, 2], ratio)
    return fitted


def _score(
    found: list[tuple[npt.NDArray[np.intp], torch.Tensor]],
    labels: Labels,
    paths: Sequence[str],
    config: Config,
) -> None:
    if found:
        rows, patterns = zip(*found, strict=True)
        found.clear()
        labels["scores"][np.concatenate(rows)] = score_patterns(torch.cat(patterns), paths, config)


def _describe(frames: xr.Dataset, labels: Labels) -> xr.Dataset:
    sizes = labels.pop("sizes")
    labels |= {name: sizes[:, i] for i, name in enumerate(SIZES)}
    variables = {name: (("frame", "member")[: v.ndim], v) for name, v in labels.items()}
    return annotate(frames.drop_vars(["frames", "y", "x"], errors="ignore").assign(variables))
