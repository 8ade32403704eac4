import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from spidask.errors import DataError
from spidask.io.emc import (
    MISSING,
    read_missing,
    read_photons,
    write_photons,
    write_photons_binary,
)

PHOTONS = np.array(
    [
        [0, 1, 0, 0, 5, 1],
        [0, 0, 0, 0, 0, 0],
        [2, 0, 0, 1, 0, 0],
        [0, 300000, 1, 1, 1, 1],
    ],
    np.int32,
)


def blocks(photons, size):
    return (sp.csr_array(photons[i : i + size]) for i in range(0, len(photons), size))


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("write", [write_photons, write_photons_binary])
def test_photons_come_back(tmp_path, write, size):
    path = tmp_path / "photons.any"
    write(path, blocks(PHOTONS, size), 4, 6)
    photons = read_photons(path)
    assert photons.dtype == np.int32
    assert photons.toarray().tolist() == PHOTONS.tolist()
    assert read_photons(path, np.array([0, 3])).toarray().tolist() == PHOTONS[[0, 3]].tolist()
    assert read_photons(path, slice(1, 3)).toarray().tolist() == PHOTONS[1:3].tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["photons.any"]


def test_the_layout_in_hdf5(tmp_path):
    write_photons(tmp_path / "p.h5", blocks(PHOTONS, 2), 4, 6, {"made_by": "a test"})
    with h5py.File(tmp_path / "p.h5") as file:
        assert file["num_pix"][()].tolist() == [6]
        for name, first, third in (
            ("place_ones", [1, 5], [3]),
            ("place_multi", [4], [0]),
            ("count_multi", [5], [2]),
        ):
            assert file[name].chunks == (1,)
            assert h5py.check_vlen_dtype(file[name].dtype) == np.int32
            assert file[name][0].tolist() == first
            assert file[name][1].tolist() == []
            assert file[name][2].tolist() == third
        assert dict(file.attrs) == {"made_by": "a test"}


def test_the_layout_in_binary(tmp_path):
    write_photons_binary(tmp_path / "p.emc", blocks(PHOTONS, 3), 4, 6)
    words = np.fromfile(tmp_path / "p.emc", "<i4")
    assert words[:3].tolist() == [4, 6, 0]
    assert not words[3:256].any()
    ones, multi, places = [2, 0, 1, 4], [1, 0, 1, 1], [1, 5, 3, 2, 3, 4, 5]
    assert words[256:].tolist() == [*ones, *multi, *places, *[4, 0, 1], *[5, 2, 300000]]


@pytest.mark.parametrize("write", [write_photons, write_photons_binary])
def test_missing_pixels_and_other_negatives_hold_no_photons(tmp_path, write):
    photons = np.array([[1, MISSING, -7], [MISSING, 2, MISSING]], np.int32)
    write(tmp_path / "p", blocks(photons, 2), 2, 3)
    assert read_photons(tmp_path / "p").toarray().tolist() == [[1, 0, 0], [0, 2, 0]]
    if write is write_photons:
        missing = read_missing(tmp_path / "p", slice(None))
        assert [m.tolist() for m in missing] == [[1], [0, 2]]


@pytest.mark.parametrize("write", [write_photons, write_photons_binary])
def test_no_frames(tmp_path, write):
    write(tmp_path / "p", [], 0, 3)
    assert read_photons(tmp_path / "p").shape == (0, 3)


@pytest.mark.parametrize("write", [write_photons, write_photons_binary])
@pytest.mark.parametrize(
    ("n_frames", "n_pixels", "message"),
    [(5, 6, "4 frames came, 5 were"), (3, 6, "after 2 frames"), (4, 5, "expected 4 frames of 5")],
)
def test_another_number_of_frames_or_pixels_is_refused(
    tmp_path, write, n_frames, n_pixels, message
):
    with pytest.raises(DataError, match=message):
        write(tmp_path / "p", blocks(PHOTONS, 2), n_frames, n_pixels)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(("kind", "dtype"), [(1, "<i4"), (2, "<f8")])
def test_dense_binary_files_are_read(tmp_path, kind, dtype):
    header = np.zeros(256, "<i4")
    header[:3] = 4, 6, kind
    (tmp_path / "p.emc").write_bytes(header.tobytes() + PHOTONS.astype(dtype).tobytes())
    photons = read_photons(tmp_path / "p.emc")
    assert photons.dtype == np.dtype(dtype)
    assert photons.toarray().tolist() == PHOTONS.tolist()


def test_every_truncation_is_noticed(tmp_path):
    write_photons_binary(tmp_path / "p.emc", blocks(PHOTONS, 2), 4, 6)
    whole = (tmp_path / "p.emc").read_bytes()
    for size in [0, 5, 1023, *range(1024, len(whole), 4)]:
        (tmp_path / "cut.emc").write_bytes(whole[:size])
        with pytest.raises(DataError, match="holds no photons of Dragonfly"):
            read_photons(tmp_path / "cut.emc")


@pytest.mark.parametrize(
    "words",
    [
        [-1, 6, 0],
        [4, 6, 7],
        [2**31 - 1, 6, 0],
        [2**31 - 1, 2**31 - 1, 2],
        # One frame with one photon at a place beyond its 6 pixels, and a negative count.
        [1, 6, 0, *[0] * 253, 1, 0, 6],
        [1, 6, 0, *[0] * 253, 2, -1, 0, 1],
    ],
)
def test_absurd_binary_files_are_refused(tmp_path, words):
    padded = np.array([*words, *[0] * (256 - len(words))], "<i4")
    (tmp_path / "p.emc").write_bytes(padded.tobytes())
    with pytest.raises(DataError, match="holds no photons of Dragonfly"):
        read_photons(tmp_path / "p.emc")


def test_absurd_hdf5_files_are_refused(tmp_path):
    path = tmp_path / "p.h5"
    write_photons(path, blocks(PHOTONS, 2), 4, 6)
    with h5py.File(path, "a") as file:
        file["num_pix"][0] = 5
    with pytest.raises(DataError, match="positions 0 to 5 in 5 pixels"):
        read_photons(path)
    with h5py.File(path, "a") as file:
        file["count_multi"][0] = np.array([5, 5], np.int32)
    with pytest.raises(DataError, match="differ in length"):
        read_photons(path)
    with h5py.File(path, "a") as file:
        del file["place_ones"]
    with pytest.raises(DataError, match="place_ones"):
        read_photons(path)
