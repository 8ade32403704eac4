"""Two small runs, their labels and selection, for everything that is handed over."""

import os

import h5py
import numpy as np
import pytest
import xarray as xr

from spidask.config import Config
from spidask.io.runs import open_runs
from spidask.preprocessing import preprocess
from spidask.selection import select

N_FRAMES, ROWS, COLUMNS = 7, 6, 8
Y, X = slice(1, 6), slice(0, 7)
"""The region of interest."""


@pytest.fixture
def photons():
    """Two runs of frames that hold whole photons; 20 of them saturate."""
    random = np.random.default_rng(3)
    frames = random.poisson(0.7, (2, N_FRAMES, ROWS, COLUMNS)).astype(np.uint16)
    frames[1, 2, 3, 4] = 20
    return frames


@pytest.fixture
def masks():
    good = np.ones((2, ROWS, COLUMNS), np.uint8)
    good[0, 2, 2] = good[1, 5, 6] = 0
    return good


@pytest.fixture
def config(tmp_path, photons, masks):
    with h5py.File(tmp_path / "masks.h5", "w") as file:
        for code, run in enumerate(("r0001", "r0002")):
            file[run] = masks[code]
            with h5py.File(tmp_path / f"{run}.h5", "w") as data:
                data["data"] = photons[code]
                data["trainId"] = 1000 * code + np.arange(N_FRAMES)
    return Config.model_validate(
        {
            "runs": {
                "files": [str(tmp_path / "r*.h5")],
                "dataset": "data",
                "mask": f"{tmp_path}/masks.h5:{{run}}",
            },
            "output": str(tmp_path / "out"),
            "geometry": {"beam_centre_y_px": -1.0, "beam_centre_x_px": 3.5},
            "preprocessing": {
                "region": {"y": [Y.start, Y.stop], "x": [X.start, X.stop]},
                "saturation_adu": 20,
            },
            "hits": {"threshold": "none"},
        }
    )


@pytest.fixture
def frames(config):
    return open_runs(config.runs.files, config.runs.dataset)


@pytest.fixture
def labels(frames, config):
    """Frames 0, 3 and 6 of each run are misses, the first of the others is too large."""
    patterns = preprocess(frames, config)
    names = ("run", "index", "trainId", "run_name", "photon_count", "readable")
    known = {name: patterns[name].variable.compute() for name in names}
    hit = known["index"].values % 3 != 0
    return xr.Dataset(known).assign(
        hit=("frame", hit),
        scores=(("frame", "member"), np.where(hit, 0.75, np.nan).astype(np.float32)[:, None]),
        diameter=("frame", np.where(known["index"].values == 1, 90, 70).astype(np.float32)),
    )


@pytest.fixture
def selection(labels, config):
    return select(labels, [0.5], config.selection)


HITS = [(0, 1), (0, 2), (0, 4), (0, 5), (1, 1), (1, 2), (1, 4), (1, 5)]
SELECTED = [hit for hit in HITS if hit[1] != 1]


def region_of(photons, hits):
    """Photons that Dragonfly has to get: none where a run's mask or saturation hides them."""
    frames = np.stack([photons[run, index, Y, X] for run, index in hits]).astype(int)
    frames[:, 1, 2] = frames[:, 4, 6] = 0
    frames[frames >= 20] = 0
    return frames


@pytest.fixture
def dragonfly_python():
    python = os.environ.get("SPIDASK_DRAGONFLY_PYTHON")
    if not python:
        pytest.skip("SPIDASK_DRAGONFLY_PYTHON is not set; .ci/dragonfly-env makes its environment")
    return python
