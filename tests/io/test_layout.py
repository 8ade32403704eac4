"""Files of the field, built by hand as their writers do: frames, ids, masks and energies."""

import h5py
import hdf5plugin
import numpy as np
import pytest
import zarr

from spidask.errors import DataError
from spidask.io.layout import FileLayout
from spidask.io.runs import open_runs, sign_files, take_frames

JOULE_PER_EV = 1.602176634e-19
DETECTOR = "entry_1/instrument_1/detector_1"


def stack(n, shape=(6, 5), seed=1, dtype="i4"):
    return np.random.default_rng(seed).integers(0, 99, (n, *shape)).astype(dtype)


def write_psocake(path, photons, data=None):
    """As psocake writes a run for SPI: photons, ADU with a link to them, LCLS ids, hits."""
    n = len(photons)
    with h5py.File(path, "w") as file:
        file[f"{DETECTOR}/photons"] = photons
        if data is not None:
            file[f"{DETECTOR}/data"] = data
            file["entry_1/data_1/data"] = h5py.SoftLink(f"/{DETECTOR}/data")
        file["entry_1/result_1/nHitsAll"] = np.array([-1] * n)
        file["LCLS/eventNumber"] = np.arange(n) * 3
        file["LCLS/machineTime"] = np.arange(n, dtype=">u4") + 1_500_000_000
        file["LCLS/machineTimeNanoSeconds"] = np.full(n, 7, ">u4")
        file["LCLS/fiducial"] = np.arange(n, dtype="u4") * 3
        file["LCLS/photon_energy_eV"] = np.array([1700.0, np.nan, -1.0, 1710.5])[:n]


def test_psocake_has_photons_before_adu_unless_these_are_linked(tmp_path):
    photons, adu = stack(4), stack(4, seed=2, dtype="f4") * 1.5
    write_psocake(tmp_path / "amo_0090.cxi", photons)
    ds = open_runs(str(tmp_path / "amo_0090.cxi"))
    np.testing.assert_array_equal(ds["frames"].values, photons)
    assert ds["frames"].dtype == np.dtype("i4")
    assert ds["file_dataset"].values.tolist() == [f"{DETECTOR}/photons"]
    assert ds["eventNumber"].values.tolist() == [0, 3, 6, 9]
    assert ds["timestamp"].values.tolist() == [((1_500_000_000 + i) << 32) | 7 for i in range(4)]
    assert ds["fiducial"].values.tolist() == [0, 3, 6, 9]
    np.testing.assert_array_equal(ds["photon_energy"].values, [1700.0, np.nan, np.nan, 1710.5])
    assert ds["photon_energy"].attrs["units"] == "eV"
    write_psocake(tmp_path / "amo_0091.cxi", photons, adu)
    both = open_runs(str(tmp_path / "*.cxi"))
    np.testing.assert_array_equal(both["frames"].values, np.concatenate([photons, adu]))
    named = open_runs(str(tmp_path / "amo_0091.cxi"), f"{DETECTOR}/photons")
    np.testing.assert_array_equal(named["frames"].values, photons)


@pytest.mark.parametrize(
    "place",
    [
        "entry_2/data_1/data",
        "entry_1/instrument_1/detector_2/data",
        "entry_1/image_1/data",
        "photonConverter/pnccdBack/photonCount",
    ],
)
def test_the_default_finds_what_stands_elsewhere(tmp_path, place):
    frames = stack(3, dtype=">u2")
    with h5py.File(tmp_path / "r1.cxi", "w") as file:
        file.create_dataset(place, data=frames, chunks=(1, 6, 5), **hdf5plugin.Bitshuffle())
        file["entry_1/result_1/table"] = np.zeros((3, 2))
    zarr.create_array(tmp_path / "r2.zarr", name=place, data=frames)
    zarr.create_array(tmp_path / "r3.zarr", name=place, data=frames, zarr_format=2)
    ds = open_runs([str(tmp_path / name) for name in ("r1.cxi", "r2.zarr", "r3.zarr")])
    np.testing.assert_array_equal(ds["frames"].values, np.concatenate([frames] * 3))
    assert ds["file_dataset"].values.tolist() == [place] * 3
    assert [signed[0][3] for signed in sign_files(ds).values()] == [3, 3, 3]
    # A path that the user gives is taken at its word.
    with pytest.raises(DataError, match=r"set runs\.dataset"):
        open_runs(str(tmp_path / "r1.cxi"), "entry_1/data_2/data")


def test_links_to_one_stack_are_one_and_two_stacks_are_a_question(tmp_path):
    with h5py.File(tmp_path / "r1.cxi", "w") as file:
        file["entry_1/instrument_1/detector_1/data"] = stack(2)
        file["entry_1/instrument_1/detector_2/data"] = file[f"{DETECTOR}/data"]
    assert open_runs(str(tmp_path / "r1.cxi")).sizes["frame"] == 2
    with h5py.File(tmp_path / "r1.cxi", "a") as file:
        file["entry_1/instrument_1/detector_3/data"] = stack(2, seed=2)
    with pytest.raises(
        DataError, match=r"several stacks .*detector_1/data, .*detector_3/data; set"
    ):
        open_runs(str(tmp_path / "r1.cxi"))


def test_a_link_that_leads_nowhere_or_round_is_no_stack(tmp_path):
    with h5py.File(tmp_path / "r1.cxi", "w") as file:
        file["entry_1/data_1/data"] = h5py.SoftLink("/entry_1/gone")
        file["entry_1/instrument_1/detector_1"] = h5py.SoftLink("/entry_1/instrument_1/detector_1")
    with pytest.raises(DataError, match=r"holds no stack of frames at all|transfer it again"):
        open_runs(str(tmp_path / "r1.cxi"))


@pytest.mark.parametrize("good", ["zero", "nonzero"])
@pytest.mark.parametrize("per_frame", [False, True])
def test_masks_inside_the_files_make_pixels_missing(tmp_path, per_frame, good):
    frames, bits = stack(7), np.zeros((7, 6, 5), ">u4")
    bits[:, 2, 3], bits[:, 0, 0], bits[4, 5, 4] = 0x200, 0x80000000, 0x2
    mask = bits if per_frame else bits[0]
    stored = mask if good == "zero" else (mask == 0).astype("u1")
    with h5py.File(tmp_path / "r1.cxi", "w") as file:
        file[f"{DETECTOR}/data"] = frames[:4]
        file[f"{DETECTOR}/mask"] = stored[:4] if per_frame else stored
    root = zarr.open_group(tmp_path / "r2.zarr", mode="w")
    root.create_array(f"{DETECTOR}/data", data=frames[4:].astype("u2"))
    root.create_array(f"{DETECTOR}/mask", data=stored[4:] if per_frame else stored)
    layout = FileLayout(mask=f"{DETECTOR}/mask", mask_good=good)
    ds = open_runs(f"{tmp_path}/*", layout=layout, frames_per_block=3)
    expected = np.where(np.broadcast_to(mask, frames.shape) == 0, frames, np.nan)
    assert ds["frames"].dtype == np.dtype("f8")
    np.testing.assert_array_equal(ds["frames"].values, expected)
    np.testing.assert_array_equal(ds["frames"][:, 1:4, ::2].values, expected[:, 1:4, ::2])
    rows = [6, 0, 4]
    np.testing.assert_array_equal(take_frames(ds, rows)["frames"].values, expected[rows])


def test_a_file_without_its_mask_or_with_another_shape_is_told(tmp_path):
    for name in ("r1", "r2", "r3"):
        with h5py.File(tmp_path / f"{name}.cxi", "w") as file:
            file[f"{DETECTOR}/data"] = stack(2)
            if name != "r1":
                file[f"{DETECTOR}/mask"] = np.zeros((6, 5) if name == "r2" else (5, 6))
    ds = open_runs(
        f"{tmp_path}/*.cxi", layout=FileLayout(mask=f"{DETECTOR}/mask", mask_good="zero")
    )
    assert ds["run_name"].values.tolist() == ["r2"]
    first, second = (why for _, why in ds.attrs["unreadable_files"])
    assert first.startswith(f"has no mask '{DETECTOR}/mask'")
    assert "has shape (5, 6), expected (6, 5) or (2, 6, 5); set runs.mask" in second


@pytest.mark.parametrize("frames_per_block", [1, 3])
def test_frames_whose_mask_cannot_be_decoded_are_unreadable(tmp_path, frames_per_block):
    with h5py.File(tmp_path / "r1.cxi", "w") as file:
        file[f"{DETECTOR}/data"] = stack(3)
        mask = np.zeros((3, 6, 5), "u4")
        file.create_dataset(f"{DETECTOR}/mask", data=mask, chunks=(1, 6, 5), compression="gzip")
        where = file[f"{DETECTOR}/mask"].id.get_chunk_info(1)
    with open(tmp_path / "r1.cxi", "r+b") as file:
        file.seek(where.byte_offset)
        file.write(b"\xff" * where.size)
    layout = FileLayout(mask=f"{DETECTOR}/mask", mask_good="zero")
    ds = open_runs(f"{tmp_path}/*.cxi", layout=layout, frames_per_block=frames_per_block)
    assert np.isnan(ds["frames"].values).all(axis=(1, 2)).tolist() == [False, True, False]


@pytest.mark.parametrize("form", ["one number", "a list of one", "one for each frame"])
def test_energies_of_the_source_are_in_joule(tmp_path, form):
    values = {"one number": 1700.7, "a list of one": [1700.7]}.get(form, [1700.7, 1690.0, 1715.25])
    with h5py.File(tmp_path / "r1.cxi", "w") as file:
        file["entry_1/data_1/data"] = stack(3)
        source = file.create_group("entry_1/instrument_1/source_1")
        source["energy"] = np.array(values) * JOULE_PER_EV
        source["pulse_energy"] = 2.5e-3
    ds = open_runs(str(tmp_path / "r1.cxi"))
    expected = np.broadcast_to(np.array(values).reshape(-1), 3)
    np.testing.assert_allclose(ds["photon_energy"].values, expected, rtol=1e-12)
    np.testing.assert_allclose(take_frames(ds, [2, 0])["photon_energy"].values, expected[[2, 0]])
    np.testing.assert_allclose(ds["pulse_energy"].values, 2.5)
    assert ds["pulse_energy"].attrs["units"] == "mJ"
