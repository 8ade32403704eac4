"""The hits of an output folder, and what a baseline makes of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from spidask.config import Config
from spidask.errors import DataError, StoreError
from spidask.frames.polar import PolarGrid, polar_grid
from spidask.io import dragonfly, emc
from spidask.io.labels import IDENTITIES, read_labels
from spidask.io.tables import is_in, read_selection_csv, write_selection_csv
from spidask.records import read_json, write_json
from spidask.schema import REASONS

PER_BLOCK = 1000
"""Patterns read at once."""


@dataclass(frozen=True)
class Result:
    """What a baseline says of frames.

    Attributes
    ----------
    name : str
        What people call it.
    verdicts : pandas.DataFrame
        A row for each frame that was judged: run, index, score (larger is more like a single hit;
        NaN for none) and reason, a name in `schema.REASONS`: nothing where it is a single hit but
        for its size.
    seen : pandas.DataFrame
        Columns run and index of the frames whose labels were seen.
    n_parameters : int
        Numbers that were learned.
    patterns_per_second : float
        Patterns by the seconds that classifying them took; neither learning nor reading counts.
    """

    name: str
    verdicts: pd.DataFrame
    seen: pd.DataFrame
    n_parameters: int
    patterns_per_second: float


def find_hits(output: str | Path) -> pd.DataFrame:
    """List the hits whose patterns an output folder holds.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder of a run that was exported.

    Returns
    -------
    pandas.DataFrame
        A row for each pattern, in their order: frame (position in ``photons.h5``), run, index,
        diameter_nm (NaN = not sized), and the event ids where they are known.

    Raises
    ------
    StoreError
        If no hits were exported, or the table of frames lacks one of them.
    """
    folder = Path(output) / "dragonfly"
    if not (folder / "photons.h5").exists() or not (folder / "index.csv").exists():
        raise StoreError(f"{folder} holds no hits; run the stage export first", folder=str(folder))
    index = pd.read_csv(folder / "index.csv", dtype={"run": str})
    table = read_selection_csv(output)
    table = table[is_in(table, index)].astype({"run": str})
    hits = index.merge(table[["run", "index", "diameter_nm"]], on=["run", "index"])
    if len(hits) != len(index):
        raise StoreError(
            f"{output}: selection.csv lacks {len(index) - len(hits)} of the {len(index)} hits in "
            "dragonfly/index.csv; run it again until the stage export"
        )
    return hits.sort_values("frame", ignore_index=True)


def are_in_window(hits: pd.DataFrame, config: Config) -> npt.NDArray[np.bool_]:
    """Tell which hits are of the right size.

    Parameters
    ----------
    hits : pandas.DataFrame
        Column diameter_nm.
    config : Config
        Section `selection`.

    Returns
    -------
    numpy.ndarray
        Shape (hit,), bool; both ends of the size window belong to it.
    """
    return hits["diameter_nm"].between(*config.selection.size_window_nm).to_numpy()


def label_hits(hits: pd.DataFrame, config: Config) -> pd.Series[str]:
    """Look up what people say the hits are.

    Parameters
    ----------
    hits : pandas.DataFrame
        As of `find_hits`.
    config : Config
        Section `labels`, of which the truth is not read.

    Returns
    -------
    pandas.Series
        Name in `schema.CLASSES` for each hit, NaN without a label.

    Raises
    ------
    DataError
        If the labels name frames by ids that the hits do not have.
    """
    if config.labels.file is None:
        return pd.Series(np.nan, hits.index, dtype=object)
    labels = read_labels(config.labels.file, config.labels)
    identity = next(list(names) for names in IDENTITIES if set(names) <= set(labels))
    if not set(identity) <= set(hits):
        raise DataError(
            f"{config.labels.file}: names frames by {', '.join(identity)}, which the hits do not "
            "have; give labels by run,index"
        )
    joined = hits[identity].merge(labels[[*identity, "label"]], on=identity, how="left")
    return joined["label"].set_axis(hits.index)


def read_patterns(output: str | Path, hits: pd.DataFrame) -> Iterator[npt.NDArray[np.float32]]:
    """Read patterns of hits, block by block.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder.
    hits : pandas.DataFrame
        Column frame, increasing.

    Yields
    ------
    numpy.ndarray
        Shape (hit, y, x), float32, photons; NaN where a pixel is masked or missing.
    """
    folder = Path(output) / "dragonfly"
    shape, _, _ = _layout(folder)
    hidden = dragonfly.read_detector(folder / "detector.h5").mask == 2
    for start in range(0, len(hits), PER_BLOCK):
        rows = hits["frame"].to_numpy()[start : start + PER_BLOCK]
        patterns = emc.read_photons(folder / "photons.h5", rows).toarray().astype(np.float32)
        patterns[:, hidden] = np.nan
        missing = emc.read_missing(folder / "photons.h5", rows)
        for pattern, places in zip(patterns, missing, strict=True):
            pattern[places] = np.nan
        yield patterns.reshape(-1, *shape)


def make_grid(output: str | Path, config: Config, n_rings: int, n_angles: int) -> PolarGrid:
    """Divide the patterns of an output folder into rings and angles.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder.
    config : Config
        Section `geometry`; runs of one folder hardly differ in it.
    n_rings, n_angles : int
        How many of either.

    Returns
    -------
    PolarGrid
        Rings around the beam, from the nearest pixel to the nearer of the far edges.
    """
    folder = Path(output) / "dragonfly"
    shape, corner, width = _layout(folder)
    first = pd.read_csv(folder / "index.csv", dtype={"run": str}, nrows=1)
    place = config.geometry_of(first["run"].item())
    centre = (place.beam_centre_y_px, place.beam_centre_x_px)
    y, x = (
        (at - start - (width - 1) / 2) / width for at, start in zip(centre, corner, strict=True)
    )
    reach = min(max(at, size - at) for at, size in zip((y, x), shape, strict=True))
    near = max(max(-at, at - size, 0) for at, size in zip((y, x), shape, strict=True))
    return polar_grid(shape, (y, x), (near, reach), n_rings, n_angles)


def is_done(output: str | Path, name: str, settings: Mapping[str, Any]) -> bool:
    """Tell whether a baseline has judged the hits of an output folder.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder.
    name : str
        Folder of the baseline in it.
    settings : mapping
        Settings on which the result depends, as they are now.

    Returns
    -------
    bool
        True if its result is there, and not if nothing but other classes were chosen since.

    Raises
    ------
    StoreError
        If the result is of other settings or other hits; names the keys.
    """
    folder = Path(output) / name
    if not (folder / "row.json").exists():
        return False
    stored = read_json(folder / "members" / "training.json")["settings"]
    now = _sign(Path(output), settings)
    changed = [key for key in {**stored, **now} if stored.get(key) != now.get(key)]
    if changed == ["em.classes"]:  # people choose after they have seen the pictures
        return False
    if changed:
        raise StoreError(
            f"{folder} was made with other settings: {', '.join(changed)}. Set them back, or "
            f"remove {folder}",
            changed=changed,
        )
    return True


def write_result(
    output: str | Path, name: str, result: Result, settings: Mapping[str, Any], config: Config
) -> None:
    """Write a baseline's selection in the form of the output folder's own.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder.
    name : str
        Folder of the baseline in it.
    result : Result
        What the baseline says.
    settings : mapping
        Settings on which the result depends, for `is_done`.
    config : Config
        Section `selection`, of which the size window is used.

    Notes
    -----
    ``selection.csv`` has a row for every frame of the folder's; ``members/training.json`` holds
    the frames whose labels were seen, which `compare` leaves out, and the settings; ``row.json``
    comes last. Frames that were not judged are misses where the folder says so, else of a wrong
    size: nobody judges hits outside the size window.
    """
    folder = Path(output) / name
    seen = result.seen.groupby(result.seen["run"].astype(str))["index"]
    frames = {run: sorted(map(int, index)) for run, index in seen}
    write_json(
        folder / "members" / "training.json",
        {"settings": _sign(Path(output), settings), "frames": frames},
    )
    table = read_selection_csv(output)
    verdicts = result.verdicts.astype({"run": table["run"].dtype})
    write_selection_csv(_decide(table, verdicts, config), folder / "selection.csv")
    row = {
        "name": result.name,
        "n_parameters": result.n_parameters,
        "patterns_per_second": result.patterns_per_second,
        "device": "cpu",
    }
    write_json(folder / "row.json", row)


def _decide(table: pd.DataFrame, verdicts: pd.DataFrame, config: Config) -> xr.Dataset:
    columns = ["run", "index"]
    found = table[columns].merge(verdicts[[*columns, "score", "reason"]], on=columns, how="left")
    codes = {name: code for code, name in enumerate(REASONS)}
    before = table["reason"].map(codes).to_numpy(np.uint8)
    stands = table["reason"].isin(["unreadable", "miss"])
    unjudged = np.where(stands, before, codes["size"])
    judged = found["reason"].map(codes).to_numpy(float)
    reason = np.where(np.isnan(judged), unjudged, judged).astype(np.uint8)
    reason[(reason == 0) & ~are_in_window(table, config)] = codes["size"]
    run = table["run"].cat
    return xr.Dataset(
        {
            "run": ("frame", run.codes.to_numpy(np.int32)),
            "run_name": ("run_code", run.categories.to_numpy(str)),
            "index": ("frame", table["index"].to_numpy()),
            "selected": ("frame", reason == 0),
            "reason": ("frame", reason),
            "score": ("frame", found["score"].to_numpy(np.float32)),
            "diameter": ("frame", table["diameter_nm"].to_numpy()),
        }
    )


def sign_hits(output: str | Path, hits: pd.DataFrame, settings: Mapping[str, Any]) -> str:
    """Sign some hits of an output folder together with settings.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder.
    hits : pandas.DataFrame
        Columns run and index.
    settings : mapping
        What JSON can hold.

    Returns
    -------
    str
        Another one if the photons, the hits or the settings are others.
    """
    which = hits[["run", "index"]].astype(str).to_csv(index=False)
    text = json.dumps([_sign(Path(output), settings), which], sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _sign(output: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    with h5py.File(output / "dragonfly" / "photons.h5") as file:
        return {**settings, "hits": str(file.attrs["fingerprint"])}


def _layout(folder: Path) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Shape of a pattern, its corner in the full frame, and the pixels summed along an axis."""
    with h5py.File(folder / "photons.h5") as file:
        shape, corner = (tuple(json.loads(file.attrs[name])) for name in ("shape", "corner"))
        return shape, corner, int(file.attrs["bin"])
