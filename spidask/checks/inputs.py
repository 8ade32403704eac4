"""What is wrong with files, maps and geometry."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import h5py
import numpy as np

from spidask.checks.problems import Beamtime, Problem, as_problem, finds
from spidask.config import PICTURES
from spidask.errors import ConfigError, DataError, SpidaskError
from spidask.frames.hits import looks_like_only_hits
from spidask.io.beamtime import judge_ids
from spidask.io.calibration import usable_share
from spidask.io.hdf5 import open_hdf5
from spidask.io.links import find_mask
from spidask.io.runs import take_frames
from spidask.networks.cost import measure_networks
from spidask.preprocessing import preprocess
from spidask.provenance import awaits_simulation

MANY_GFLOP = 0.3
"""Three times what the region of the 2018 experiment costs."""
ENERGY_REMEDY = "geometry.photon_energy_ev is taken for them"
ODD_IDS = {
    "repeated_frames": ("runs.identity", "labels by run and index cannot tell them apart"),
    "repeated_ids": ("runs.files", "labels and events cannot tell them apart"),
    "unordered_ids": ("runs.files", "they stay in the order of the files"),
    "without_event": ("events.files", "they have no energies; give the files of all runs"),
    "with_several_events": ("events.files", "they have no energies; give each file once"),
    "without_photon_energy": ("geometry", ENERGY_REMEDY),
    "implausible_photon_energy": ("geometry", f"{ENERGY_REMEDY}; correct it if it is wrong"),
}
"""What `judge_ids` counts: the setting's path, and what follows."""
N_SAMPLED = 64
"""Frames that are read of a run to see whether it holds only hits, from at most two runs."""
FEW_PIXELS = 0.1
"""A mask that leaves less than this share of the region is probably read the wrong way round."""
FAR_OUTSIDE = 0.25
"""A beam further outside than this share of the frame's longer side is probably a mistake."""


@finds
def _unusable_files(beamtime: Beamtime) -> Iterator[Problem]:
    """Files, maps and labels that cannot be used, as they show when they are opened."""
    _ = beamtime.frames, beamtime.recipes, beamtime.labels
    yield from beamtime.trouble


@finds
def _several_regions(beamtime: Beamtime) -> Iterator[Problem]:
    """Regions of interest that differ between runs."""
    regions = {recipe.region for recipe in beamtime.recipes.values()}
    if len(regions) > 1:
        yield Problem(
            "per_run", f"gives {len(regions)} regions of interest; all runs must share one"
        )


@finds
def _odd_region(beamtime: Beamtime) -> Iterator[Problem]:
    """A region that is too small for the handoff, or costs the network much."""
    for y0, y1, x0, x1 in {recipe.region for recipe in beamtime.recipes.values()}:
        shape, width = (y1 - y0, x1 - x0), beamtime.config.handoff.bin
        if width > min(shape):
            yield Problem(
                "handoff.bin",
                f"{width} is more than the region of {shape[0]} x {shape[1]} pixels; lower it",
            )
        try:
            cost = measure_networks(beamtime.config, shape).gflop
        except ConfigError as error:
            yield as_problem(error, "preprocessing.region")
            return
        except SpidaskError:
            return  # told where members are checked
        # The size of pictures is a setting.
        if cost > MANY_GFLOP and beamtime.config.training.architecture not in PICTURES:
            yield Problem(
                "preprocessing.region",
                f"{shape[0]} x {shape[1]} pixels cost the network {cost:.2g} GFLOP a pattern; "
                "give the part of the frame that holds the signal (`spidask geometry` finds it)",
                "warning",
            )


@finds
def _unlinkable_frames(beamtime: Beamtime) -> Iterator[Problem]:
    """A virtual CXI of runs that no virtual dataset can lead to."""
    frames = beamtime.frames
    if frames is None or beamtime.config.handoff.cxi != "virtual":
        return
    if any(recipe.assembly or recipe.bin > 1 for recipe in beamtime.recipes.values()):
        yield Problem(
            "handoff.cxi",
            "virtual is of raw frames, and preprocessing.assembly or bin makes other pixels of "
            "them; set copy",
        )
        return
    places = (frames[name].values.tolist() for name in ("file_path", "file_dataset"))
    for path, dataset in zip(*places, strict=True):
        if not h5py.is_hdf5(path) or open_hdf5(path, dataset).ndim != 3:
            yield Problem(
                "handoff.cxi",
                f"virtual is for stacks (frame, y, x) in HDF5 files, and {path} is none; set copy",
            )
            return


@finds
def _masked_region(beamtime: Beamtime) -> Iterator[Problem]:
    """A mask that leaves nothing, or next to nothing, of the region."""
    good = beamtime.config.runs.mask_good
    for recipe in beamtime.recipes.values():
        if recipe.mask is None:
            continue
        share = usable_share(recipe)
        if share < FEW_PIXELS:
            yield Problem(
                "runs.mask",
                f"{recipe.mask} leaves {share:.1%} of the region of interest; correct "
                f"preprocessing.region, or runs.mask_good, which is {good}",
                "warning" if share else "error",
            )


@finds
def _unused_masks(beamtime: Beamtime) -> Iterator[Problem]:
    """A mask beside the frames that no setting names."""
    frames, runs = beamtime.frames, beamtime.config.runs
    if frames is None or runs.mask:
        return
    for path, dataset in zip(
        frames["file_path"].values, frames["file_dataset"].values, strict=True
    ):
        if place := find_mask(path, dataset):
            yield Problem(
                path,
                f"has a mask that is not used; set runs.mask to ':{place}', and runs.mask_good "
                "(zero for the bits of CXI)",
                "warning",
            )


@finds
def _odd_ids(beamtime: Beamtime) -> Iterator[Problem]:
    """Event ids and photon energies that are missing, repeated, out of order or implausible."""
    frames = beamtime.frames
    if frames is None:
        return
    try:
        odd = judge_ids(frames, beamtime.config)
    except DataError as error:
        yield Problem("events.files", str(error))
        return
    for name, n_frames in odd.items():
        place, remedy = ODD_IDS[name]
        yield Problem(
            place,
            f"{n_frames} of {frames.sizes['frame']} frames: {name.replace('_', ' ')}; {remedy}",
            "warning",
        )


@finds
def _unmatched_settings(beamtime: Beamtime) -> Iterator[Problem]:
    """Settings for runs that are not there."""
    for pattern in beamtime.config.per_run:
        if beamtime.runs and not any(fnmatchcase(run, pattern) for run in beamtime.runs):
            named = ", ".join(beamtime.runs[:5])
            yield Problem(f"per_run.{pattern}", f"matches no run; runs are {named}", "warning")


@finds
def _odd_geometry(beamtime: Beamtime) -> Iterator[Problem]:
    """A beam centre far from the frame."""
    for run, recipe in beamtime.recipes.items():
        place, shape = beamtime.config.geometry_of(run), recipe.image
        centre = (place.beam_centre_y_px, place.beam_centre_x_px)
        outside = max(max(-c, c - n + 1) for c, n in zip(centre, shape, strict=True))
        if outside > FAR_OUTSIDE * max(shape):
            yield Problem(
                "geometry",
                f"the beam at y {centre[0]:g}, x {centre[1]:g} is {outside:.0f} px outside of the "
                f"frame {shape}; correct geometry.beam_centre_y_px and beam_centre_x_px",
                "warning",
            )


@finds
def _no_particle(beamtime: Beamtime) -> Iterator[Problem]:
    """A particle to simulate whose file is missing."""
    section = beamtime.config.simulation
    if section and awaits_simulation(beamtime.config):
        particle = section.sample.particle
        if particle != "icosahedron" and not Path(particle).is_file():
            yield Problem(
                "simulation.sample.particle",
                f"{particle} is not there; give icosahedron, or a PDB, mmCIF or MRC file",
            )


@finds
def _bad_threshold(beamtime: Beamtime) -> Iterator[Problem]:
    """A hit threshold under which nothing, or nothing of use, is found."""
    hits, recipes = beamtime.config.hits, beamtime.recipes
    if not recipes:
        return
    y0, y1, x0, x1 = next(iter(recipes.values())).region
    n_pixels = (y1 - y0) * (x1 - x0)
    if isinstance(hits.threshold, float) and hits.threshold >= n_pixels:
        yield Problem(
            "hits.threshold",
            f"{hits.threshold:g} is not below the {n_pixels} pixels of the region, so nothing is "
            "a hit; give a smaller score, or adaptive",
        )
    if hits.threshold == "adaptive" and _holds_only_hits(beamtime, n_pixels):
        yield Problem(
            "hits.threshold",
            "adaptive finds no hits where most frames are hits, and these files seem to hold "
            "only hits; set hits.threshold=none",
            "warning",
        )


def _holds_only_hits(beamtime: Beamtime, n_pixels: int) -> bool:
    frames, hits = beamtime.frames, beamtime.config.hits
    assert frames is not None
    codes, found = frames["run"].values, []
    for code in {int(codes[0]), int(codes[-1])}:
        first, end = np.searchsorted(codes, [code, code + 1])
        rows = np.unique(np.linspace(first, end - 1, N_SAMPLED).astype(int))
        scores = preprocess(take_frames(frames, rows), beamtime.config)["hit_score"].values
        found.append(
            looks_like_only_hits(scores, n_pixels, window=hits.window, n_sigma=hits.n_sigma)
        )
    return all(found)
