"""Runs as each facility and program writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import scipy.sparse as sp
import xarray as xr
import zarr

from fuzz.frames import (
    N_FRAMES,
    SHAPE,
    Frame,
    FramesFormat,
    get,
    hdf5_columns,
    look_hdf5,
    look_zarr,
    zarr_columns,
)
from spidask.config import Events
from spidask.io.cxi import RawFrames, Setup, write_cxi, write_virtual
from spidask.io.emc import write_photons, write_photons_binary
from spidask.io.layout import JOULE_PER_EV, FileLayout

DETECTOR = "entry_1/instrument_1/detector_1"
SETUP = Setup(photon_energy=1700.0, distance=0.13, pixel_size=75e-6, beam_centre=(-3.0, 1.5))
SECONDS = 1_500_000_000


def _stack(dtype: str = "u2", seed: int = 1, n: int = N_FRAMES) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 99, (n, *SHAPE)).astype(dtype)


def _write_plain(path: Path, dtype: str, libver: str = "earliest", **layout: Any) -> None:
    with h5py.File(path, "w", libver=libver) as file:
        file.create_dataset("data", data=_stack(dtype), **layout)
        file["data"].attrs["units"] = "ADU"
        file["trainId"] = np.arange(N_FRAMES) + 10_000
        file["pulseId"] = np.arange(N_FRAMES, dtype="u8") * 4


def _plain(name: str, dtype: str, libver: str = "earliest", **layout: Any) -> FramesFormat:
    def write(path: Path) -> None:
        _write_plain(path, dtype, libver, **layout)

    options = {"dataset": "data"}
    return FramesFormat(f"HDF5 {name}", ".h5", write, look_hdf5, options, hdf5_columns)


def _write_cxi(path: Path) -> None:
    bits = (np.random.default_rng(2).random((N_FRAMES, *SHAPE)) < 0.1).astype(np.uint32) * 0x80
    number = np.arange(N_FRAMES)
    frames = xr.Dataset(
        {
            "run": ("frame", np.zeros(N_FRAMES, np.int32)),
            "index": ("frame", number * 7),
            "run_name": ("run_code", np.array(["r0001"], object)),
            "score": ("frame", np.linspace(0, 1, N_FRAMES, dtype=np.float32)),
            "trainId": ("frame", number + 11),
            "selected": ("frame", np.ones(N_FRAMES, bool)),
        }
    )
    told = {"settings": "{}", "versions": "none"}
    write_cxi(path, [(_stack("i4"), bits)], frames, SHAPE, SETUP, told)


def _write_psocake(path: Path) -> None:
    number = np.arange(N_FRAMES)
    with h5py.File(path, "w") as file:
        file[f"{DETECTOR}/photons"] = _stack("i4")
        adu = {"chunks": (1, *SHAPE), "compression": "gzip", "shuffle": True}
        file.create_dataset(f"{DETECTOR}/data", data=_stack("f4", 2), **adu)
        file["entry_1/data_1/data"] = h5py.SoftLink(f"/{DETECTOR}/data")
        file["entry_1/result_1/nHitsAll"] = np.full(N_FRAMES, -1)
        file["LCLS/eventNumber"] = number * 3
        file["LCLS/machineTime"] = (number + SECONDS).astype(">u4")
        file["LCLS/machineTimeNanoSeconds"] = np.full(N_FRAMES, 7, ">u4")
        file["LCLS/fiducial"] = number.astype("u4") * 3
        file["LCLS/photon_energy_eV"] = 1700.0 + number


def _write_hits(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["hits/images"] = _stack("i2")
        file["run"] = np.repeat([182, 9, 7], N_FRAMES // 3).astype(">i2")
        file["index"] = (np.arange(N_FRAMES) * 5 + int(path.stem[1:])).astype("u4")


def _hits_columns(path: Path, _dataset: str, _n_frames: int) -> dict[str, Any]:
    with h5py.File(path, "r", locking=False) as file:
        names = [
            run.decode() if isinstance(run, bytes) else f"r{run:04d}"
            for run in file["run"][()].tolist()
        ]
        return {"index": [file["index"][()]], "run_name": [np.array(names)]}


def _write_photon_converter(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("photonConverter/pnccdBack/photonCount", data=_stack("f4"))
        source = file.create_group("entry_1/instrument_1/source_1")
        source["energy"], source["pulse_energy"] = 1700.7 * JOULE_PER_EV, 2.5e-3


def _write_fixed_mask(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=_stack("u2"), chunks=(4, *SHAPE), compression="lzf")
        file.create_dataset("mask", data=_stack("u1", 3)[0] % 2, compression="gzip")


def _zarr(name: str, version: int, **options: Any) -> FramesFormat:
    def write(path: Path) -> None:
        root = zarr.open_group(path, mode="w", zarr_format=version)
        root.create_array("entry_1/data_1/data", data=_stack("u2"), **options)
        root.create_array("entry_1/trainId", data=np.arange(N_FRAMES) + 10)
        root.create_array("LCLS/photon_energy_eV", data=1700.0 + np.arange(N_FRAMES))

    return FramesFormat(f"Zarr {name}", ".zarr", write, look_zarr, {}, zarr_columns)


def _write_zarr_array(path: Path) -> None:
    zarr.create_array(path, data=_stack(">i4"), chunks=(5, 3, 5), zarr_format=2)


def _photons(n: int = N_FRAMES) -> sp.csr_array:
    return sp.csr_array(np.random.default_rng(4).poisson(0.7, (n, 30)).astype(np.int32))


def _write_dragonfly(path: Path) -> None:
    write_photons(path, [_photons()], N_FRAMES, 30)


def _write_emc(path: Path) -> None:
    write_photons_binary(path, [_photons()], N_FRAMES, 30)


def _write_dense(path: Path) -> None:
    header = np.zeros(256, "<i4")
    header[:3] = N_FRAMES, 30, 2
    path.write_bytes(header.tobytes() + _photons().toarray().astype("<f8").tobytes())


def _look_photons(path: Path, _dataset: str, _options: dict[str, Any]) -> Frame:
    content = path.read_bytes()
    if content[:4] == b"\x89HDF":
        file = h5py.File(path, "r", locking=False)
        assert int(np.prod(file["num_pix"][()])) == 30
        return lambda row: _fill(
            [(file["place_ones"][row], 1), (file["place_multi"][row], file["count_multi"][row])],
            file["place_missing"][row] if "place_missing" in file else None,
        )
    n_frames, n_pixels, kind = np.frombuffer(content, "<i4", 3).tolist()
    assert n_pixels == 30, "frames of another size"
    if kind:
        dense = np.frombuffer(content, {1: "<i4", 2: "<f8"}[kind], n_frames * 30, 1024)
        return lambda row: dense.reshape(n_frames, *SHAPE)[row]
    counts = np.frombuffer(content, "<i4", 2 * n_frames, 1024).reshape(2, n_frames)
    n_ones, n_multi = counts.sum(axis=1)
    start = 1024 + 8 * n_frames
    lists = np.frombuffer(content, "<i4", (len(content) - start) // 4, start)

    def frame(row: int) -> np.ndarray:
        one, multi = (int(part[:row].sum()) for part in counts)
        ones = lists[one : one + counts[0, row]]
        places, photons = (
            lists[n_ones + k * n_multi + multi :][: counts[1, row]] for k in range(2)
        )
        return _fill([(ones, 1), (places, photons)])

    return frame


def _fill(lists: list[tuple[Any, Any]], missing: Any = None) -> np.ndarray:
    frame = np.zeros(30, np.int32 if missing is None else np.float32)
    for places, photons in lists:
        each = [photons] * len(places) if isinstance(photons, int) else photons
        for place, n in zip(places, each, strict=True):
            assert place >= 0
            frame[place] += n
    if missing is not None:
        assert all(missing >= 0)
        frame[missing] = np.nan
    return frame.reshape(SHAPE)


def _write_virtual(path: Path) -> None:
    raw = path.with_name(f"{path.stem}_raw.h5")
    _write_plain(raw, "u2", chunks=(3, *SHAPE))
    source = RawFrames(
        np.full(N_FRAMES, raw.name),
        np.random.default_rng(5).permutation(N_FRAMES),
        np.full(N_FRAMES, N_FRAMES),
        np.full(N_FRAMES, "data"),
        SHAPE,
        np.dtype("u2"),
    )
    frames = xr.Dataset(
        {
            "run": ("frame", np.zeros(N_FRAMES, np.int32)),
            "index": ("frame", np.arange(N_FRAMES)),
            "run_name": ("run_code", np.array(["r0001"], object)),
            "score": ("frame", np.zeros(N_FRAMES, np.float32)),
        }
    )
    write_virtual(path, source, np.zeros(SHAPE, np.uint32), frames, SETUP, {"versions": "none"})


def _write_events(path: Path, lcls2: bool) -> None:
    """Frames with time stamps, and small data of an event more and an event less, in no order."""
    with h5py.File(path, "w") as file:
        file["entry_1/data_1/data"] = _stack()
        file["LCLS/machineTime"] = (np.arange(N_FRAMES) + SECONDS).astype("u4")
        file["LCLS/machineTimeNanoSeconds"] = np.full(N_FRAMES, 7, "u4")
    event = np.random.default_rng(6).permutation(N_FRAMES) + 1
    stamp = ((event + SECONDS) << 32) | 7
    with h5py.File(path.with_name("events.h5"), "w") as file:
        file["timestamp" if lcls2 else "event_time"] = stamp.astype("u8" if lcls2 else "i8")
        energy, pulse = 1700.0 + event, (event / 16).astype("f4")
        energy[3] = -99999 if lcls2 else np.nan
        names = ("ebeamPhotonEnergy", "gmd/milliJoulesPerPulse") if lcls2 else (
            "photon_energy", "gas_detector/f_11_ENRC")  # fmt: skip
        file[f"ebeam/{names[0]}"], file[names[1]] = energy, pulse


def _event_columns(path: Path, _dataset: str, n_frames: int) -> dict[str, Any]:
    out = hdf5_columns(path, "", n_frames)
    stamps = out.get("timestamp", [np.full(n_frames, -1)])[0]
    with h5py.File(path.with_name("events.h5"), "r", locking=False) as file:
        place = next(n for n in ("timestamp", "event_time") if n in file)
        events = file[place][()].astype(np.int64)
        rows = [np.flatnonzero((events == stamp) & (events > 0)) for stamp in stamps]
        out["n_events"] = [np.array([len(r) for r in rows])]
        for name, places in {
            "photon_energy": ("ebeam/photon_energy", "ebeam/ebeamPhotonEnergy"),
            "pulse_energy": ("gas_detector/f_11_ENRC", "gmd/milliJoulesPerPulse"),
        }.items():
            values = [get(file, place) for place in places]
            fit = [
                v[()].astype(float)
                for v in values
                if isinstance(v, h5py.Dataset) and v.shape == events.shape and v.dtype.kind in "iuf"
            ]
            if not fit:
                continue
            joined = np.array([fit[0][r[0]] if len(r) == 1 else np.nan for r in rows])
            out[name] = [np.where(np.isfinite(joined) & (joined > 0), joined, np.nan)]
    return out


def _events(path: Path) -> Events:
    return Events(files=[str(path.with_name("events.h5"))])


def _events_format(name: str, lcls2: bool) -> FramesFormat:
    def write(path: Path) -> None:
        _write_events(path, lcls2)

    return FramesFormat(name, ".cxi", write, look_hdf5, {"events": _events}, _event_columns)


LOADED = {"layout": FileLayout(shape=SHAPE)}
CXI_MASK = {"layout": FileLayout(mask=f"{DETECTOR}/mask", mask_good="zero")}
FIXED_MASK = {"dataset": "data", "layout": FileLayout(mask="mask")}
HITS = {"dataset": "hits/images", "layout": FileLayout(identity=("run", "index"))}
CHUNKS = (1, *SHAPE)
RUN_FORMATS = [
    _plain("contiguous", "u2"),
    _plain("latest, chunked", "f4", "latest", chunks=(4, 3, 5)),
    _plain("gzip", "i4", chunks=CHUNKS, compression="gzip", shuffle=True, fletcher32=True),
    _plain("bitshuffle/LZ4", "u2", chunks=CHUNKS, **hdf5plugin.Bitshuffle()),
    _plain("big-endian", ">f8", chunks=(5, *SHAPE)),
    _plain("big-endian integers", ">i2"),
    FramesFormat("HDF5, a mask inside", ".h5", _write_fixed_mask, look_hdf5, FIXED_MASK),
    FramesFormat("CXI 1.5", ".cxi", _write_cxi, look_hdf5, CXI_MASK, hdf5_columns),
    FramesFormat("CXI, virtual", ".cxi", _write_virtual, look_hdf5, {}, hdf5_columns),
    FramesFormat("psocake", ".cxi", _write_psocake, look_hdf5, {}, hdf5_columns),
    FramesFormat("CXIDB 58", ".h5", _write_photon_converter, look_hdf5, {}, hdf5_columns),
    FramesFormat("hits by run and index", ".h5", _write_hits, look_hdf5, HITS, _hits_columns),
    _zarr("2", 2, chunks=(5, 6, 5)),
    _zarr("3", 3, chunks=(1, 6, 3)),
    _zarr("3, shards", 3, chunks=(1, 6, 5), shards=(4, 6, 5)),
    FramesFormat("Zarr, an array", ".zarr", _write_zarr_array, look_zarr),
    FramesFormat("Dragonfly, HDF5", ".h5", _write_dragonfly, _look_photons, LOADED),
    FramesFormat("Dragonfly, sparse", ".emc", _write_emc, _look_photons, LOADED),
    FramesFormat("Dragonfly, dense", ".emc", _write_dense, _look_photons, LOADED),
    _events_format("LCLS-1 small data", lcls2=False),
    _events_format("LCLS-2 small data", lcls2=True),
]
