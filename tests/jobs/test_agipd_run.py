"""Simulated AGIPD runs: their layout as extra-data reads it, and a whole run on them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from extra_data import RunDirectory
from extra_geom import AGIPD_1MGeometry

from spidask import gather_labels, load_config, open_runs, pipeline, preprocess
from spidask.centre import find_centre
from spidask.errors import StoreError
from spidask.io.labels import read_labels
from tests.io.test_euxfel import agipd

JOB = Path(__file__).parents[2] / "jobs" / "agipd_run.py"
FRAMES = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "agipd"
    command = [sys.executable, str(JOB), str(folder), "--frames", str(FRAMES)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_extra_data_finds_the_files_sound_and_reads_what_we_read(folder):
    path = folder / "proc" / "r0003"
    run = RunDirectory(str(path), parallelize=False)
    assert len(run.train_ids) == 2
    data = agipd(path, raw=False)
    assert len(data.modno_to_source) == 15
    config = load_config(folder / "config.yaml")
    frames = open_runs(str(path), config.runs.dataset)
    theirs = data.masked_data().ndarray(module_gaps=True).swapaxes(0, 1)
    missing = ~data.data_availability(module_gaps=True).T
    theirs[missing] = np.nan
    np.testing.assert_array_equal(frames["frames"].values.reshape(theirs.shape), theirs)
    assert frames.attrs["faults"] == {str(path): {"missing_modules": [9], "incomplete_frames": 32}}


def test_photons_fall_where_the_geometry_has_them(folder):
    config = load_config(folder / "config.yaml")
    labels = read_labels(config.labels.file)
    hits = labels[(labels["run"] == "r0001") & (labels["label"] == "single")]["index"].to_numpy()
    data = agipd(folder / "proc" / "r0001").masked_data().ndarray(module_gaps=True)[:, hits]
    theirs = AGIPD_1MGeometry.from_crystfel_geom(str(folder / "agipd.geom"))
    places = theirs.get_pixel_positions() / theirs.pixel_size
    radius = np.hypot(places[..., 0], places[..., 1])
    # The mean of rings around the true beam falls by orders of magnitude.
    total = np.nansum(data, axis=1)
    rings = [total[(radius > a) & (radius < a + 10)].mean() for a in (15, 45, 90, 300)]
    assert (np.diff(np.log(rings)) < -0.7).all()


def test_a_run_goes_end_to_end_on_them(folder, tmp_path):
    overrides = [
        f"output={tmp_path / 'out'}",
        "training.iterations=5",
        "training.checkpoint_every=1",
        "training.batch_size=16",
        "training.threads=1",
        "cluster.kind=inline",
    ]
    config = load_config(folder / "config.yaml", overrides)
    counts = pipeline.run(config)["counts"]
    assert counts["select"]["frames"] == FRAMES
    told = sum(
        counts["select"][k] for k in ("selected", "unreadable", "miss", "not_single", "size")
    )
    assert told == FRAMES
    assert counts["read"]["faults"][str(folder / "proc" / "r0001")] == {"missing_modules": [9]}
    labels = gather_labels(tmp_path / "out" / "labels.zarr")
    assert labels["trainId"].values.min() == 1_900_010_000
    assert labels["pulseId"].values[:3].tolist() == [0, 8, 16]
    truth = pd.concat([pd.read_csv(folder / name) for name in ("labels.csv", "truth.csv")])
    truth = truth.sort_values(["run", "index"])
    ratio = labels["diameter"].values / truth["diameter_nm"].to_numpy()
    assert np.nanmedian(ratio[truth["label"] == "single"]) == pytest.approx(1, abs=0.02)
    patterns = preprocess(open_runs(config.runs.files, config.runs.dataset), config)
    assert patterns["patterns"].shape == (FRAMES, 123, 240)

    with (folder / "agipd.geom").open("a") as file:
        file.write("; refined\n")
    with pytest.raises(StoreError, match=r"file .*agipd.geom was changed"):
        pipeline.run(config)


def test_the_beam_is_found_where_the_geometry_has_it(folder):
    found = find_centre(load_config(folder / "config.yaml"))
    assert found.distance < 0.7
