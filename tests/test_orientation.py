import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from spidask.config import Config, Geometry, Region, Sample, parse_config
from spidask.errors import DataError
from spidask.handoff import export
from spidask.io.dragonfly import read_detector
from spidask.io.emc import read_photons
from spidask.io.manifest import note
from spidask.io.runs import open_runs
from spidask.orientation import choose_shells, compute_model, measure, prepare
from spidask.preprocessing import preprocess
from spidask.records import read_json
from spidask.selection import select
from spidask.simulation.beamtime import simulate_patterns

JOBS = Path(__file__).parents[1] / "jobs"
ROWS, COLUMNS, N_SINGLE, N_OTHER = 28, 56, 110, 40
GEOMETRY = Geometry(pixel_size_um=300, beam_centre_y_px=-1, beam_centre_x_px=27.5)
SAMPLE = Sample(diameter_spread_nm=0)
BRIGHT = {"transmission": 0.008, "hit_photons": 1000.0, "stray_photons": 100.0}


@pytest.fixture(scope="module")
def handed_off(tmp_path_factory):
    """An output folder up to the export: single hits, selected, and others, of which none is."""
    folder = tmp_path_factory.mktemp("orientation")
    config = parse_config(
        {
            "runs": {"files": [str(folder / "r1.h5")], "dataset": "data"},
            "output": str(folder / "out"),
            "geometry": GEOMETRY.model_dump(),
            "hits": {"threshold": "none"},
            "handoff": {"num_div": 4},
        }
    )
    write_frames(folder / "r1.h5", config)
    frames = open_runs(config.runs.files, "data")
    note(config)
    export(label(frames, config), frames, config, config.output)
    return config


def write_frames(path: Path, config: Config) -> None:
    settings = config.geometry, Region(y=(0, ROWS), x=(0, COLUMNS))
    beam = Config.model_validate(
        config.model_dump() | {"simulation": {"folder": "x", "beam": BRIGHT}}
    ).simulation.beam
    means = [
        simulate_patterns(n, 1, *settings, {name: 1.0}, SAMPLE, beam)[0]
        for name, n in (("single", N_SINGLE), ("multiple", N_OTHER))
    ]
    photons = np.random.default_rng(1).poisson(np.concatenate(means))
    with h5py.File(path, "w") as file:
        file["data"] = photons.astype(np.uint16)


def label(frames: xr.Dataset, config: Config) -> xr.Dataset:
    patterns = preprocess(frames, config)
    known = {
        name: patterns[name].variable.compute()
        for name in ("run", "index", "run_name", "photon_count", "readable")
    }
    n = N_SINGLE + N_OTHER
    single = np.arange(n) < N_SINGLE
    labels = xr.Dataset(known).assign(
        hit=("frame", np.full(n, True)),
        scores=(("frame", "member"), single.astype(np.float32)[:, None]),
        diameter=("frame", np.full(n, 68, np.float32)),
    )
    return select(labels, [0.5], config.selection)


def write_output(folder: Path, intensity: np.ndarray, iteration: int, used: slice) -> None:
    """What EMC leaves behind."""
    (folder / "output").mkdir(parents=True, exist_ok=True)
    weight = np.where(np.isfinite(intensity), 1.0, 0.0)
    with h5py.File(folder / "output" / f"output_{iteration:03}.h5", "w") as file:
        file["intens"] = np.where(weight > 0, intensity, 0.0)[None]
        file["inter_weight"] = weight[None]
        file["params/num_div"] = 4
    rows = "\n".join(f"{i}\t4.56\t{1 / i:.4e}\t1.0\t-1e5\t3240\t0.05" for i in (1, 2, 4))
    (folder / "EMC.log").write_text(f"Data parameters:\n\n4 frames\nIter\ttime\n{rows}\n")
    blacklist = np.ones(N_SINGLE + N_OTHER, int)
    blacklist[used] = 0
    (folder / "blacklist.txt").write_text("\n".join(map(str, blacklist)) + "\n")


@pytest.fixture(scope="module")
def model(handed_off):
    return compute_model(handed_off.output, SAMPLE)


def test_the_model_has_dragonfly_s_voxels(model):
    # The last pixel is 28 rows and 27.5 columns away: 39.2 on the flat detector.
    assert model.shape == (2 * 40 + 3,) * 3
    assert np.nanargmax(model) == model.size // 2


def test_shells_are_those_between_the_third_fringe_and_the_edge(handed_off):
    # A voxel is 2 pi / 0.729 nm / (130 mm / 0.3 mm) = 0.0199 / nm, a fringe 0.0904 / nm.
    assert choose_shells(handed_off, 0.0199, 27.4, 8) == (11, 27)
    # Rotations of 0.236 rad are a fringe, 4.54 voxels, apart at 19 voxels.
    assert choose_shells(handed_off, 0.0199, 27.4, 4) == (11, 19)
    with pytest.raises(
        DataError, match=r"begins at 11 voxels of 0\.0199 / nm, the detector reaches 9 and"
    ):
        choose_shells(handed_off, 0.0199, 9.4, 4)


def test_meters_of_the_model_itself(handed_off, model, tmp_path):
    write_output(tmp_path, np.full_like(model, 1.0), 2, slice(0))
    write_output(tmp_path, 7 * model, 10, slice(0, 30))
    meters = measure(handed_off.output, tmp_path, model)
    assert meters == read_json(tmp_path / "meters.json")
    assert (meters["frames"], meters["iterations"]) == (30, 10)
    assert meters["rms_change"] == [1.0, 0.5, 0.25]
    assert meters["shells"] == [11, 19]
    assert meters["voxel"] == pytest.approx(0.01989, rel=1e-3)
    assert meters["weights"] == "each shell counts the same"
    for name in ("symmetry", "model"):
        assert len(meters[name]["shells"]) == 9
        assert meters[name]["mean"] == pytest.approx(np.mean(meters[name]["shells"]))
        assert meters[name]["mean"] > 0.98
    assert 0.1 < meters["contrast"]["mean"] < 1
    assert meters["halves"] is None
    with np.load(tmp_path / "slices.npz") as slices:
        seen = np.isfinite(slices["model"]) & np.isfinite(slices["recovered"])
        # A symmetric model lies in itself in sixty ways, so the alignment may be another one.
        assert np.corrcoef(slices["recovered"][seen], slices["model"][seen])[0, 1] > 0.99


def test_halves_are_compared_and_a_model_is_not_needed(handed_off, model, tmp_path):
    write_output(tmp_path, model, 4, slice(0, 30))
    turned = np.rot90(model, axes=(0, 1))
    for half, intensity in (("half0", model), ("half1", turned)):
        write_output(tmp_path / half, intensity, 4, slice(0, 15))
    meters = measure(handed_off.output, tmp_path)
    assert meters["model"] is None
    assert meters["halves"]["mean"] > 0.99
    with np.load(tmp_path / "slices.npz") as slices:
        assert list(slices) == ["recovered"]


def test_what_is_missing_is_named(handed_off, tmp_path):
    with pytest.raises(DataError, match=r"output holds no output_NNN.h5 .* jobs/orient.sh"):
        measure(handed_off.output, tmp_path)
    write_output(tmp_path, np.full((83, 83, 83), np.nan), 1, slice(0, 3))
    with pytest.raises(DataError, match="no shell from 11 to 19 voxels is known"):
        measure(handed_off.output, tmp_path)
    with h5py.File(tmp_path / "output" / "output_001.h5", "w") as file:
        file["intens"] = np.ones((1, 5, 5))
    with pytest.raises(DataError, match=r"output_001.h5: holds no 3D intensity"):
        measure(handed_off.output, tmp_path)


def test_emc_starts_from_the_radial_mean_of_its_frames(handed_off, tmp_path):
    write_output(tmp_path, np.ones((83, 83, 83)), 1, slice(0, 20))
    prepare(handed_off.output, tmp_path)
    with h5py.File(tmp_path / "start.h5") as file:
        start = file["intens"][0]
    folder = Path(handed_off.output) / "dragonfly"
    photons = read_photons(folder / "photons.h5", slice(0, 20)).toarray().mean(axis=0)
    detector = read_detector(folder / "detector.h5")
    q = np.sqrt(detector.qx**2 + detector.qy**2 + detector.qz**2)
    # On an axis; the noise is at most a half, fringes are 4.5 voxels wide and steep.
    level = np.interp(q, np.arange(42), start[41, 41, 41:]) * detector.corr / detector.corr.mean()
    for low in range(2, 30, 4):
        ring = (q >= low) & (q < low + 4)
        assert 0.5 < level[ring].mean() / photons[ring].mean() < 2
    assert photons[q < 4].mean() > 1e3 * photons[q > 26].mean()
    masked = read_detector(tmp_path / "detector.h5").mask
    # 1.65 fringes of 4.54 voxels.
    assert (masked[q < 7.4] == 1).all()
    assert (masked[q > 7.6] == 0).all()
    shell = start[41, 41, [41 - 20, 41 + 20]]
    assert 0.5 / 1.5 <= shell[0] / shell[1] <= 1.5 / 0.5
    write_output(tmp_path, np.ones((83, 83, 83)), 1, slice(0))
    with pytest.raises(DataError, match="leaves no frame"):
        prepare(handed_off.output, tmp_path)


def orient(*arguments, **environment):
    clean = {k: v for k, v in os.environ.items() if k != "SPIDASK_DRAGONFLY_PYTHON"}
    clean |= {"SPIDASK_PYTHON": sys.executable, "PYTHONPATH": str(JOBS.parent), **environment}
    command = [JOBS / "orient.sh", *map(str, arguments)]
    return subprocess.run(command, env=clean, capture_output=True, text=True)


def test_orient_names_what_it_lacks(handed_off, tmp_path):
    out = Path(handed_off.output)
    failed = orient(tmp_path)
    assert failed.returncode == 1
    for name in ("photons.h5", "detector.h5", "config.ini", "blacklist.txt"):
        assert f"{tmp_path}/dragonfly/{name}" in failed.stderr
    assert "SPIDASK_DRAGONFLY_PYTHON is not set" in orient(out).stderr
    assert "'0' is no number" in orient(out, "--threads", "0").stderr
    assert "none.txt" in orient(out, "--blacklist", tmp_path / "none.txt").stderr
    assert "--blacklist FILE" in orient(out, "--what").stderr
    other = {"SPIDASK_DRAGONFLY_PYTHON": sys.executable}
    assert "cannot import Dragonfly" in orient(out, **other).stderr
    assert not (out / "orientation").exists()


@pytest.fixture
def dragonfly_python():
    python = os.environ.get("SPIDASK_DRAGONFLY_PYTHON")
    if not python:
        pytest.skip("SPIDASK_DRAGONFLY_PYTHON is not set; .ci/dragonfly-env makes its environment")
    return python


@pytest.mark.dragonfly
@pytest.mark.slow
def test_emc_converges_on_what_was_exported(handed_off, tmp_path, dragonfly_python):
    # Somewhere else than where it was written: all paths are relative.
    out = tmp_path / "moved"
    shutil.copytree(handed_off.output, out)
    environment = {"SPIDASK_DRAGONFLY_PYTHON": dragonfly_python}
    done = orient(out, "--iterations", 10, "--threads", 2, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    meters = json.loads((out / "orientation" / "meters.json").read_text())
    changes = meters["rms_change"]
    assert (meters["frames"], meters["iterations"], len(changes)) == (N_SINGLE, 10, 10)
    # What still changes are voxels that hardly any frame reaches.
    assert changes[-1] < 0.6 * changes[0]
    assert meters["symmetry"]["mean"] > 0.5
    assert meters["contrast"]["mean"] > 0.3
    assert meters["model"] is None
    model = compute_model(out, SAMPLE)
    assert measure(out, model=model)["model"]["mean"] > 0.55
