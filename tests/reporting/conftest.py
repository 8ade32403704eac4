"""A small beamtime: two runs, and a selection of them that a person can count."""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from spidask.config import Config, parse_config
from spidask.io.runs import open_runs
from spidask.selection import select

NAN = np.nan
THRESHOLDS = [0.5, 0.6]
# index: 0 unreadable, 1-3 misses, then hits; the scores of the two members and the diameter.
HITS = {
    "r0001": {4: (0.9, 0.9, 70), 5: (0.8, 0.7, 60), 6: (0.9, 0.1, 70), 7: (0.6, 0.7, 99)},
    "r0002": {4: (0.7, 0.9, 65), 5: (0.2, 0.1, 70), 6: (0.1, 0.2, 20), 7: (0.9, 0.8, 71)},
}
TRUTH = """run,index,label
r0001,1,background
r0001,4,single
r0001,5,multiple
r0001,6,contaminant
r0001,7,single
r0002,4,single
r0002,5,multiple
r0002,7,single
r0009,3,single
"""


@dataclass(frozen=True)
class Beamtime:
    """What the report is made from."""

    selection: xr.Dataset
    frames: xr.Dataset
    config: Config
    output: Path
    thresholds: list[float]


def pixels(run: int, index: int) -> np.ndarray:
    """A frame that says which one it is; its last column is 0."""
    frame = np.full((6, 8), 10 * run + index, np.float32)
    frame[:, -1] = 0
    return np.full_like(frame, NAN) if index == 0 else frame


def labels() -> xr.Dataset:
    """Labels of both runs, in another order than that of the files."""
    names = ["r0002", "r0001"]
    scores = np.full((16, 2), NAN, np.float32)
    diameter = np.full(16, NAN, np.float32)
    for code, name in enumerate(names):
        for index, (first, second, size) in HITS[name].items():
            scores[8 * code + index] = first, second
            diameter[8 * code + index] = size
    return xr.Dataset(
        {
            "index": ("frame", np.tile(np.arange(8), 2)),
            "readable": ("frame", np.tile(np.arange(8) > 0, 2)),
            "hit": ("frame", np.tile(np.arange(8) > 3, 2)),
            "photon_count": ("frame", np.arange(16, dtype=np.float32)),
            "scores": (("frame", "member"), scores),
            "diameter": ("frame", diameter),
        },
        coords={
            "run": ("frame", np.repeat(np.arange(2, dtype=np.int32), 8)),
            "run_name": ("run_code", np.array(names, object)),
        },
    )


@pytest.fixture
def beamtime(tmp_path: Path) -> Beamtime:
    """Two runs of 8 frames, 4 selected, of which one was trained on, and a file of nothing."""
    for number in (1, 2):
        with h5py.File(tmp_path / f"r000{number}.h5", "w") as file:
            stack = np.stack([pixels(number, index) for index in range(8)])
            file["entry_1/data_1/data"] = stack
    (tmp_path / "r0003.h5").write_bytes(b"")
    (tmp_path / "truth.csv").write_text(TRUTH)
    mask = np.ones((6, 8), np.uint8)
    mask[0, 0] = 0
    with h5py.File(tmp_path / "mask.h5", "w") as file:
        file["data"] = mask
    config = parse_config(
        {
            "runs": {"files": [str(tmp_path / "r*.h5")], "mask": str(tmp_path / "mask.h5")},
            "output": str(tmp_path / "out"),
            "labels": {"truth": str(tmp_path / "truth.csv")},
            "hits": {"threshold": 1.0},
        }
    )
    (tmp_path / "out").mkdir()
    selection = select(labels(), THRESHOLDS, config.selection, {"r0002": [7]})
    frames = open_runs(config.runs.files)
    return Beamtime(selection, frames, config, tmp_path / "out", THRESHOLDS)
