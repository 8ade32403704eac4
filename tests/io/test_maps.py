import os

import h5py
import numpy as np
import pytest

from spidask.errors import DataError
from spidask.io import maps
from spidask.io.maps import check_map, load_map

WHOLE = (0, 4, 0, 5)


@pytest.fixture
def folder(tmp_path):
    with h5py.File(tmp_path / "maps.h5", "w") as file:
        file["r1"] = np.arange(20).reshape(4, 5)
        file["deep/r2"] = np.ones((4, 5), "u1")
        file["odd"] = np.ones((5, 4))
        file["stack"] = np.arange(3)[:, None, None] * np.ones((4, 5))
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["group/only"] = np.full((4, 5), 7)
    np.save(tmp_path / "map.npy", np.arange(20).reshape(4, 5))
    (tmp_path / "text.h5").write_text("no HDF5")
    (tmp_path / "text.npy").write_text("no NumPy file")
    return tmp_path


def load(location, region=WHOLE, **settings):
    return load_map(str(location), (4, 5), region, "mask", **settings)


def test_a_region_of_each_kind_of_file(folder):
    region = (1, 3, 2, 4)
    expected = [[7, 8], [12, 13]]
    assert load(f"{folder}/maps.h5:r1", region).tolist() == expected
    assert load(f"{folder}/map.npy", region).tolist() == expected
    assert load(f"{folder}/maps.h5:deep/r2", region).tolist() == [[1, 1], [1, 1]]
    assert load(f"{folder}/one.h5", region).tolist() == [[7, 7], [7, 7]]


def test_a_stack_is_averaged_a_few_frames_at_a_time(tmp_path):
    rng = np.random.default_rng(1)
    stack = rng.normal(100, 5, (2 * maps.FRAMES_AT_ONCE + 3, 4, 5))
    stack[2, 0, 0] = np.nan
    stack[:, 1, 1] = np.nan
    np.save(tmp_path / "dark.npy", stack)
    found = load(tmp_path / "dark.npy", (0, 2, 0, 5), stack=True)
    expected = np.nanmean(np.where(np.isfinite(stack), stack, np.nan)[:, :1], axis=0)
    np.testing.assert_allclose(found[:1], expected, rtol=1e-12)
    assert np.isnan(found[1, 1])


def test_maps_are_read_once_until_the_file_changes(tmp_path):
    path = tmp_path / "map.npy"
    np.save(path, np.zeros((4, 5)))
    first = load(path)
    assert load(path) is first
    assert not first.flags.writeable
    np.save(path, np.ones((4, 5)))
    os.utime(path, ns=(1, 1))
    assert load(path).tolist() == np.ones((4, 5)).tolist()


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("missing.h5:r1", "mask .*missing.h5: No such file or directory; .* correct the path"),
        ("text.h5:r1", "mask .*text.h5: cannot be opened as HDF5: .*'file.h5:dataset'"),
        ("text.npy", "mask .*text.npy: is no NumPy file"),
        ("maps.h5:r3", "has no dataset 'r3'; it holds deep/r2, odd, r1, stack; give"),
        ("maps.h5:deep", "has no dataset 'deep'; it holds"),
        ("maps.h5", "holds several datasets; it holds deep/r2, odd, r1, stack; give"),
        ("maps.h5:odd", r"maps.h5:odd: has shape \(5, 4\), expected \(4, 5\)"),
        ("maps.h5:stack", r"maps.h5:stack: has shape \(3, 4, 5\), expected \(4, 5\)"),
    ],
)
def test_every_bad_map_is_named_with_its_remedy(folder, location, message):
    for look in (load, lambda place: check_map(place, (4, 5), "mask")):
        with pytest.raises(DataError, match=message) as caught:
            look(f"{folder}/{location}")
        assert "\n" not in str(caught.value)
        assert str(folder) in caught.value.path


def test_good_maps_pass_the_check(folder):
    check_map(f"{folder}/maps.h5:r1", (4, 5), "mask")
    check_map(f"{folder}/maps.h5:stack", (4, 5), "dark", stack=True)
    check_map(f"{folder}/maps.h5:odd", None, "mask")


def test_a_file_with_an_object_that_cannot_be_opened_is_damaged(tmp_path):
    with h5py.File(tmp_path / "maps.h5", "w") as file:
        file["good"], file["lost"] = np.ones((4, 5)), np.ones((4, 5))
        address = h5py.h5o.get_info(file["lost"].id).addr
    with open(tmp_path / "maps.h5", "r+b") as file:
        file.seek(address)
        file.write(b"\xff")
    with pytest.raises(DataError, match=r"mask .*maps\.h5: is damaged: .*; transfer it again"):
        load(f"{tmp_path}/maps.h5:good")
