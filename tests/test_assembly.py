"""Geometry files, and images assembled from the modules, against extra-geom."""

import re
from pathlib import Path

import dask.array as da
import h5py
import numpy as np
import pytest
import xarray as xr
from extra_geom import (
    AGIPD_1MGeometry,
    AGIPD_500K2GGeometry,
    JUNGFRAUGeometry,
    LPD_1MGeometry,
)

from spidask.assembly import read_assembly
from spidask.config import load_config, parse_config
from spidask.errors import ConfigError, DataError
from spidask.frames.geometry import momentum_transfer, solid_angle, wavelength
from spidask.frames.sizing import sphere_amplitude
from spidask.io.beamtime import open_configured
from spidask.io.calibration import load_calibration, recipe_of
from spidask.io.hdf5 import open_frames
from spidask.io.runs import open_runs
from spidask.preprocessing import measure_sizes, preprocess
from tests.io.test_euxfel import agipd, write_run

STACK = (8192, 128)


@pytest.fixture(scope="module")
def geometry(tmp_path_factory):
    path = tmp_path_factory.mktemp("geometry") / "agipd.geom"
    AGIPD_1MGeometry.example().write_crystfel_geom(str(path))
    return AGIPD_1MGeometry.from_crystfel_geom(str(path))


def config(detector, **sections):
    preprocessing = {"assembly": detector.filename, **sections.pop("preprocessing", {})}
    values = {"runs": {"files": ["x"]}, "output": "out", "hits": {"threshold": 1.0}}
    return parse_config({**values, "preprocessing": preprocessing, **sections})


def stacked(frames, n_per_block=2):
    """Frames (frame, module, slow scan, fast scan) as `open_runs` gives them."""
    array = da.from_array(frames.reshape(len(frames), -1, 128), chunks=(n_per_block, -1, -1))
    return xr.Dataset(
        {"frames": (("frame", "y", "x"), array)},
        coords={
            "run": ("frame", np.zeros(len(frames), np.int32)),
            "run_name": ("run_code", np.array(["r0001"], object)),
        },
    )


DETECTORS = {
    "AGIPD1M": AGIPD_1MGeometry.example,
    "AGIPD500K": AGIPD_500K2GGeometry.example,
    "LPD1M": LPD_1MGeometry.example,
    # As many panels as AGIPD500K.
    "JF4M": lambda: JUNGFRAUGeometry.example(8),
    "JF500K": lambda: JUNGFRAUGeometry.example(1),
}


@pytest.mark.parametrize("detector", DETECTORS)
def test_index_and_beam_are_those_of_extra_geom(tmp_path, detector):
    theirs = DETECTORS[detector]()
    path = tmp_path / "detector.geom"
    theirs.write_crystfel_geom(str(path))
    ours = read_assembly(str(path))
    numbers = np.random.default_rng(0).random(theirs.expected_data_shape)
    image, centre = theirs.position_modules(numbers)
    flat = np.append(numbers.ravel(), np.nan)  # -1 is a gap
    np.testing.assert_array_equal(flat[ours.index], image)
    # The pixel before and the pixel after the origin, half a pixel from it.
    assert np.abs(np.array(ours.beam) - (np.array(centre) - 0.5)).max() <= 0.5
    assert ours.pixel_size == theirs.pixel_size
    # Every pixel is where the geometry has it, but for the distance told.
    y, x = np.nonzero(ours.index >= 0)
    places = theirs.get_pixel_positions().reshape(-1, 3)[ours.index[y, x]] / theirs.pixel_size
    off = np.hypot(y - ours.beam[0] - places[:, 1], x - ours.beam[1] - places[:, 0])
    assert off.max() == pytest.approx(ours.displacement)
    assert off.max() < 1


@pytest.mark.parametrize("region", [None, {"y": [500, 760], "x": [430, 671]}])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_patterns_are_those_of_extra_geom(geometry, region, dtype):
    frames = np.random.default_rng(1).integers(0, 9, (3, 16, 512, 128)).astype(dtype)
    frames[1, 3] = 65535 if dtype == "uint16" else np.nan  # a module is missing
    settings = config(geometry, preprocessing={"region": region})
    patterns = preprocess(stacked(frames), settings)
    assert isinstance(patterns["patterns"].data, da.Array)
    plain = frames.astype(np.float32)
    plain[1, 3] = np.nan
    image, _ = geometry.position_modules(plain)
    y, x = (slice(*region[axis]) if region else slice(None) for axis in "yx")
    np.testing.assert_array_equal(patterns["patterns"], image[:, y, x])
    assert patterns["y"].values[0] == (500 if region else 0)
    assert patterns["readable"].values.all()


def test_calibration_and_mask_come_before_assembly(geometry, tmp_path):
    random = np.random.default_rng(2)
    frames = random.integers(900, 3000, (2, 16, 512, 128)).astype(np.uint16)
    dark, gain = random.uniform(800, 1000, (2, 16, 512, 128))
    mask = random.random((16, 512, 128)) > 0.1
    gain /= 900
    for name, values in {"dark": dark, "gain": gain, "mask": mask}.items():
        stack = values if name == "mask" else values.reshape(STACK)  # both are good
        np.save(tmp_path / f"{name}.npy", stack)
    asic = {"asic": [64, 64], "max_adu": 200}
    paths = {name: str(tmp_path / f"{name}.npy") for name in ("dark", "gain")}
    settings = config(
        geometry,
        preprocessing={
            **paths, "common_mode": asic, "adu_per_photon": 300, "saturation_adu": 2900,
            "region": {"y": [520, 700], "x": [400, 700]},
        },
        runs={"files": ["x"], "mask": str(tmp_path / "mask.npy")},
    )  # fmt: skip
    adu = np.where(mask & (frames < 2900), frames - dark.astype(np.float32), np.nan)
    asics = adu.reshape(2, 16, 8, 64, 2, 64)
    unlit = np.where(asics <= 200, asics, np.nan)
    common = np.nanmedian(unlit, axis=(3, 5), keepdims=True)
    adu = (asics - np.nan_to_num(common)).reshape(adu.shape)
    photons = np.maximum(np.floor(adu / (gain * 300) + 0.5), 0)
    image, _ = geometry.position_modules(photons)
    ours = preprocess(stacked(frames), settings)["patterns"].values
    # float32 against float64 at the thresholds between photons
    differ = ~np.isclose(ours, image[:, 520:700, 400:700], equal_nan=True)
    assert differ.mean() < 1e-4
    assert np.isnan(ours).mean() > 0.1


@pytest.mark.parametrize("width", [2, 4])
def test_binned_pixels_are_whole_sums_or_missing(geometry, width):
    frames = np.random.default_rng(3).poisson(0.3, (2, 16, 512, 128)).astype(np.uint16)
    settings = config(
        geometry, preprocessing={"bin": width, "region": {"y": [520, 680], "x": [440, 600]}}
    )
    image, _ = geometry.position_modules(frames.astype(np.float32))
    parts = image[:, 520:680, 440:600].reshape(2, 160 // width, width, 160 // width, width)
    patterns = preprocess(stacked(frames), settings)
    np.testing.assert_array_equal(patterns["patterns"], parts.sum(axis=(2, 4)))
    np.testing.assert_array_equal(patterns["y"], np.arange(520, 680, width) // width)


def test_plain_frames_are_binned_too():
    frames = np.arange(2 * 6 * 8, dtype=np.float32).reshape(2, 6, 8)
    settings = parse_config(
        {
            "runs": {"files": ["x"]},
            "output": "out",
            "preprocessing": {"bin": 2, "region": {"y": [2, 6], "x": [0, 8]}},
        }
    )
    dataset = stacked(np.zeros((2, 1, 1, 128), np.float32)).drop_vars("frames")
    dataset["frames"] = (("frame", "y", "x"), da.from_array(frames))
    patterns = preprocess(dataset, settings)["patterns"].values
    np.testing.assert_array_equal(patterns, frames[:, 2:].reshape(2, 2, 2, 4, 2).sum(axis=(2, 4)))


def test_only_the_modules_of_the_region_are_read(geometry, tmp_path, monkeypatch):
    opened = set()

    def open_dataset(path, dataset):
        opened.add(int(re.search(r"AGIPD(\d+)-", path)[1]))
        return open_frames(path, dataset)

    monkeypatch.setattr("spidask.io.stretches.open_frames", open_dataset)
    frames = open_runs(str(write_run(tmp_path / "r0001")))
    settings = config(geometry, preprocessing={"region": {"y": [580, 680], "x": [500, 600]}})
    preprocess(frames, settings)["patterns"].compute()
    image = read_assembly(geometry.filename).index[580:680, 500:600]
    assert sorted(opened) == np.unique(image[image >= 0] // 65536).tolist() == [3, 4, 8, 15]
    recipe = recipe_of(settings, "r0001", STACK)
    assert recipe.n_read == 4 * 65536
    assert recipe.read == ((1536, 2560, 0, 128), (4096, 4608, 0, 128), (7680, 8192, 0, 128))


def test_a_run_is_assembled_as_extra_data_and_extra_geom_do(geometry, tmp_path):
    folder = write_run(tmp_path / "r0001", raw=False, modules=[0, 3, 4, 8, 15])
    path = tmp_path / "my.yaml"
    path.write_text(
        f"runs: {{files: [{folder}]}}\neuxfel: {{detector: '*AGIPD1M*'}}\noutput: out\n"
        f"preprocessing: {{assembly: {geometry.filename}}}\n"
    )
    settings = load_config(path)
    patterns = preprocess(open_runs(settings.runs.files, settings.runs.dataset), settings)
    data = agipd(folder).masked_data().ndarray(module_gaps=True).swapaxes(0, 1)
    data[:, [m for m in range(16) if m not in (0, 3, 4, 8, 15)]] = np.nan
    image, _ = geometry.position_modules(np.maximum(np.floor(data + np.float32(0.5)), 0))
    np.testing.assert_array_equal(patterns["patterns"], image)


def test_beam_and_pixel_size_come_from_the_geometry_file_unless_given(geometry):
    place = config(geometry).geometry
    ours = read_assembly(geometry.filename)
    assert (place.beam_centre_y_px, place.beam_centre_x_px) == ours.beam
    assert place.pixel_size_um == pytest.approx(200)
    given = config(geometry, geometry={"beam_centre_y_px": 12.0}).geometry
    assert given.beam_centre_y_px == 12
    assert given.beam_centre_x_px == ours.beam[1]


def test_geometry_of_binned_pixels(geometry):
    settings = config(
        geometry,
        preprocessing={"bin": 4},
        geometry={"beam_centre_y_px": 601.5, "beam_centre_x_px": 0.0},
    )
    place = settings.geometry_of("r0001")
    # The edge between pixels 601 and 602 is in the middle of binned pixel 150.
    assert place.beam_centre_y_px == 150
    assert place.beam_centre_x_px == -0.375
    assert place.pixel_size_um == pytest.approx(800)


def test_spheres_are_sized_on_the_assembled_image(geometry):
    # True pixel positions, not those of the assembled image.
    places = geometry.get_pixel_positions()
    energy, distance, diameters = 6000.0, 0.7, [60.0, 75.0]
    y, x = places[..., 1].reshape(STACK), places[..., 0].reshape(STACK)
    q = np.linalg.norm(momentum_transfer(y, x, distance, wavelength(energy)), axis=0)
    angle = solid_angle(y, x, distance, 2e-4)
    means = [sphere_amplitude(q, d) ** 2 * angle for d in diameters]
    random = np.random.default_rng(4)
    frames = [random.poisson(mean / mean.sum() * 40_000) for mean in means]
    frames = np.stack(frames).reshape(2, 16, 512, 128).astype(np.uint16)
    for width in (1, 2):
        settings = config(
            geometry,
            preprocessing={"bin": width, "region": {"y": [500, 760], "x": [420, 680]}},
            geometry={"photon_energy_ev": energy, "detector_distance_m": distance},
            sizing={"particle": "sphere"},
        )
        sizes = measure_sizes(preprocess(stacked(frames), settings), settings)
        np.testing.assert_allclose(sizes["diameter"], diameters, rtol=0.01)


def test_what_does_not_fit_is_refused(geometry, tmp_path):
    def refused(match, shape=STACK, **preprocessing):
        with pytest.raises(ConfigError, match=match):
            recipe_of(config(geometry, preprocessing=preprocessing), "r0001", shape)

    refused(r"region.y: \[0, 1300\] reaches beyond the assembled image, which has 1256 pixels",
            region={"y": [0, 1300], "x": [0, 9]})  # fmt: skip
    refused(r"holds nothing but gaps", region={"y": [0, 4], "x": [0, 4]})
    refused(r"cuts binned pixels; give multiples of preprocessing.bin, which is 4",
            bin=4, region={"y": [0, 130], "x": [0, 128]})  # fmt: skip
    refused(r"is of another detector: .* \(8192, 128\) pixels, the frames \(512, 1024\)",
            shape=(512, 1024))  # fmt: skip
    refused("none.geom: No such file", assembly=str(tmp_path / "none.geom"))
    (tmp_path / "text.geom").write_text("nothing\n")
    refused("has 0 panels", assembly=str(tmp_path / "text.geom"))
    half = Path(geometry.filename).read_text().replace("p7a3/fs =", "p7a3/xx =")
    (tmp_path / "half.geom").write_text(half)
    refused("is no geometry that extra-geom reads", assembly=str(tmp_path / "half.geom"))


def test_a_region_without_a_usable_pixel_is_refused(geometry, tmp_path):
    np.save(tmp_path / "mask.npy", np.zeros(STACK, np.uint8))
    settings = config(geometry, runs={"files": ["x"], "mask": str(tmp_path / "mask.npy")})
    with pytest.raises(DataError, match="no usable pixel"):
        load_calibration(recipe_of(settings, "r0001", STACK))


def test_photon_energies_masks_and_geometry_of_a_run_beside_stacked_modules(geometry, tmp_path):
    photons = np.random.default_rng(0).integers(0, 5, (3, 16, 512, 128))
    energy = np.array([9000, 9300, np.nan])
    ratio = np.where(np.isnan(energy), 1, energy / 9300)
    with h5py.File(tmp_path / "r1.cxi", "w") as file:
        adu = photons * 100 * ratio[:, None, None, None]
        file["entry_1/data_1/data"] = adu.astype(np.float32)
        # Of the mask's bits only 4 counts, which the second frame has.
        bits = np.array([1, 4, 1])[:, None, None, None]
        file["entry_1/data_1/mask"] = np.where(photons == 4, bits, 0).astype(np.uint32)
        file["LCLS/photon_energy_eV"] = energy
    settings = config(
        geometry,
        runs={"files": [str(tmp_path / "r1.cxi")], "mask_bits": 4},
        geometry={"photon_energy_ev": 1000},
        preprocessing={"adu_per_photon": 100},
        per_run={"r1": {"geometry": {"photon_energy_ev": 9300}}},
    )
    place = settings.geometry_of("r1")
    assert place.beam_centre_y_px == read_assembly(geometry.filename).beam[0]
    assert place.pixel_size_um == pytest.approx(200)
    patterns = preprocess(open_configured(settings), settings)
    expected = photons.astype(np.float32)
    expected[1][photons[1] == 4] = np.nan
    image, _ = geometry.position_modules(expected)
    np.testing.assert_array_equal(patterns["patterns"], image)
