import h5py
import numpy as np
import pytest
import xarray as xr

from spidask.errors import DataError
from spidask.io.cxi import Setup, read_cxi, write_cxi

SETUP = Setup(photon_energy=1700.0, distance=0.13, pixel_size=75e-6, beam_centre=(-3.0, 1.5))
PHOTONS = np.arange(24, dtype=np.int32).reshape(3, 2, 4)
BITS = np.zeros((3, 2, 4), np.uint32)
BITS[:, 0, 1] = 0x80
BITS[2, 1, 3] = 0x200


@pytest.fixture
def frames():
    return xr.Dataset(
        {
            "run": ("frame", np.array([1, 0, 1], np.int32)),
            "index": ("frame", np.array([4, 2, 9])),
            "run_name": ("run_code", np.array(["r0001", "r0002"], object)),
            "score": ("frame", np.float32([0.5, 0.25, 0.125])),
            "diameter": ("frame", np.float32([70, 71, 72])),
            "trainId": ("frame", np.array([11, 12, 13])),
            "selected": ("frame", np.ones(3, bool)),
            "trained_on": ("frame", np.array([False, True, False])),
        }
    )


@pytest.fixture
def path(tmp_path, frames):
    blocks = [(PHOTONS[:2], BITS[:2]), (PHOTONS[2:], BITS[2:])]
    path = tmp_path / "selection.cxi"
    write_cxi(path, blocks, frames, (2, 4), SETUP, {"settings": "{}", "versions": "none"})
    return path


def test_the_places_that_cxi_names(path):
    with h5py.File(path) as file:
        assert (file["cxi_version"][()], file["number_of_entries"][()]) == (150, 1)
        detector = file["entry_1/instrument_1/detector_1"]
        assert detector["data"][()].tolist() == PHOTONS.tolist()
        assert detector["mask"][()].tolist() == BITS.tolist()
        assert detector["mask"].dtype == np.uint32
        assert detector["score"][()].tolist() == [0.5, 0.25, 0.125]
        assert detector["tags"].attrs["headings"].tolist() == ["selected", "trained_on"]
        assert detector["tags"][()].tolist() == [[1, 1, 1], [0, 1, 0]]
        assert detector["distance"][()] == 0.13
        assert detector["x_pixel_size"][()] == detector["y_pixel_size"][()] == 75e-6
        # The corner of pixel (0, 0) is 2 pixels left of the beam and 2.5 below it.
        np.testing.assert_allclose(detector["corner_position"], [-150e-6, 187.5e-6, 0.13])
        assert file["entry_1/image_1/image_center"][()].tolist() == [1.5, -3.0, 0.0]
        assert file["entry_1/image_1/data_type"].asstr()[()] == "intensities"
        assert file["entry_1/image_1/data_space"].asstr()[()] == "diffraction"
        energy = file["entry_1/instrument_1/source_1/energy"][()]
        assert energy == pytest.approx(1700 * 1.602176634e-19)
        for link in ("entry_1/data_1/data", "entry_1/image_1/data"):
            assert file[link] == detector["data"]
        assert file["entry_1/image_1/mask"] == detector["mask"]
        names = file["entry_1/experiment_identifier"].asstr()[()]
        assert names.tolist() == ["r0002:4", "r0001:2", "r0002:9"]


def test_a_selection_comes_back(path, frames):
    again = read_cxi(path)
    expected = np.where(BITS == 0, PHOTONS, np.nan)
    np.testing.assert_array_equal(again["patterns"], expected)
    assert again["patterns"].dtype == np.float32
    names = again["run_name"].values[again["run"].values]
    assert names.tolist() == ["r0002", "r0001", "r0002"]
    for name in ("index", "score", "diameter", "trainId", "selected", "trained_on"):
        assert again[name].values.tolist() == frames[name].values.tolist()
        assert again[name].dtype == frames[name].dtype
    assert Setup(**again.attrs["setup"]) == SETUP
    assert again.attrs["provenance"] == {"settings": "{}", "versions": "none"}


def test_nothing_selected(tmp_path, frames):
    write_cxi(tmp_path / "s.cxi", [], frames.isel(frame=slice(0)), (2, 4), SETUP, {"versions": ""})
    again = read_cxi(tmp_path / "s.cxi")
    assert again["patterns"].shape == (0, 2, 4)
    assert again["trained_on"].dtype == bool


def test_patterns_and_frames_belong_together(tmp_path, frames):
    with pytest.raises(DataError, match="2 patterns came for 3 frames"):
        write_cxi(tmp_path / "s.cxi", [(PHOTONS[:2], BITS[:2])], frames, (2, 4), SETUP, {})
    assert not (tmp_path / "s.cxi").exists()


def test_what_is_no_selection_is_refused(tmp_path):
    (tmp_path / "s.cxi").write_bytes(b"")
    with pytest.raises(DataError, match="is no CXI file"):
        read_cxi(tmp_path / "s.cxi")
    with h5py.File(tmp_path / "s.cxi", "w") as file:
        file["entry_1/data"] = 1
    with pytest.raises(DataError, match="is no CXI file"):
        read_cxi(tmp_path / "s.cxi")
