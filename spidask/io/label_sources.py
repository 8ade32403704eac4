"""Labels as other programs write them, each read into a table of frames and class names.

Every reader gives a DataFrame with the columns that name a frame and ``label``; its index counts
the lines or the frames of the file, and ``attrs["unit"]`` says which of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import numpy.typing as npt
import pandas as pd

from spidask.config import Labels
from spidask.errors import DataError
from spidask.io.arrays import find_array, read_array, read_whole
from spidask.io.events import MISSING_INTEGER, find_ids
from spidask.io.identity import name_runs, refuse_lost_names
from spidask.io.layout import find_arrays
from spidask.io.maps import split_location
from spidask.io.stack import read_event_ids
from spidask.io.tables import COLUMNS, read_selection_csv
from spidask.io.text_tables import read_text_table, whole_numbers
from spidask.schema import CLASSES

USUAL_TAGS = ("entry_*/instrument_*/detector_*/tags", "entry_*/image_*/tags")
"""Places of tags in CXI 1.5."""
FROM_SELECTION = {"": "single", "not_single": "multiple"}
"""Reason of a selection to the class it stands for; other reasons give no label."""
EVENT_RUN = "{exp}_{run:04d}"
"""Name of the run that belongs to a row of ``exp,run,event_num``: the stem of its CXI file."""
NAMED_BY = (("trainId", "pulseId"), ("timestamp", "fiducial"), ("timestamp",))
"""Event ids that name a frame, in the order in which they are taken."""


def is_selection(path: str) -> bool:
    """Tell whether a path is an output folder of ours, or the selection in it.

    Parameters
    ----------
    path : str
        A file or a folder.

    Returns
    -------
    bool
        True for folders, and for CSV files with the columns of a selection.
    """
    return Path(path).is_dir() or _first_line(path) == ",".join(COLUMNS)


def read_selection(path: str) -> pd.DataFrame:
    """Read the labels that a selection implies.

    Parameters
    ----------
    path : str
        Output folder or its ``selection.csv``.

    Returns
    -------
    pandas.DataFrame
        Selected frames as single hits, frames that are not single as multiple ones.
    """
    table = read_selection_csv(path)
    table.index += 2
    table["label"] = table["reason"].astype(str).map(FROM_SELECTION)
    table = table.dropna(subset="label")
    out = table[["run", "index", "label"]].astype({"run": str, "label": str})
    out.attrs["unit"] = "line"
    return out


def are_letters(path: str) -> bool:
    """Tell whether a file holds one letter a frame.

    Parameters
    ----------
    path : str
        A text file.

    Returns
    -------
    bool
        True if no line has more than one character; a table has a header.
    """
    try:
        with open(path) as file:
            lengths = {len(line.strip()) for line in file}
    except (OSError, UnicodeDecodeError):
        return False
    return bool(lengths) and lengths <= {0, 1}


def read_letters(path: str, settings: Labels) -> pd.DataFrame:
    """Read the classes that people gave to frames in Dragonfly.

    Parameters
    ----------
    path : str
        Text, one letter a line and a line a frame; a frame without a letter has no label.
    settings : Labels
        `letters` and `run`. Without a `run` the frames are those of ``index.csv`` in the same
        folder, which lies beside the photons that we hand over.

    Returns
    -------
    pandas.DataFrame
        By run and index.

    Raises
    ------
    DataError
        If nothing says which frames these are, or a letter has no class.

    Notes
    -----
    Source: ``my_classes.dat`` of Dragonfly's classifier, utils/py_src/classes.py.
    """
    letters = [line.strip() for line in Path(path).read_text().splitlines()]
    beside = Path(path).with_name("index.csv")
    if settings.run is not None:
        table = pd.DataFrame({"run": settings.run, "index": range(len(letters))}, dtype=object)
    elif beside.is_file():
        table = _read_frames(str(beside))
    else:
        raise DataError(
            f"{path}: holds letters of frames, but not of which run; set labels.run", path=path
        )
    if len(table) != len(letters) or not {"run", "index"} <= set(table):
        raise DataError(
            f"{path}: {len(letters)} letters, but {beside} names {len(table)} frames; set "
            "labels.run",
            path=path,
        )
    table = table[["run", "index"]].assign(label=letters)
    table.index += 1
    table = table[table["label"] != ""]
    return translate(table, path, "line", settings.letters, "labels.letters")


def _read_frames(path: str) -> pd.DataFrame:
    """Read the frames that letters are of, and the places that these have in their runs."""
    table = read_text_table(path)
    if not {"run", "index"} <= set(table):
        raise DataError(f"{path}: has no columns run and index; set labels.run", path=path)
    return table.assign(index=whole_numbers(table["index"], path)).reset_index(drop=True)


def name_events(table: pd.DataFrame, path: str, settings: Labels) -> pd.DataFrame:
    """Name the frames of a table of ``exp,run,event_num,label``.

    Parameters
    ----------
    table : pandas.DataFrame
        The columns as text, lines as index.
    path : str
        Its file, for the messages.
    settings : Labels
        `run`, a pattern with ``{exp}`` and ``{run}``.

    Returns
    -------
    pandas.DataFrame
        Columns run, eventNumber and label, as text.

    Raises
    ------
    DataError
        If a run is no number, or the pattern is none.

    Notes
    -----
    Source: the label tables of speckleNN (Wang et al., IUCrJ 10 (2023) 568), whose event numbers
    are those of ``LCLS/eventNumber`` in files named ``{exp}_{run:04d}.cxi``.
    """
    pattern = settings.run or EVENT_RUN
    names = []
    for line, exp, run in zip(table.index, table["exp"], table["run"], strict=True):
        if not run.strip().isdecimal():
            raise DataError(f"{path}, line {line}: run '{run}' is no number", path=path, line=line)
        try:
            names.append(pattern.format(exp=exp.strip(), run=int(run)))
        except (KeyError, IndexError, ValueError) as error:
            raise DataError(
                f"labels.run: '{pattern}' is no pattern of {{exp}} and {{run}}: {error}"
            ) from None
    return pd.DataFrame(
        {"run": names, "eventNumber": table["event_num"], "label": table["label"]}, dtype=object
    )


def is_hdf5(path: str) -> bool:
    """Tell whether labels lie in an HDF5 file.

    Parameters
    ----------
    path : str
        A path, or ``file:dataset``.

    Returns
    -------
    bool
        True if the file begins as HDF5 files do.
    """
    file = path if Path(path).is_file() else split_location(path)[0]
    return bool(h5py.is_hdf5(file))


def read_hdf5(path: str, settings: Labels) -> pd.DataFrame:
    """Read the tags of a CXI file, or codes beside event ids.

    Parameters
    ----------
    path : str
        The file, for tags; ``file:dataset`` for codes, one for each frame, or for tags elsewhere.
    settings : Labels
        `tags` or `codes`; and `run`, else frames are named by the arrays ``run`` and ``index``
        of the first entry, by event ids, or by the file's name and their place in it.

    Returns
    -------
    pandas.DataFrame
        A row for each frame that has a label.

    Raises
    ------
    DataError
        If there are neither, a tag or a code has no class, a frame has several classes, or what
        names the frames is there and cannot be opened.
    """
    name, dataset = (path, None) if Path(path).is_file() else split_location(path)
    try:
        with h5py.File(name, "r", locking=False) as file:
            place = dataset or _find_tags(file, name)
            array = find_array(file, place)
            if array is None or array.ndim not in (1, 2):
                raise DataError(
                    f"{name}: has no list of codes or tags '{place}'; give file.h5:dataset",
                    path=name,
                )
            read = _read_tags if array.ndim == 2 else _read_codes
            labels = read(array, name, settings)
            columns = _identify(file, place, len(labels), name, settings)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: labels cannot be read: {' '.join(str(error).split())}", path=name
        ) from error
    table = pd.DataFrame({**columns, "label": labels})
    table = table[table["label"] != ""]
    table.attrs["unit"] = "frame"
    return table


def _find_tags(file: h5py.File, path: str) -> str:
    for place in USUAL_TAGS:
        found = find_arrays(file, place, ndim=2)
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(f"{path}: has tags in {', '.join(found)}; give {path}:{found[0]}")
    raise DataError(
        f"{path}: has no tags (looked for {' and '.join(USUAL_TAGS)}); give file.h5:dataset for "
        "codes",
        path=path,
    )


def _read_tags(array: h5py.Dataset, path: str, settings: Labels) -> npt.NDArray[np.object_]:
    set_here = read_whole(array, path) > 0
    given = np.ravel(array.attrs.get("headings", [f"Tag {n + 1}" for n in range(len(set_here))]))
    names = [n.decode() if isinstance(n, bytes) else str(n) for n in given.tolist()]
    if len(names) != len(set_here):
        raise DataError(f"{path}: {len(names)} headings for {len(set_here)} tags", path=path)
    labels = np.full(set_here.shape[1], "", object)
    for name, frames in zip(names, set_here, strict=True):
        label = settings.tags.get(name, name)
        if label is not None and label not in CLASSES:
            raise DataError(
                f"{path}: tag '{name}' is no class; give its class, or null, in labels.tags",
                path=path,
            )
        clash = np.flatnonzero(frames & (labels != "") & (labels != label))
        if label and len(clash):
            raise DataError(
                f"{path}, frame {clash[0]}: is tagged {labels[clash[0]]} and {label}; keep one",
                path=path,
            )
        labels[frames] = label or labels[frames]
    return labels


def _read_codes(array: h5py.Dataset, path: str, settings: Labels) -> npt.NDArray[np.object_]:
    codes = read_whole(array, path)
    if h5py.check_string_dtype(array.dtype):
        codes = name_runs(codes)
        known = codes != ""
    else:
        known = ~np.isnan(codes) & (codes != MISSING_INTEGER)
    texts = np.full(len(codes), "", object)
    texts[known] = [_say_code(code) for code in codes[known].tolist()]
    table = pd.DataFrame({"label": texts[known]}, index=np.flatnonzero(known))
    table = translate(table, path, "frame", settings.codes, "labels.codes")
    labels = np.full(len(codes), "", object)
    labels[table.index] = table["label"]
    return labels


def _say_code(code: float | str) -> str:
    whole = not isinstance(code, str) and float(code).is_integer()
    return str(int(code)) if whole else str(code)


def _identify(
    file: h5py.File, place: str, n_frames: int, path: str, settings: Labels
) -> dict[str, npt.NDArray[Any]]:
    index = np.arange(n_frames)
    if settings.run is not None:
        return {"run": np.full(n_frames, settings.run), "index": index}
    refuse_lost_names(file, place, path)
    entry = place.split("/")[0]
    run, position = (find_array(file, f"{entry}/{name}") for name in ("run", "index"))
    if all(array is not None and array.shape == (n_frames,) for array in (run, position)):
        runs, places = read_whole(run, path), read_whole(position, path)
        return {"run": name_runs(runs), "index": places.astype(np.int64)}
    ids = {
        name: read_event_ids({p: read_array(file, p, path) for p in parts}, slice(None))
        for name, parts in find_ids(file, n_frames=n_frames, beside=place).items()
    }
    for names in NAMED_BY:
        if set(names) <= set(ids):
            return {name: ids[name] for name in names}
    return {"run": np.full(n_frames, Path(path).stem), "index": index}


def translate(
    table: pd.DataFrame,
    path: str,
    unit: str,
    meanings: Mapping[Any, str | None],
    setting: str,
) -> pd.DataFrame:
    """Turn what stands for a class into its name.

    Parameters
    ----------
    table : pandas.DataFrame
        With ``label`` as text, lines or frames as index.
    path : str
        Its file, for the message.
    unit : str
        What the index counts.
    meanings : mapping
        Letters or codes to names of classes; None for no label.
    setting : str
        Where they are set, for the message.

    Returns
    -------
    pandas.DataFrame
        Rows that have a label.

    Raises
    ------
    DataError
        If something stands for no class; names the line.
    """
    known: dict[Hashable, str | None] = {name: name for name in CLASSES}
    known |= {str(key): value for key, value in meanings.items()}
    unknown = table[~table["label"].isin(list(known))]
    if len(unknown):
        place = int(unknown.index[0])
        raise DataError(
            f"{path}, {unit} {place}: label '{unknown['label'].iloc[0]}' is no class; known: "
            f"{', '.join(CLASSES)}; give the class of others, or null, in {setting}",
            path=path,
            line=place,
        )
    table = table.assign(label=table["label"].map(known)).dropna(subset="label")
    table.attrs["unit"] = unit
    return table


def _first_line(path: str) -> str:
    try:
        with open(path) as file:
            return file.readline().strip()
    except (OSError, UnicodeDecodeError):
        return ""
