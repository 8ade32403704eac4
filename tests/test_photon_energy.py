"""Photon energies of single frames: in photons, in sizes, and on half a detector."""

import dask.array as da
import h5py
import numpy as np
import pytest

from spidask.config import parse_config
from spidask.frames.sizing import sphere_amplitude
from spidask.io.beamtime import open_configured
from spidask.io.stretches import Energies
from spidask.preprocessing import measure_sizes, preprocess
from tests.test_preprocessing import dataset, settings


def with_energy(data, energy):
    return data.assign_coords(photon_energy=("frame", np.asarray(energy, float)))


@pytest.mark.parametrize("chunk", [1, 3, -1])
def test_photons_and_sizes_follow_the_photon_energy_of_each_frame(chunk):
    place = {"beam_centre_y_px": -3, "beam_centre_x_px": 20}
    energies = np.array([1700.7, 1750.0, np.nan, 1650.0, 5000.0, 1700.7, 1800.0])
    used = np.where(np.isnan(energies) | (energies > 4000), 1700.7, energies)
    y, x = np.mgrid[0:40, 0:48] * 75e-6
    q = np.hypot(y + 3 * 75e-6, x - 20 * 75e-6) / 0.13 * 2 * np.pi / 7.29e-10
    sphere = 200 * sphere_amplitude(q, 110.0) ** 2
    photons = np.random.default_rng(1).poisson(sphere, (7, 40, 48)).astype(np.float32)
    adu = photons * 100 * (used / 1700.7).astype(np.float32)[:, None, None]
    config = settings(hits={"threshold": "none"}, geometry=place, adu_per_photon=100)
    data = with_energy(dataset(adu, chunk=chunk), energies)
    lazy = measure_sizes(preprocess(data, config), config)
    assert all(isinstance(lazy[name].data, da.Array) for name in ("patterns", "diameter"))
    out = lazy.compute()
    np.testing.assert_array_equal(out["patterns"].values, photons)
    expected = []
    for n, energy in enumerate(used):
        alone = settings(hits={"threshold": "none"}, geometry=place | {"photon_energy_ev": energy})
        frame = dataset(photons[n : n + 1])
        expected.append(measure_sizes(preprocess(frame, alone), alone)["diameter"].values[0])
    np.testing.assert_allclose(out["diameter"].values, expected, rtol=2e-3)


def test_the_expected_energy_changes_nothing_and_photons_are_never_scaled():
    frames = np.random.default_rng(1).poisson(3, (5, 20, 24)).astype(np.uint16)
    for adu_per_photon, energy in ((2.5, 1700.7), (2.5, np.nan), (1.0, 1900.0)):
        config = settings(hits={"threshold": "none"}, adu_per_photon=adu_per_photon)
        plain = preprocess(dataset(frames), config)
        energetic = preprocess(with_energy(dataset(frames), [energy] * 5), config)
        np.testing.assert_array_equal(energetic["patterns"].values, plain["patterns"].values)
        if energy != 1900.0:
            sizes = [measure_sizes(one, config)["diameter"].values for one in (plain, energetic)]
            np.testing.assert_array_equal(*sizes)


def test_a_half_detector_is_sized_with_the_beam_outside_of_its_region(tmp_path):
    y, x = np.mgrid[0:60, 0:80] * 75e-6
    q = 2 * np.pi / 7.29e-10 * np.hypot(y + 4 * 75e-6, x - 40 * 75e-6) / 0.13
    pattern = np.random.default_rng(1).poisson(50 * sphere_amplitude(q, 70.0) ** 2)
    with h5py.File(tmp_path / "r1.cxi", "w") as file:
        detector = file.create_group("entry_1/instrument_1/detector_1")
        detector["data"] = pattern[None].astype(">i4")
        detector["mask"] = np.where(np.hypot(y + 3e-4, x - 3e-3) < 8e-4, 0x10, 0).astype("u4")
    config = parse_config(
        {
            "runs": {
                "files": [f"{tmp_path}/r1.cxi"],
                "mask": ":entry_1/instrument_1/detector_1/mask",
                "mask_good": "zero",
            },
            "output": "out",
            "hits": {"threshold": "none"},
            "sizing": {"particle": "sphere"},
            "preprocessing": {"region": {"y": [2, 50], "x": [10, 70]}},
            "geometry": {
                "beam_centre_y_px": -4,
                "beam_centre_x_px": 40,
                "photon_energy_ev": 1700.7,
            },
        }
    )
    out = measure_sizes(preprocess(open_configured(config), config), config).compute()
    assert out["diameter"].values[0] == pytest.approx(70, rel=0.01)
    assert np.isnan(out["patterns"].sel(y=2, x=40).values).all()


def test_no_energy_is_read_before_a_block_is_computed(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "r1.cxi", "w") as file:
        file["entry_1/data_1/data"] = np.ones((9, 20, 24), "u2")
        file["LCLS/photon_energy_eV"] = 1700.0 + np.arange(9)
    asked = []
    read = Energies.read
    monkeypatch.setattr(Energies, "read", lambda self, key: asked.append(key) or read(self, key))
    runs = {"files": [f"{tmp_path}/r1.cxi"]}
    config = settings(hits={"threshold": "none"}, adu_per_photon=2)
    config = parse_config(
        {**config.model_dump(mode="json"), "runs": runs, "inference": {"frames_per_block": 4}}
    )
    lazy = measure_sizes(preprocess(open_configured(config), config), config)
    assert asked == []
    lazy["diameter"][:3].compute(scheduler="sync")
    # Of no more than the block that is computed.
    assert 0 < max(key[0].stop for key in asked) <= 4
