"""The table of Ignatenko et al. 2021 for the selections of a beamtime, all on the same frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from spidask.config import Labels
from spidask.errors import ConfigError, DataError
from spidask.frames.contrast import (
    fringe_contrasts,
    make_rings,
    mean_profile,
    profile_sums,
    ring_sums,
)
from spidask.io import dragonfly, emc
from spidask.io.labels import PLAIN, read_labels
from spidask.io.manifest import read_manifest
from spidask.io.tables import (
    COMPARED,
    TEXTS,
    find_rows,
    frame_table,
    is_in,
    read_selection_csv,
    read_trained_frames,
)
from spidask.metrics import average_precision, judge
from spidask.networks.tensors import count_parameters
from spidask.records import read_json

PIXELS_PER_BLOCK = 2**22
"""Of photons.h5, read at once: 160 MB where every pixel is lit."""

PUBLISHED = {
    "YOLOv2 colour linear": (1185, 597, 0.38, 0.95, 0.50, 0.60),
    "YOLOv2 colour log": (1368, 614, 0.35, 0.94, 0.45, 0.62),
    "YOLOv2 grey linear": (1756, 622, 0.29, 0.92, 0.35, 0.63),
    "YOLOv2 grey log": (904, 487, 0.34, 0.95, 0.54, 0.50),
    "YOLOv3 colour linear": (1041, 505, 0.33, 0.94, 0.49, 0.51),
    "YOLOv3 grey linear": (2316, 465, 0.16, 0.87, 0.20, 0.47),
    "EM based": (1085, 574, 0.34, 0.94, 0.53, 0.48),
}
"""Selected, in the manual selection, IoU, accuracy, precision, recall: Ignatenko et al. 2021."""
N_FRAMES, N_MANUAL = 17_932, 995
"""The paper's test set, all that passes the fit of 55-84 nm, and the single hits in it."""

NO_F1 = (
    "the published counts do not fit 995 single hits (the recall asks for about 1190), so F1 "
    "cannot be computed"
)

UNRANKED = (
    "early exit: a rejected hit has the score of the member that rejected it, so scores do not "
    "rank the hits and there is no average precision"
)
ROW = {
    "name": (str,),
    "n_parameters": (int,),
    "patterns_per_second": (float, int),
    "device": (str,),
}
"""What ``row.json`` may tell of a classifier."""
COUNTS = ["frames", "manual", "selected", "intersection", "in_first", "fringes", "n_parameters"]


@dataclass(frozen=True)
class _Common:
    """The frames on which all selections are compared; the first dimension is the selection."""

    frames: pd.DataFrame
    selected: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float32]
    is_single: npt.NDArray[np.bool_] | None
    facts: dict[Any, int]


def compare(
    *selections: str | Path,
    truth: str | Path | None = None,
    meanings: Labels = PLAIN,
    within: tuple[float, float] | None = None,
    paper: bool = False,
) -> pd.DataFrame:
    """Compare selections with the truth, with each other, and with the published ones.

    Parameters
    ----------
    *selections : str or pathlib.Path
        Output folders, folders of other classifiers in them, or their ``selection.csv``.
    truth : str or pathlib.Path, optional
        Labels of frames in any form of `read_labels`, or a glob of several.
    meanings : Labels
        The section `labels`: what letters, codes and tags of the truth mean.
    within : tuple of float, optional
        Smallest and largest diameter of the frames to judge, nm, by the first selection's table.
    paper : bool
        Whether the rows that Ignatenko et al. published follow.

    Returns
    -------
    pandas.DataFrame
        A row for each selection, with truth one for "reject everything", then the published
        ones; columns as `io.tables.COMPARED`, NaN where there is no number:

        - ``source``: measured or published; ``frames`` judged, ``manual``: single hits of them;
        - ``selected``, ``intersection`` (in the manual selection), ``iou``, ``accuracy``,
          ``precision``, ``recall``, ``f1`` as of `metrics.judge`, and ``average_precision``;
        - ``contrast`` of the power spectral density of what is selected, mean of the innermost
          ``fringes``, as many as all rows that have any show;
        - ``in_first``, ``iou_with_first``: overlap with the first selection;
        - ``patterns_per_second``, ``n_parameters`` of all members together, ``device``;
        - ``note``: what to know of the row. F1 of published rows is computed from their counts.

        Its ``attrs`` are those of `judge_selections`.

    Raises
    ------
    DataError
        If a file is missing or not what it should be, or no frame is left to judge.

    Notes
    -----
    ``row.json`` in a selection's folder may hold name, n_parameters, patterns_per_second and
    device; parameters are else counted in the headers of ``members/*.safetensors``.

    The contrast is that of the patterns in the first selection's ``dragonfly/photons.h5``, each
    divided by its photons; see `frames.contrast`. Faint fringes have less contrast and show only
    in many patterns, so all rows are compared by the same number of fringes.
    """
    common = _read_common(selections, truth, meanings, within)
    rows = _judge(selections, common)
    contrasts = _measure_contrasts(selections[0], common)
    for row, selection, contrast in zip(rows, selections, contrasts, strict=False):
        notes = "" if _is_ranked(selection) else UNRANKED, contrast.pop("note")
        row |= _describe(selection) | contrast | {"note": "; ".join(filter(None, notes))}
    table = pd.DataFrame(rows, index=_name_rows(selections, rows)).assign(source="measured")
    if paper:
        table = pd.concat([table, _published()]).rename_axis("name")
    table = table.reindex(columns=COMPARED).astype(dict.fromkeys(COUNTS, "Int64"))
    table[TEXTS] = table[TEXTS].astype(object).fillna("")
    table.attrs = common.facts
    return table


def judge_selections(
    *selections: str | Path,
    truth: str | Path | None = None,
    meanings: Labels = PLAIN,
    within: tuple[float, float] | None = None,
) -> pd.DataFrame:
    """Compare selections with the truth and with each other, as sets of frames.

    Parameters
    ----------
    *selections : str or pathlib.Path
        Output folders, folders of other classifiers in them, or their ``selection.csv``.
    truth : str or pathlib.Path, optional
        Labels of frames in any form of `read_labels`, or a glob of several.
    meanings : Labels
        The section `labels`: what letters, codes and tags of the truth mean.
    within : tuple of float, optional
        Smallest and largest diameter of the frames to judge, nm, by the first selection's table.

    Returns
    -------
    pandas.DataFrame
        A row for each selection: ``frames``, ``selected``, ``in_first`` and ``iou_with_first``
        (the latter two where there are several). With truth, the metrics of `metrics.judge` and
        ``average_precision`` besides, NaN where scores do not rank the frames or none is a
        single hit, and a row "reject everything". Its ``attrs`` tell ``frames_trained_on``, left
        out everywhere, and ``truth_left_out``, labels of frames that are not judged.

    Raises
    ------
    DataError
        If a file is missing or not what it should be, or no frame is left to judge.
    ConfigError
        If `within` is no range.

    Notes
    -----
    All selections are judged on the same frames: those that all of them classified and that no
    member of any was trained on; with truth, those of the truth; with `within`, those of such a
    diameter, as in the paper, whose test set is what passes the fit of 55 to 84 nm.
    """
    common = _read_common(selections, truth, meanings, within)
    rows = _judge(selections, common)
    table = pd.DataFrame(rows, index=_name_rows(selections, rows))
    table.attrs = common.facts
    return table


def _read_common(
    selections: Sequence[str | Path],
    truth: str | Path | None,
    meanings: Labels,
    within: tuple[float, float] | None,
) -> _Common:
    if not selections:
        raise ConfigError("no selection to compare; give one or more output folders")
    if within is not None and not within[0] <= within[1]:
        raise ConfigError(f"within: {within[0]:g} to {within[1]:g} nm is no range; swap them")
    seen = [frame_table(read_trained_frames(selection)) for selection in selections]
    trained = pd.concat(seen).drop_duplicates()
    labels = None if truth is None else _by_run(read_labels(truth, meanings), truth)
    table = read_selection_csv(selections[0])
    kept = ~is_in(table, trained)
    if labels is not None:
        kept &= is_in(table, labels)
    if within is not None:
        kept &= table["diameter_nm"].between(*within).to_numpy()
    table = table[kept]
    frames, selected, scores = table[["run", "index"]], [table["selected"]], [table["score"]]
    for selection in selections[1:]:
        # One table at a time: those of 10^7 frames are gigabytes together.
        table = read_selection_csv(selection)
        rows = find_rows(frames, table)
        there = rows >= 0
        frames, rows = frames[there], rows[there]
        selected = [*(one[there] for one in selected), table["selected"].iloc[rows]]
        scores = [*(one[there] for one in scores), table["score"].iloc[rows]]
    if frames.empty:
        raise _nothing_left(truth, labels, within)
    single = None
    if labels is not None:
        single = (labels["label"] == "single").to_numpy()[find_rows(frames, labels)]
    left_out = 0 if labels is None else len(labels) - len(frames)
    facts = {"frames_trained_on": len(trained), "truth_left_out": left_out}
    return _Common(frames, np.stack(selected), np.stack(scores), single, facts)


def _nothing_left(
    truth: str | Path | None, labels: pd.DataFrame | None, within: tuple[float, float] | None
) -> DataError:
    sized = "" if within is None else f", with {within[0]:g} to {within[1]:g} nm"
    if labels is None:
        text = f"no frame was classified by all selections and kept out of training{sized}"
        return DataError(f"{text}; compare selections of the same runs")
    return DataError(
        f"{truth}: none of its {len(labels)} frames was classified and kept out of training"
        f"{sized}; label others",
        truth_left_out=len(labels),
    )


def _judge(selections: Sequence[str | Path], common: _Common) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for selection, selected, scores in zip(selections, common.selected, common.scores, strict=True):
        row: dict[str, Any] = {"frames": len(selected), "selected": int(selected.sum())}
        if common.is_single is not None:
            row |= judge(selected, common.is_single)
            ranked = _is_ranked(selection) and np.isfinite(scores[selected]).all()
            can_rank = ranked and np.isfinite(scores).any() and common.is_single.any()
            average = average_precision(scores, common.is_single) if can_rank else float("nan")
            row["average_precision"] = average
        if len(selections) > 1:
            row |= _overlap(selected, common.selected[0])
        rows.append(row)
    if common.is_single is not None:
        nothing = np.zeros(len(common.is_single), bool)
        # Without any ranking, precision is the share of single hits at every recall.
        share = float(common.is_single.mean()) or float("nan")
        rows.append(judge(nothing, common.is_single) | {"average_precision": share})
    return rows


def _overlap(selected: npt.NDArray[np.bool_], first: npt.NDArray[np.bool_]) -> dict[str, Any]:
    both = judge(selected, first)
    return {"in_first": both["intersection"], "iou_with_first": both["iou"]}


def _name_rows(selections: Sequence[str | Path], rows: Sequence[object]) -> pd.Index[str]:
    told = [str(_read_row(selection).get("name", selection)) for selection in selections]
    names = [
        f"{name} ({selection})" if told.count(name) > 1 and name != str(selection) else name
        for name, selection in zip(told, selections, strict=True)
    ]
    return pd.Index([*names, "reject everything"][: len(rows)], name="name")


def _describe(selection: str | Path) -> dict[str, Any]:
    row = _read_row(selection)
    facts = {key: row.get(key) for key in ("n_parameters", "patterns_per_second", "device")}
    members = sorted((_folder(selection) / "members").glob("*.safetensors"))
    if facts["n_parameters"] is None and members:
        facts["n_parameters"] = sum(map(count_parameters, members))
    return facts


def _read_row(selection: str | Path) -> dict[str, Any]:
    path = _folder(selection) / "row.json"
    row = read_json(path) if path.exists() else {}
    if not isinstance(row, dict):
        raise DataError(f"{path}: holds no object; expected the keys {', '.join(ROW)}")
    for key, kinds in ROW.items():
        if not isinstance(row.get(key), (*kinds, type(None))) or isinstance(row.get(key), bool):
            raise DataError(f"{path}: {key} is {row[key]!r}; expected {kinds[0].__name__} or null")
    return {key: value for key, value in row.items() if value is not None}


def _is_ranked(selection: str | Path) -> bool:
    # A folder of another classifier has no manifest.
    if not (_folder(selection) / "manifest.json").exists():
        return True
    inference = read_manifest(_folder(selection))["config"].get("inference", {})
    return bool(inference.get("ensemble") != "early_exit")


def _folder(selection: str | Path) -> Path:
    return Path(selection) if Path(selection).is_dir() else Path(selection).parent


def _measure_contrasts(first: str | Path, common: _Common) -> list[dict[str, Any]]:
    """Contrast of each selection, with a note where selected frames have no pattern."""
    folder = _folder(first) / "dragonfly"
    if not all((folder / name).exists() for name in ("photons.h5", "detector.h5", "index.csv")):
        return [{"contrast": None, "fringes": None, "note": ""} for _ in common.selected]
    hits = pd.read_csv(folder / "index.csv", dtype={"run": str})
    place = find_rows(common.frames, hits)
    sums = _sum_profiles(folder, place, common.selected)
    found = [fringe_contrasts(*mean_profile(one)) for one in sums]
    shown = min((len(one) for one in found if len(one)), default=0)
    n_lost = (common.selected & (place < 0)).sum(axis=1)
    return [
        {
            "contrast": one[:shown].mean() if len(one) else None,
            "fringes": shown if len(one) else None,
            "note": f"{lost} of the selected frames lack a pattern for the contrast"
            if lost
            else "",
        }
        for one, lost in zip(found, n_lost.tolist(), strict=True)
    ]


def _sum_profiles(
    folder: Path, place: npt.NDArray[np.int64], selected: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    detector = dragonfly.read_detector(folder / "detector.h5")
    q = np.sqrt(detector.qx**2 + detector.qy**2 + detector.qz**2)  # in pixels near the beam
    rings = make_rings(q, detector.corr, detector.mask < 2)
    sums = np.zeros((len(selected), 3, rings.pixels.shape[1]))
    wanted = np.flatnonzero(selected.any(axis=0) & (place >= 0))
    wanted = wanted[np.argsort(place[wanted])]
    n_block = max(PIXELS_PER_BLOCK // len(q), 1)
    path = folder / "photons.h5"
    for start in range(0, len(wanted), n_block):
        block = wanted[start : start + n_block]
        hits = place[block]
        seen = ring_sums(emc.read_photons(path, hits), emc.read_missing(path, hits), rings)
        for one, chosen in zip(sums, selected[:, block], strict=True):
            one += profile_sums(*(values[chosen] for values in seen))
    return sums


def _published() -> pd.DataFrame:
    rows = pd.DataFrame.from_dict(
        PUBLISHED,
        orient="index",
        columns=["selected", "intersection", "iou", "accuracy", "precision", "recall"],
    )
    rows = rows.assign(source="published", frames=N_FRAMES, manual=N_MANUAL, note="")
    rows["f1"] = 2 * rows["intersection"] / (rows["selected"] + rows["manual"])
    rows.loc["EM based", ["manual", "f1"]] = np.nan
    rows.loc["EM based", "note"] = NO_F1
    return rows


def _by_run(labels: pd.DataFrame, source: str | Path) -> pd.DataFrame:
    if {"run", "index"} <= set(labels.columns):
        return labels
    named = ", ".join(labels.columns[:-1])
    raise DataError(f"{source}: names frames by {named}; selections are compared by run,index")
