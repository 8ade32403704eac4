"""The vocabulary: every variable a Dataset may hold, declared once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from spidask.errors import DataError

CLASSES = ("background", "single", "multiple", "contaminant")
"""Class names of labels and truth; a class code is an index into this tuple."""

REASONS = ("", "unreadable", "miss", "not_single", "size")
"""Why a frame is not selected, in the order in which reasons apply; code 0 is selected."""


@dataclass(frozen=True)
class Variable:
    """One entry of the vocabulary.

    Attributes
    ----------
    dims : tuple of str
        Dimensions in order.
    dtype : str
        NumPy dtype, or a kind: "number" (any integer or float), "integer" or "text".
    units : str
        Unit, "1" for a pure number.
    meaning : str
        One sentence.
    """

    dims: tuple[str, ...]
    dtype: str
    units: str
    meaning: str


FRAME = ("frame",)
VARIABLES: dict[str, Variable] = {
    "frames": Variable(("frame", "y", "x"), "number", "ADU", "Raw detector frames."),
    "run": Variable(FRAME, "int32", "1", "Code of the run, an index into run_name."),
    "index": Variable(FRAME, "int64", "1", "Position of the frame in its run."),
    "file": Variable(FRAME, "int32", "1", "Code of the file, an index into file_path."),
    "row": Variable(FRAME, "int64", "1", "Position of the frame in its file."),
    "run_name": Variable(("run_code",), "text", "1", "Names of the runs."),
    "file_path": Variable(("file_code",), "text", "1", "Paths of the files."),
    "file_dataset": Variable(
        ("file_code",), "text", "1", "Paths of the stacks of frames inside the files."
    ),
    "file_frames": Variable(("file_code",), "int64", "1", "Number of frames in the files."),
    "trainId": Variable(FRAME, "integer", "1", "European XFEL train."),
    "pulseId": Variable(FRAME, "integer", "1", "European XFEL pulse in its train."),
    "cellId": Variable(FRAME, "integer", "1", "Memory cell of the detector."),
    "timestamp": Variable(FRAME, "integer", "1", "LCLS event time stamp."),
    "fiducial": Variable(FRAME, "integer", "1", "LCLS fiducial."),
    "eventNumber": Variable(FRAME, "integer", "1", "LCLS number of the event in its run."),
    "photon_energy": Variable(
        FRAME, "float64", "eV", "Photon energy as the facility measured it; NaN = not known."
    ),
    "pulse_energy": Variable(
        FRAME, "float64", "mJ", "Pulse energy as the facility measured it; NaN = not known."
    ),
    "n_events": Variable(
        FRAME, "int32", "1", "Events in the small data that have the frame's ids; 1 = joined."
    ),
    "patterns": Variable(
        ("frame", "y", "x"), "float32", "photons", "Calibrated region of interest; NaN = missing."
    ),
    "readable": Variable(FRAME, "bool", "1", "The frame could be read and holds numbers."),
    "photon_count": Variable(FRAME, "float32", "photons", "Sum of the pattern."),
    "lit_pixels": Variable(FRAME, "int32", "1", "Pixels above the lit threshold."),
    "hit_score": Variable(
        FRAME, "float32", "1", "Lit pixels per usable pixel, times the pixels of the region."
    ),
    "hit": Variable(FRAME, "bool", "1", "The frame is a hit."),
    "scores": Variable(
        ("frame", "member"), "float32", "1", "Calibrated probability of a single hit; NaN = miss."
    ),
    "score": Variable(
        FRAME, "float32", "1", "Smallest margin of the scores over the members' thresholds."
    ),
    "diameter": Variable(FRAME, "float32", "nm", "Volume-equivalent diameter; NaN = not sized."),
    "fit_quality": Variable(FRAME, "float32", "1", "Explained share of the radial average."),
    "fluence": Variable(
        FRAME,
        "float32",
        "photons/um^2",
        "Photons that hit the particle, if it is a solid sphere of protein; NaN = not sized.",
    ),
    "trained_on": Variable(FRAME, "bool", "1", "The frame was used in training or validation."),
    "selected": Variable(FRAME, "bool", "1", "The frame is in the selection."),
    "reason": Variable(FRAME, "uint8", "1", "Why not selected: code into schema.REASONS."),
}


def annotate(dataset: xr.Dataset) -> xr.Dataset:
    """Give every variable of the vocabulary its unit and meaning.

    Parameters
    ----------
    dataset : xarray.Dataset
        Any Dataset; names outside the vocabulary are left alone.

    Returns
    -------
    xarray.Dataset
        The same variables with ``units`` and ``long_name`` in their attributes.
    """
    out = dataset.copy()
    for name in map(str, out.variables):
        if name in VARIABLES:
            entry = VARIABLES[name]
            out[name].attrs = {**out[name].attrs, "units": entry.units, "long_name": entry.meaning}
    return out


def validate(dataset: xr.Dataset, *names: str) -> None:
    """Refuse a Dataset that lacks a variable or holds it in another form.

    Parameters
    ----------
    dataset : xarray.Dataset
        The Dataset to look at; nothing is computed.
    *names : str
        Names of the vocabulary that have to be there.

    Raises
    ------
    DataError
        If a variable is missing or its dimensions or dtype are not those of the vocabulary.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> validate(xr.Dataset({"hit": ("frame", np.zeros(3, bool))}), "hit")
    """
    for name in names:
        entry = VARIABLES[name]
        if name not in dataset.variables:
            raise DataError(f"the Dataset has no variable '{name}' ({entry.meaning})", name=name)
        found = dataset[name]
        if found.dims != entry.dims:
            raise DataError(
                f"'{name}' has dimensions {found.dims}, expected {entry.dims}", name=name
            )
        if not _fits(found.dtype, entry.dtype):
            raise DataError(f"'{name}' has dtype {found.dtype}, expected {entry.dtype}", name=name)


def _fits(found: np.dtype[np.generic], expected: str) -> bool:
    if expected == "number":
        return found.kind in "iuf"
    if expected == "integer":
        return found.kind in "iu"
    if expected == "text":
        return found.kind in "UOT"
    return found == np.dtype(expected)
