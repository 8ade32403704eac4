import configparser

import h5py
import numpy as np
import pytest

from spidask.errors import DataError
from spidask.io.dragonfly import (
    make_detector,
    read_blacklist,
    read_detector,
    write_blacklist,
    write_detector,
    write_settings,
)


@pytest.fixture
def detector():
    y, x = np.meshgrid([3.0, 4.0], [-1.0, 0.0, 2.0], indexing="ij")
    return make_detector(y, x, 10.0, np.array([[False, True, False], [False, False, False]]))


def test_pixels_lie_on_the_ewald_sphere(detector):
    radius = np.sqrt(detector.qx**2 + detector.qy**2 + (detector.qz + 10) ** 2)
    np.testing.assert_allclose(radius, 10)
    # Row 3 and column -1 are f = sqrt(9 + 1 + 100) away.
    f = np.sqrt(110)
    found = [getattr(detector, name)[0] for name in ("qx", "qy", "qz", "corr")]
    np.testing.assert_allclose(
        found, [-10 / f, 30 / f, 10 * (10 / f - 1), 10 / f**3 * (1 - 1 / 110)]
    )
    assert detector.mask.tolist() == [0, 2, 0, 0, 0, 0]
    assert (detector.detd, detector.ewald_rad) == (10, 10)


def test_a_detector_comes_back(tmp_path, detector):
    write_detector(tmp_path / "d.h5", detector)
    again = read_detector(tmp_path / "d.h5")
    for name in ("qx", "qy", "qz", "corr", "mask"):
        np.testing.assert_array_equal(getattr(again, name), getattr(detector, name))
        assert getattr(again, name).dtype == getattr(detector, name).dtype
    assert (again.detd, again.ewald_rad) == (10, 10)
    with h5py.File(tmp_path / "d.h5") as file:
        assert {name: file[name].dtype.str for name in file} == {
            **dict.fromkeys(["qx", "qy", "qz", "corr", "detd", "ewald_rad"], "<f8"),
            "mask": "|u1",
        }


def test_a_detector_of_unequal_arrays_is_refused(tmp_path, detector):
    write_detector(tmp_path / "d.h5", detector)
    with h5py.File(tmp_path / "d.h5", "a") as file:
        del file["mask"]
    with pytest.raises(DataError, match="is no detector file"):
        read_detector(tmp_path / "d.h5")
    with h5py.File(tmp_path / "d.h5", "a") as file:
        file["mask"] = np.zeros(5, np.uint8)
    with pytest.raises(DataError, match="arrays of different lengths"):
        read_detector(tmp_path / "d.h5")


def test_a_blacklist_has_one_for_excluded(tmp_path):
    excluded = np.array([True, False, False])
    write_blacklist(tmp_path / "b.txt", excluded)
    assert (tmp_path / "b.txt").read_text() == "1\n0\n0\n"
    assert read_blacklist(tmp_path / "b.txt").tolist() == excluded.tolist()
    write_blacklist(tmp_path / "b.txt", excluded[:0])
    assert read_blacklist(tmp_path / "b.txt").tolist() == []
    (tmp_path / "b.txt").write_text("1\n2\n")
    with pytest.raises(DataError, match="line 2: '2', expected 0 or 1"):
        read_blacklist(tmp_path / "b.txt")


def test_settings(tmp_path):
    write_settings(tmp_path / "config.ini", {"emc": {"num_div": 6, "beta_schedule": "1.4 10"}})
    parser = configparser.ConfigParser()
    parser.read(tmp_path / "config.ini")
    assert dict(parser["emc"]) == {"num_div": "6", "beta_schedule": "1.4 10"}
