"""What orientation determination gets: Dragonfly's files, a CXI file and lists of frames."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import xarray as xr

from spidask.cluster import Pool, wait_for_some
from spidask.config import Config, Geometry
from spidask.errors import ConfigError, DataError
from spidask.frames.geometry import momentum_transfer, pixel_positions, wavelength
from spidask.frames.mask import PixelBit, mask_bits
from spidask.io import cxi, dragonfly, emc
from spidask.io.labels import locate
from spidask.io.runs import take_frames
from spidask.io.stack import EVENT_IDS
from spidask.masked import find_masked
from spidask.preprocessing import preprocess
from spidask.schema import validate

if TYPE_CHECKING:
    from distributed import Client

FRAMES_PER_TASK = 256
TOLERANCE_PX = 0.5
"""Runs whose pixels look at directions closer than this share one detector file."""

PACKAGES = ("spidask", "numpy", "xarray", "dask", "h5py", "torch")


@dataclass(frozen=True)
class _Layout:
    """Pixels as handed over: those of the region, summed in squares of `bin`."""

    corner: tuple[int, int]
    hidden: npt.NDArray[np.bool_]
    bin: int


def export(
    selection: xr.Dataset,
    frames: xr.Dataset | None,
    config: Config,
    out: str | Path,
    client: Client | None = None,
) -> dict[str, int]:
    """Write what orientation determination needs.

    Parameters
    ----------
    selection : xarray.Dataset
        All classified frames as of `select`, in memory, with photon_count.
    frames : xarray.Dataset or None
        The runs as of `open_runs`. None is enough where `photons_are_current`.
    config : Config
        The beamtime's settings.
    out : str or pathlib.Path
        Output folder.
    client : distributed.Client, optional
        Who reads and calibrates the hits; this process without it.

    Returns
    -------
    dict
        ``hits`` (frames in photons.h5), ``selected``, ``photons_written`` (0 where photons.h5
        was current), ``pixels``, ``pixels_ignored`` (mask 2 in detector.h5), and
        ``missing_values`` (pixels of selected frames that have no number there alone, such as
        saturated ones: 0 photons in photons.h5, a mask bit in selection.cxi).

    Raises
    ------
    ConfigError
        If the geometry or the region differs between runs by more than one detector file bears.
    DataError
        If hits are not among the frames, or frames are needed and None.

    Notes
    -----
    ``dragonfly/``: photons.h5 holds all hits, selected or not, and is written anew only if the
    hits or their photons changed; detector.h5, config.ini and index.csv (frame in photons.h5 to
    run and index) go with it. ``blacklist.txt`` alone makes the selection. Besides,
    ``selection.cxi`` and ``selected.csv`` (run, index, event ids) hold the selected frames.

    A pixel that any run with hits masks is ignored for all (mask 2). With ``handoff.bin``, a
    square that holds a masked pixel is masked, and rows and columns beyond the last whole
    square are left out. The polarization is along x.
    """
    _refuse_unsuitable(selection)
    hits = selection.isel(frame=_is_hit(selection))
    folder = Path(out) / "dragonfly"
    folder.mkdir(parents=True, exist_ok=True)
    written = not photons_are_current(selection, config, out)
    if written:
        _write_photons(hits, frames, config, folder, client)
    layout = _read_layout(folder)
    geometry = _common_geometry(hits, config, layout)
    dragonfly.write_settings(folder / "config.ini", _dragonfly_settings(geometry, layout, config))
    dragonfly.write_blacklist(folder / "blacklist.txt", ~hits["selected"].values)
    places = np.flatnonzero(hits["selected"].values)
    chosen = hits.isel(frame=places)
    _frame_list(chosen).to_csv(Path(out) / "selected.csv", index=False)
    _write_cxi(chosen, places, geometry, layout, config, Path(out))
    missing = emc.read_missing(folder / "photons.h5", places)
    return {
        "hits": hits.sizes["frame"],
        "selected": len(places),
        "photons_written": int(written),
        "pixels": layout.hidden.size,
        "pixels_ignored": int(layout.hidden.sum()),
        "missing_values": sum(map(len, missing)),
    }


def photons_are_current(selection: xr.Dataset, config: Config, out: str | Path) -> bool:
    """Tell whether the photons of these hits are written already.

    Parameters
    ----------
    selection : xarray.Dataset
        All classified frames as of `select`, in memory, with photon_count.
    config : Config
        The beamtime's settings.
    out : str or pathlib.Path
        Output folder.

    Returns
    -------
    bool
        True if ``dragonfly/photons.h5`` holds exactly these hits, photons and pixels.
    """
    folder = Path(out) / "dragonfly"
    try:
        with (
            h5py.File(folder / "photons.h5", "r") as photons,
            h5py.File(folder / "detector.h5", "r") as detector,
        ):
            found = photons.attrs["fingerprint"]
            # Where the two differ in length, Dragonfly only warns and reads beyond the end.
            fits = detector["mask"].size == photons["num_pix"][0]
    except (OSError, KeyError):
        return False
    if not fits or not (folder / "index.csv").exists():
        return False
    return bool(found == _fingerprint(selection.isel(frame=_is_hit(selection)), config))


def _refuse_unsuitable(selection: xr.Dataset) -> None:
    names = ("run", "index", "run_name", "readable", "hit", "selected", "score", "photon_count")
    validate(selection, *names)


def _is_hit(selection: xr.Dataset) -> npt.NDArray[np.bool_]:
    return np.asarray(selection["readable"].values & selection["hit"].values)


def _fingerprint(hits: xr.Dataset, config: Config) -> str:
    # The photon counts stand for the raw data, the masks and the calibration files.
    digest = hashlib.sha256()
    for name in ("run", "index", "photon_count"):
        digest.update(np.ascontiguousarray(hits[name].values).tobytes())
    names = hits["run_name"].values.astype(str)[np.unique(hits["run"].values)]
    settings = [
        [name, config.preprocessing_of(name).model_dump(), config.geometry_of(name).model_dump()]
        for name in names.tolist()
    ]
    digest.update(json.dumps([settings, config.handoff.bin]).encode())
    return digest.hexdigest()


def _write_photons(
    hits: xr.Dataset,
    frames: xr.Dataset | None,
    config: Config,
    folder: Path,
    client: Client | None,
) -> None:
    if frames is None:
        raise DataError(f"{folder}/photons.h5 does not hold these hits; give the runs' frames")
    table = _frame_list(hits)
    rows = locate(table, frames)
    layout = _layout(rows, frames, config)
    geometry = _common_geometry(hits, config, layout)
    y, x = _positions(geometry, layout)
    detector = dragonfly.make_detector(y, x, _distance(geometry, layout), layout.hidden)
    # Else the photons of before would vouch for files that are not theirs after a kill.
    (folder / "photons.h5").unlink(missing_ok=True)
    dragonfly.write_detector(folder / "detector.h5", detector)
    table.rename_axis("frame").to_csv(folder / "index.csv")
    tasks = (
        (take_frames(frames, rows[start : start + FRAMES_PER_TASK]), config, layout)
        for start in range(0, len(rows), FRAMES_PER_TASK)
    )
    attributes = {
        "fingerprint": _fingerprint(hits, config),
        "corner": json.dumps(layout.corner),
        "shape": json.dumps(layout.hidden.shape),
        "bin": str(layout.bin),
    }
    n_tasks = -(-len(rows) // FRAMES_PER_TASK)
    blocks = _in_order(_photons_of, tasks, n_tasks, config, client)
    # Written last: its fingerprint vouches for the files beside it.
    emc.write_photons(folder / "photons.h5", blocks, len(rows), layout.hidden.size, attributes)


def _photons_of(task: tuple[xr.Dataset, Config, _Layout]) -> sp.csr_array:
    frames, config, layout = task
    patterns = preprocess(frames, config)["patterns"].data.compute(scheduler="threads")
    squares = _sum_squares(patterns, layout.bin).reshape(len(patterns), -1)
    missing = np.isnan(squares)
    photons = np.where(missing, emc.MISSING, squares).astype(np.int32)
    photons[:, layout.hidden.ravel()] = 0
    return sp.csr_array(photons)


def _sum_squares(patterns: npt.NDArray[Any], width: int) -> npt.NDArray[Any]:
    """Sum squares of pixels; NaN where one of them is."""
    rows, columns = (size // width for size in patterns.shape[-2:])
    cut = patterns[..., : rows * width, : columns * width]
    squares = cut.reshape(*cut.shape[:-2], rows, width, columns, width)
    return np.asarray(squares.sum(axis=(-3, -1)))


def _in_order(
    work: Callable[[Any], Any],
    tasks: Iterator[Any],
    n_tasks: int,
    config: Config,
    client: Client | None,
) -> Iterator[Any]:
    """Do the tasks, on the client's workers if there is one, a bounded number at a time."""
    if client is None:
        yield from map(work, tasks)
        return
    pool = Pool(client, config.cluster, config.output)
    waiting: deque[Any] = deque()
    for n_left in range(n_tasks, 0, -1):
        done = False
        while not done:
            n_free = min(2 * max(pool.n_threads, 1), n_left) - len(waiting)
            for task in islice(tasks, max(n_free, 0)):
                waiting.append(client.submit(work, task, pure=False))
            pool.tend(n_left)
            done = bool(wait_for_some([waiting[0]]))
        yield waiting.popleft().result()


def _layout(rows: npt.NDArray[np.int64], frames: xr.Dataset, config: Config) -> _Layout:
    masked, corner = find_masked(frames, rows, config)
    if config.handoff.bin > min(masked.shape):
        raise ConfigError(
            f"handoff.bin: {config.handoff.bin} is more than the region of {masked.shape[0]} x "
            f"{masked.shape[1]} pixels; lower it"
        )
    return _Layout(corner, _sum_squares(masked, config.handoff.bin) > 0, config.handoff.bin)


def _common_geometry(hits: xr.Dataset, config: Config, layout: _Layout) -> Geometry:
    counts = np.bincount(hits["run"].values, minlength=hits.sizes["run_code"])
    names = hits["run_name"].values.astype(str)
    most = str(names[np.argmax(counts)]) if len(names) else ""
    common = config.geometry_of(most)
    here = _scattering(common, layout)
    voxel = 2 * np.pi / wavelength(common.photon_energy_ev) / _distance(common, layout)
    others = {config.geometry_of(name): name for name in names[counts > 0].tolist()}
    for other, name in others.items():
        shift = np.linalg.norm(_scattering(other, layout) - here, axis=0).max() / voxel
        if shift > TOLERANCE_PX:
            raise ConfigError(
                f"per_run: the geometry of {name} is off that of {most} by {shift:.1f} pixels, "
                f"and one detector file bears {TOLERANCE_PX}; process these runs to another output",
                run=name,
                shift=float(shift),
            )
    return common


def _positions(
    geometry: Geometry, layout: _Layout
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    # Pixels of the full frame at the squares' centres; distances in squares from the beam.
    rows, columns = (
        start + layout.bin * np.arange(n) + (layout.bin - 1) / 2
        for start, n in zip(layout.corner, layout.hidden.shape, strict=True)
    )
    beam = geometry.beam_centre_y_px, geometry.beam_centre_x_px
    return pixel_positions(rows, columns, beam, 1 / layout.bin)


def _distance(geometry: Geometry, layout: _Layout) -> float:
    return geometry.detector_distance_m / (geometry.pixel_size_um * 1e-6 * layout.bin)


def _scattering(geometry: Geometry, layout: _Layout) -> npt.NDArray[np.float64]:
    distance = _distance(geometry, layout)
    length = wavelength(geometry.photon_energy_ev)
    return momentum_transfer(*_positions(geometry, layout), distance, length)


def _dragonfly_settings(
    geometry: Geometry, layout: _Layout, config: Config
) -> dict[str, dict[str, object]]:
    rows, columns = layout.hidden.shape
    return {
        "parameters": {
            "detd": f"{geometry.detector_distance_m * 1e3:.10g}",
            "lambda": f"{wavelength(geometry.photon_energy_ev) * 1e10:.10g}",
            "detsize": f"{columns} {rows}",
            "pixsize": f"{geometry.pixel_size_um * 1e-3 * layout.bin:.10g}",
            "stoprad": 0,
            "polarization": "x",
        },
        "emc": {
            "in_photons_file": "photons.h5",
            "in_detector_file": "detector.h5",
            "blacklist_file": "blacklist.txt",
            "output_folder": "output/",
            "log_file": "EMC.log",
            "num_div": config.handoff.num_div,
            "need_scaling": 1,
            "beta_factor": 1.0,
            "beta_schedule": "1.414 10",
        },
    }


def _frame_list(frames: xr.Dataset) -> pd.DataFrame:
    names = frames["run_name"].values.astype(str)[frames["run"].values]
    columns = {"run": names, "index": frames["index"].values}
    return pd.DataFrame(columns | {i: frames[i].values for i in EVENT_IDS if i in frames.variables})


def _read_layout(folder: Path) -> _Layout:
    with h5py.File(folder / "photons.h5", "r") as file:
        corner, shape = (json.loads(file.attrs[name]) for name in ("corner", "shape"))
        width = int(json.loads(file.attrs["bin"]))
    hidden = dragonfly.read_detector(folder / "detector.h5").mask.reshape(shape) == 2
    return _Layout(tuple(corner), hidden, width)


def _write_cxi(
    chosen: xr.Dataset,
    places: npt.NDArray[np.intp],
    geometry: Geometry,
    layout: _Layout,
    config: Config,
    out: Path,
) -> None:
    beam = (geometry.beam_centre_y_px, geometry.beam_centre_x_px)
    row, column = (
        (centre - start - (layout.bin - 1) / 2) / layout.bin
        for centre, start in zip(beam, layout.corner, strict=True)
    )
    setup = cxi.Setup(
        photon_energy=geometry.photon_energy_ev,
        distance=geometry.detector_distance_m,
        pixel_size=geometry.pixel_size_um * 1e-6 * layout.bin,
        beam_centre=(row, column),
    )
    provenance = {
        "settings": config.model_dump_json(),
        "versions": json.dumps({name: version(name) for name in PACKAGES}),
    }
    blocks = _stored_patterns(out / "dragonfly" / "photons.h5", places, layout)
    cxi.write_cxi(out / "selection.cxi", blocks, chosen, layout.hidden.shape, setup, provenance)


def _stored_patterns(
    path: Path, places: npt.NDArray[np.intp], layout: _Layout
) -> Iterator[cxi.Block]:
    shape = layout.hidden.shape
    for start in range(0, len(places), FRAMES_PER_TASK):
        rows = places[start : start + FRAMES_PER_TASK]
        photons = emc.read_photons(path, rows).toarray().reshape(-1, *shape)
        bits = np.tile(mask_bits(~layout.hidden).ravel(), (len(rows), 1))
        for row, missing in enumerate(emc.read_missing(path, rows)):
            bits[row, missing] |= np.uint32(PixelBit.MISSING)
        yield photons, bits.reshape(-1, *shape)
