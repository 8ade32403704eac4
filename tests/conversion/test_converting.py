import h5py
import hdf5plugin
import numpy as np
import pytest
import scipy.sparse as sp
import xarray as xr
import zarr

from spidask.conversion import convert
from spidask.errors import DataError
from spidask.io.cxi import Setup, write_cxi
from spidask.io.emc import read_missing, read_photons, write_photons
from spidask.io.runs import open_runs

N, ROWS, COLUMNS = 11, 5, 6
FORMS = {
    "zarr": "out.zarr",
    "hdf5": "out.h5",
    "cxi": "out.cxi",
    "dragonfly": "p.h5",
    "emc": "p.emc",
}
ANY_VALUE = ("zarr", "hdf5", "cxi")


def make_frames(dtype):
    random = np.random.default_rng(4)
    frames = random.poisson(0.8, (N, ROWS, COLUMNS)).astype(dtype)
    frames[3, 1, 2] = 60_000
    return frames


def write_source(folder, form, frames, mask=None):
    """A file or folder of each form, by other means than those that are tested."""
    path = folder / f"source{FORMS[form][-5:]}"
    if form == "zarr":
        group = zarr.open_group(path, mode="w", zarr_format=2)
        group.create_array("scan/frames", data=frames, chunks=(4, 3, 6))
        group["scan/frames"].attrs["units"] = "ADU"
        group.create_array("trainId", data=np.arange(N) + 900)
    elif form in ("hdf5", "cxi"):
        home = {"hdf5": "scan", "cxi": "entry_1/instrument_1/detector_1"}[form]
        with h5py.File(path, "w") as file:
            file.create_dataset(f"{home}/data", data=frames, chunks=(4, 3, 6), compression="gzip")
            file[f"{home}/data"].attrs["units"] = "ADU"
            file.attrs["beamtime"] = "amo87215"
            file["trainId"] = np.arange(N) + 900
            if mask is not None:
                file[f"{home}/mask"] = mask
            if form == "cxi":
                file["cxi_version"] = 140
                file["entry_1/data_1/data"] = h5py.SoftLink(f"/{home}/data")
    elif form == "dragonfly":
        flat = np.where(np.isnan(frames), -1, frames).reshape(N, -1).astype(np.int32)
        write_photons(path, [sp.csr_array(flat)], N, ROWS * COLUMNS)
    else:
        header = np.zeros(256, "<i4")
        header[:3] = N, ROWS * COLUMNS, 1
        path.write_bytes(header.tobytes() + frames.astype("<i4").tobytes())
    return path


def dataset_of(form):
    return {"zarr": "scan/frames", "hdf5": "scan/data"}.get(form, "entry_1/data_1/data")


def read(path, form, home=None):
    """The frames of what was written, by other means than spidask's reader."""
    if form == "zarr":
        return zarr.open_group(path, mode="r")[home][...]
    if form in ("hdf5", "cxi"):
        with h5py.File(path) as file:
            return file[home or "entry_1/data_1/data"][()]
    return read_photons(path).toarray().reshape(N, ROWS, COLUMNS)


@pytest.mark.parametrize("target", FORMS)
@pytest.mark.parametrize("source", FORMS)
@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_every_value_of_every_pair_of_forms(tmp_path, source, target, codec):
    frames = make_frames(np.uint16)
    path = write_source(tmp_path, source, frames)
    shape = (ROWS, COLUMNS) if source in ("dragonfly", "emc") else None
    out = tmp_path / FORMS[target]
    options = {"dataset": dataset_of(source), "codec": codec, "form": target}
    told = convert(path, out, shape=shape, **options)
    home = {
        "hdf5": "scan/data",
        "zarr": "scan/frames",
        "cxi": "entry_1/instrument_1/detector_1/data",
    }
    place = "entry_1/instrument_1/detector_1/data" if target == "cxi" else home.get(source)
    found = read(out, target, place or "entry_1/data_1/data")
    assert found.tolist() == frames.tolist()
    assert told.shape == (N, ROWS, COLUMNS)
    # And back again: the same values, and so the same checksum.
    again = convert(
        out,
        tmp_path / "again.h5",
        dataset=place or "entry_1/data_1/data",
        shape=None if target != "emc" else (ROWS, COLUMNS),
    )
    if target != "emc":  # which has int32 alone
        assert (again.dtype, again.checksum) == (told.dtype, told.checksum)
    back = "entry_1/data_1/data" if target == "emc" else place or "entry_1/data_1/data"
    assert read(tmp_path / "again.h5", "hdf5", back).tolist() == frames.tolist()
    assert len(list(tmp_path.iterdir())) == 3


def test_xarray_opens_what_was_converted_to_zarr(tmp_path):
    frames = make_frames(np.uint16)
    path = write_source(tmp_path, "hdf5", frames)
    with h5py.File(path, "a") as file:
        file["scan/gain"] = np.full((ROWS, COLUMNS), 2.5)
        file["scan/cells"] = np.arange(N * 3).reshape(N, 3)
        file["scan/name"] = "PR772"
    convert(path, tmp_path / "out.zarr", dataset="scan/data")
    beside = xr.open_zarr(tmp_path / "out.zarr", consolidated=False)
    assert beside["trainId"].dims == ("frame",)
    assert beside["trainId"].values.tolist() == [900 + i for i in range(N)]
    scan = xr.open_zarr(tmp_path / "out.zarr", group="scan", consolidated=False)
    dims = {str(name): array.dims for name, array in scan.items()}
    assert dims == {
        "data": ("frame", "y", "x"),
        "gain": ("y", "x"),
        "cells": ("frame", "cells_1"),
        "name": (),
    }
    np.testing.assert_array_equal(scan["data"], frames)
    np.testing.assert_array_equal(scan["cells"], np.arange(N * 3).reshape(N, 3))


@pytest.mark.parametrize("dtype", ["<i2", ">u2", "<u4", "<f4", "<f8", ">f8", "u1", "<i8"])
@pytest.mark.parametrize("target", ANY_VALUE)
@pytest.mark.parametrize("source", ["zarr", "hdf5"])
def test_any_dtype_with_negatives_and_nan(tmp_path, source, target, dtype):
    frames = make_frames("f8") % 200
    if np.dtype(dtype).kind != "u":
        frames[2] *= -1
    frames = frames.astype(dtype)
    if frames.dtype.kind == "f":
        frames[5, 1:3] = np.nan
        frames[6, 0] = [np.inf, -np.inf, 1e-30, -0.0, 0.1, 3e7]
    path = write_source(tmp_path, source, frames)
    convert(path, tmp_path / FORMS[target], dataset=dataset_of(source), form=target)
    home = "entry_1/instrument_1/detector_1/data" if target == "cxi" else dataset_of(source)
    found = read(tmp_path / FORMS[target], target, home)
    np.testing.assert_array_equal(found, frames)
    assert found.dtype == np.dtype(dtype).newbyteorder("=")


@pytest.mark.parametrize("form", ANY_VALUE)
@pytest.mark.parametrize("per_frame", [False, True])
def test_mask_ids_and_attributes_are_kept(tmp_path, form, per_frame):
    frames = make_frames(np.uint16)
    mask = np.random.default_rng(1).integers(0, 2**31, (N, ROWS, COLUMNS), np.uint32)
    mask = mask if per_frame else mask[0]
    path = write_source(tmp_path, "hdf5", frames, mask)
    with h5py.File(path, "a") as file:
        del file["trainId"]
        file["scan/timestamp"] = (1_533_081_600 << 32) + np.arange(N)
        file["LCLS/photon_energy_eV"] = np.linspace(1690, 1710, N)
        file["note"] = "virus \u00b5"
        file["names"] = np.array(["a", "bc"], object)
        file["names"].attrs["sorted"] = True
    first = tmp_path / FORMS[form]
    assert convert(path, first, dataset="scan/data").left_out == []
    home = "entry_1/instrument_1/detector_1" if form == "cxi" else "scan"
    opened = open_runs(str(first), f"{home}/data")
    assert opened["frames"].values.tolist() == frames.tolist()
    assert opened["timestamp"].values.tolist() == ((1_533_081_600 << 32) + np.arange(N)).tolist()
    assert opened["photon_energy"].values.tolist() == np.linspace(1690, 1710, N).tolist()
    # From there to HDF5 again, to look at it with h5py.
    convert(first, tmp_path / "last.h5", dataset=f"{home}/data")
    with h5py.File(tmp_path / "last.h5") as file:
        assert file[f"{home}/mask"][()].tolist() == mask.tolist()
        assert file[f"{home}/mask"].dtype == np.uint32
        assert file[f"{home}/data"].attrs["units"] == "ADU"
        assert file.attrs["beamtime"] == "amo87215"
        assert file["note"].asstr()[()] == "virus \u00b5"
        assert file["names"].asstr()[()].tolist() == ["a", "bc"]
        assert file["names"].attrs["sorted"]


@pytest.mark.parametrize("form", ["dragonfly", "emc"])
def test_what_dragonfly_keeps(tmp_path, form):
    frames = make_frames(np.uint16)
    mask = np.arange(N * ROWS * COLUMNS, dtype=np.uint32).reshape(frames.shape)
    path = write_source(tmp_path, "hdf5", frames, mask)
    out = tmp_path / FORMS[form]
    told = convert(path, out, dataset="scan/data", form=form)
    assert told.left_out == ([] if form == "dragonfly" else ["scan/mask", "trainId"])
    if form == "dragonfly":
        convert(out, tmp_path / "back.h5")
        with h5py.File(tmp_path / "back.h5") as file:
            assert file["scan/data"].dtype == np.uint16
            assert file["scan/data"][()].tolist() == frames.tolist()
            assert file["scan/mask"][()].tolist() == mask.tolist()
            assert file["trainId"][()].tolist() == (np.arange(N) + 900).tolist()
            assert file.attrs["beamtime"] == "amo87215"


def test_missing_photons(tmp_path):
    frames = make_frames(np.float32)
    frames[2, 1] = np.nan
    path = write_source(tmp_path, "hdf5", frames)
    convert(path, tmp_path / "p.h5", dataset="scan/data", form="dragonfly")
    assert [len(m) for m in read_missing(tmp_path / "p.h5", slice(0, 4))] == [0, 0, COLUMNS, 0]
    convert(tmp_path / "p.h5", tmp_path / "back.zarr")
    back = zarr.open_group(tmp_path / "back.zarr", mode="r")["scan/data"][...]
    np.testing.assert_array_equal(back, frames)
    with pytest.raises(DataError, match=r"frame 2 holds nan in pixel \(1, 0\).*no missing pixels"):
        convert(path, tmp_path / "p.emc", dataset="scan/data")


@pytest.mark.parametrize(
    ("value", "shown", "dtype"),
    [(-1, "-1", "f8"), (0.5, "0.5", "f8"), (3e9, "3000000000.0", "f8"), (2.0**31, "2147", "f4")],
)
def test_what_is_no_photons_is_refused(tmp_path, value, shown, dtype):
    frames = make_frames(dtype)
    frames[7, 4, 3] = value
    path = write_source(tmp_path, "hdf5", frames)
    with pytest.raises(DataError, match=rf"frame 7 holds {shown}\S* in pixel \(4, 3\)"):
        convert(path, tmp_path / "p.emc", dataset="scan/data")
    assert {p.name for p in tmp_path.iterdir()} == {path.name}


def test_chunks_for_fast_reading(tmp_path, monkeypatch):
    path = write_source(tmp_path, "hdf5", make_frames(np.uint16))
    convert(path, tmp_path / "o.h5", dataset="scan/data")
    with h5py.File(tmp_path / "o.h5") as file:
        assert file["scan/data"].chunks == (1, ROWS, COLUMNS)
        filters = file["scan/data"].id.get_create_plist()
        assert filters.get_filter(0)[0] == hdf5plugin.Bitshuffle.filter_id
    monkeypatch.setattr("spidask.conversion.targets.CHUNK_BYTES", 2 * 60)
    monkeypatch.setattr("spidask.conversion.targets.SHARD_BYTES", 4 * 60)
    monkeypatch.setattr("spidask.conversion.sources.BLOCK_BYTES", 3 * 60)
    told = convert(path, tmp_path / "o.zarr", dataset="scan/data")
    array = zarr.open_group(tmp_path / "o.zarr", mode="r")["scan/data"]
    assert array.metadata.zarr_format == 3
    assert (array.chunks, array.shards) == ((2, ROWS, COLUMNS), (4, ROWS, COLUMNS))
    whole = convert(tmp_path / "o.zarr", tmp_path / "whole.h5", dataset="scan/data")
    assert whole.checksum == told.checksum


def test_a_selection_keeps_its_geometry_and_scores(tmp_path):
    frames = xr.Dataset(
        {
            "run": ("frame", np.zeros(3, np.int32)),
            "index": ("frame", np.array([4, 2, 9])),
            "run_name": ("run_code", np.array(["r0001"], object)),
            "score": ("frame", np.float32([0.5, 0.25, 0.125])),
            "selected": ("frame", np.ones(3, bool)),
        }
    )
    photons = np.arange(24, dtype=np.int32).reshape(3, 2, 4)
    bits = np.full((3, 2, 4), 0x80, np.uint32)
    setup = Setup(photon_energy=1700.0, distance=0.13, pixel_size=75e-6, beam_centre=(-3, 1.5))
    write_cxi(tmp_path / "s.cxi", [(photons, bits)], frames, (2, 4), setup, {"settings": "{}"})
    convert(tmp_path / "s.cxi", tmp_path / "s.zarr")
    convert(tmp_path / "s.zarr", tmp_path / "again.cxi")
    with h5py.File(tmp_path / "s.cxi") as one, h5py.File(tmp_path / "again.cxi") as other:
        names = []
        one.visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
        for name in names:
            np.testing.assert_array_equal(one[name][()], other[name][()])
        detector = other["entry_1/instrument_1/detector_1"]
        assert detector["tags"].attrs["headings"].tolist() == ["selected"]
        assert other["entry_1/data_1/data"] == detector["data"]


@pytest.mark.parametrize("link", ["hard", "group"])
@pytest.mark.parametrize("form", ANY_VALUE)
def test_mask_and_ids_beside_frames_to_which_links_lead(tmp_path, form, link):
    frames, mask = make_frames(np.uint16), make_frames(np.uint16).astype(np.uint32) + 2**31
    home = "entry_1/instrument_1/detector_1"
    with h5py.File(tmp_path / "source.cxi", "w") as file:
        file[f"{home}/data"], file[f"{home}/mask"] = frames, mask
        file[f"{home}/timestamp"] = np.arange(N)
        if link == "hard":
            file["entry_1/data_1/data"] = file[f"{home}/data"]
        else:
            file["entry_1/data_1"] = h5py.SoftLink(f"/{home}")
    out = tmp_path / FORMS[form]
    told = convert(tmp_path / "source.cxi", out)
    links = {"hard": ["entry_1/data_1/data"], "group": ["entry_1/data_1"]}
    assert told.left_out == (links[link] if form == "zarr" else [])
    assert read(out, form, f"{home}/data").tolist() == frames.tolist()
    assert read(out, form, f"{home}/mask").tolist() == mask.tolist()
    ids = open_runs(str(out), f"{home}/data")["timestamp"]
    assert ids.values.tolist() == list(range(N))


@pytest.mark.parametrize(("fill", "match"), [(7, "source gone.h5 is gone"), (65535, "in gone.h5,")])
def test_frames_in_files_that_are_gone_are_refused(tmp_path, fill, match):
    layout = h5py.VirtualLayout((N, ROWS, COLUMNS), np.uint16)
    layout[:] = h5py.VirtualSource("gone.h5", "data", layout.shape, np.uint16)
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("data", layout, fillvalue=fill)
    with pytest.raises(DataError, match=match):
        convert(tmp_path / "virtual.h5", tmp_path / "out.zarr", dataset="data")
    with h5py.File(tmp_path / "gone.h5", "w") as file:
        file["data"] = make_frames(np.uint16)
    convert(tmp_path / "virtual.h5", tmp_path / "out.h5", dataset="data")
    assert read(tmp_path / "out.h5", "hdf5", "data").tolist() == make_frames(np.uint16).tolist()


@pytest.mark.parametrize("form", ANY_VALUE)
def test_netcdf_of_xarray(tmp_path, form):
    frames = make_frames(np.float32)
    columns = {"frames": (("frame", "y", "x"), frames), "note": ("frame", list("abcdefghijk"))}
    table = xr.Dataset(columns, coords={"frame": np.arange(N) * 2}, attrs={"of": "PR772"})
    table.to_netcdf(tmp_path / "source.nc", engine="h5netcdf")
    out = tmp_path / FORMS[form]
    convert(tmp_path / "source.nc", out, dataset="frames")
    home = "entry_1/instrument_1/detector_1/data" if form == "cxi" else "frames"
    assert read(out, form, home).tolist() == frames.tolist()
    if form == "hdf5":  # its dimensions are those of before
        with xr.open_dataset(out, engine="h5netcdf") as again:
            xr.testing.assert_identical(again[["frames", "note"]].drop_vars(["y", "x"]), table)


def test_other_stacks_are_told(tmp_path):
    path = write_source(tmp_path, "hdf5", make_frames(np.uint16))
    with h5py.File(path, "a") as file:
        file["scan/raw"] = np.zeros((N, 2, 2))
        file["elsewhere"] = h5py.ExternalLink("other.h5", "/data")
        file["scan/loop"] = file["scan"]
    told = convert(path, tmp_path / "o.h5", dataset="scan/data")
    assert told.left_out == ["elsewhere", "scan/raw"]
    assert told.lines()[-1] == "left out: elsewhere, scan/raw"


def test_a_client_gives_the_same(tmp_path):
    from distributed import Client

    path = write_source(tmp_path, "hdf5", make_frames(np.uint16))
    with Client(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as client:
        for form, name in FORMS.items():
            here = convert(path, tmp_path / f"a{name}", dataset="scan/data", form=form)
            there = convert(
                path, tmp_path / f"b{name}", dataset="scan/data", form=form, client=client
            )
            assert here.checksum == there.checksum


def test_nothing_is_overwritten(tmp_path):
    path = write_source(tmp_path, "hdf5", make_frames(np.uint16))
    (tmp_path / "o.zarr").mkdir()
    with pytest.raises(DataError, match="is there already"):
        convert(path, tmp_path / "o.zarr", dataset="scan/data")
    with pytest.raises(DataError, match="is there already"):
        convert(path, path, dataset="scan/data")


def test_damaged_frames_stop_it(tmp_path):
    path = write_source(tmp_path, "hdf5", make_frames(np.uint16))
    with h5py.File(path) as file:
        chunk = file["scan/data"].id.get_chunk_info(2)
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\xff" * chunk.size)
    with pytest.raises(DataError, match="frames 0 to 10 cannot be decoded"):
        convert(path, tmp_path / "o.zarr", dataset="scan/data")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_disk_that_forgets_is_noticed(tmp_path, monkeypatch):
    path = write_source(tmp_path, "hdf5", make_frames(np.uint16))
    whole = h5py.Dataset.__setitem__
    monkeypatch.setattr(h5py.Dataset, "__setitem__", lambda s, k, v: whole(s, k, v * (v < 9)))
    with pytest.raises(DataError, match=r"1 of 11 frames read back otherwise .* the first 3"):
        convert(path, tmp_path / "o.h5", dataset="scan/data")
    assert not (tmp_path / "o.h5").exists()


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("o.npy", {}, "no form by this suffix"),
        ("o.h5", {"dataset": "nothing"}, r"has no dataset 'nothing'; .* give --dataset"),
    ],
)
def test_what_cannot_be_done_is_told(tmp_path, name, options, match):
    path = write_source(tmp_path, "hdf5", make_frames(np.uint16))
    with pytest.raises(DataError, match=match):
        convert(path, tmp_path / name, **options)


def test_sources_that_are_none(tmp_path):
    with pytest.raises(DataError, match="is not there"):
        convert(tmp_path / "no.h5", tmp_path / "o.zarr")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(DataError, match=r"text\.h5: is no HDF5 file"):
        convert(tmp_path / "text.h5", tmp_path / "o.zarr")
    path = write_source(tmp_path, "emc", make_frames(np.uint16))
    with pytest.raises(DataError, match="give --shape ROWS COLUMNS"):
        convert(path, tmp_path / "o.zarr")
    with pytest.raises(DataError, match="holds 30 pixels a frame, expected 5 x 7"):
        convert(path, tmp_path / "o.zarr", shape=(5, 7))


def test_modules_are_refused(tmp_path):
    with h5py.File(tmp_path / "virtual.cxi", "w") as file:
        file["entry_1/data_1/data"] = np.zeros((2, 16, 4, 4), np.float32)
    with pytest.raises(DataError, match=r"virtual.cxi: holds several modules a frame, \(2, 16, 4"):
        convert(tmp_path / "virtual.cxi", tmp_path / "out.zarr")
    run = tmp_path / "r0001"
    run.mkdir()
    (run / "RAW-R0001-AGIPD00-S00000.h5").touch()
    with pytest.raises(DataError, match=r"r0001: is a run of the European XFEL; stacks .* convert"):
        convert(run, tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()
