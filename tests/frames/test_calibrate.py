import numpy as np
import pytest

from spidask.frames.calibrate import (
    Calibration,
    _subtract_common_mode,
    calibrate,
    whole_asics,
)
from spidask.frames.hits import count_photons


def plain(shape, offset=0.0, divisor=1.0, **settings):
    return Calibration(
        np.full(shape, offset, np.float32), np.full(shape, divisor, np.float32), **settings
    )


def find_photons(block, calibration, energy_ratio=None):
    patterns, counts = calibrate(block, calibration, energy_ratio, lit_photons=0.7)
    # One pass counts what a second one would.
    np.testing.assert_array_equal(counts, count_photons(patterns, 0.7))
    return patterns


def reference(block, calibration):
    """Calibrate with NumPy alone, frame by frame and ASIC by ASIC."""
    out = np.empty(block.shape, np.float32)
    for i, frame in enumerate(block):
        raw = frame.astype(np.float32)
        adu = raw - calibration.offset
        with np.errstate(invalid="ignore"):
            adu[~np.isfinite(adu) | ~(raw < calibration.saturation_adu)] = np.nan
        if calibration.asic:
            rows, columns = calibration.asic
            for y in range(0, adu.shape[0], rows):
                for x in range(0, adu.shape[1], columns):
                    group = adu[y : y + rows, x : x + columns]
                    unlit = group[group <= calibration.max_adu]
                    if unlit.size:
                        group -= np.median(unlit)
        photons = adu / calibration.divisor + np.float32(1 - calibration.photon_threshold)
        out[i] = np.maximum(np.floor(photons), 0)
        fill = np.iinfo(block.dtype).max if block.dtype.kind in "iu" else None
        if fill is not None and (frame == fill).all():
            out[i] = np.nan
    return out


def test_hand_checked_photons():
    # Dark 10 ADU, 100 ADU a photon, half a photon counts: 60 ADU is the first to hold one.
    block = np.array([[[10, 59, 60], [159, 160, 0], [1010, 110, 209]]], np.uint16)
    out = find_photons(block, plain((3, 3), 10, 100))
    assert out.dtype == np.float32
    assert out.tolist() == [[[0, 0, 1], [1, 2, 0], [10, 1, 2]]]


def test_the_photon_threshold_moves_every_border():
    block = np.array([[[69, 70, 169, 170]]], np.int32)
    out = find_photons(block, plain((1, 4), 0, 100, photon_threshold=0.7))
    assert out.tolist() == [[[0, 1, 1, 2]]]


@pytest.mark.parametrize(
    "dtype", ["u1", "i2", ">u2", "<u4", "i8", "f2", ">f2", ">f4", "f8", "longdouble"]
)
def test_photons_pass_through_in_any_dtype(dtype):
    block = np.arange(18, dtype=dtype).reshape(2, 3, 3)
    out = find_photons(block, plain((3, 3)))
    assert out.tolist() == np.arange(18.0).reshape(2, 3, 3).tolist()


def test_common_mode_of_each_group_is_the_median_of_its_unlit_pixels():
    # Two groups of one row and three columns in each row; 1000 is lit, the first pixel is bad.
    block = np.array([[[7, 5, 5, -3, -3, 997], [9, 7, 1000, 0, 0, 100]]], np.int16)
    calibration = plain((2, 6), 0, 100, asic=(1, 3), max_adu=50)
    calibration.offset[0, 0] = np.nan
    out = find_photons(block, calibration)
    # Groups: 5, -3; 8 (mean of 9 and 7), 0.
    expected = [[[np.nan, 0, 0, 0, 0, 10], [0, 0, 10, 0, 0, 1]]]
    np.testing.assert_array_equal(out, expected)


def test_a_group_without_an_unlit_pixel_stays_as_it_is():
    block = np.array([[[100, 200, 300]]], np.uint16)
    assert find_photons(block, plain((1, 3), 0, 100, asic=(1, 3), max_adu=50)).tolist() == [
        [[1, 2, 3]]
    ]


def test_missing_saturated_and_bad_pixels():
    block = np.array([[[np.nan, np.inf, -np.inf, 300.0, 299.0, -0.0]]])
    out = find_photons(block, plain((1, 6), saturation_adu=300.0))
    np.testing.assert_array_equal(out, [[[np.nan, np.nan, np.nan, np.nan, 299, 0]]])
    assert not np.signbit(out[0, 0, 5])
    rounded = find_photons(np.array([[[-0.0]]]), plain((1, 1), photon_threshold=1.0))
    assert not np.signbit(rounded[0, 0, 0])


@pytest.mark.parametrize(
    ("dtype", "fill"), [("u1", 255), ("i2", 32767), (">u2", 65535), ("f4", np.nan)]
)
def test_frames_and_pixels_of_fill_are_missing(dtype, fill):
    block = np.ones((3, 2, 2), dtype)
    block[1] = fill
    block[2, 0, 0] = fill
    out = find_photons(block, plain((2, 2)))
    assert np.isnan(out[1]).all()
    assert (out[0] == 1).all()
    assert np.isnan(out[2]).tolist() == [[True, False], [False, False]]
    assert out[2, 1, 1] == 1


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("asic", [None, (1, 4), (3, 5), (7, 9)])
def test_kernel_equals_plain_numpy(dtype, asic):
    rng = np.random.default_rng(3)
    block = rng.normal(500, 300, (6, 7, 9)).clip(0, 2000).astype(dtype)
    block[3] = np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else np.nan
    calibration = Calibration(
        offset=np.where(rng.random((7, 9)) < 0.1, np.nan, 200).astype(np.float32),
        divisor=rng.uniform(90, 110, (7, 9)).astype(np.float32),
        photon_threshold=0.6,
        saturation_adu=1500.0,
        asic=asic,
        max_adu=250.0,
    )
    np.testing.assert_array_equal(find_photons(block, calibration), reference(block, calibration))


def test_the_input_is_left_alone_and_blocks_do_not_matter():
    rng = np.random.default_rng(4)
    block = rng.normal(0, 100, (9, 4, 4)).astype(np.float32)
    block.setflags(write=False)
    calibration = plain((4, 4), 3, 50, asic=(2, 2), max_adu=20)
    whole = find_photons(block, calibration)
    parts = [find_photons(block[i : i + 2], calibration) for i in range(0, 9, 2)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert find_photons(block[:0], calibration).shape == (0, 4, 4)


@pytest.mark.parametrize(
    ("region", "asic", "expected"),
    [
        ((3, 5, 3, 5), None, (3, 5, 3, 5)),
        ((3, 5, 3, 5), (2, 4), (2, 6, 0, 8)),
        ((2, 6, 0, 8), (2, 4), (2, 6, 0, 8)),
        ((8, 9, 8, 9), (4, 4), (8, 9, 8, 10)),
    ],
)
def test_regions_grow_to_whole_groups_inside_the_frame(region, asic, expected):
    assert whole_asics(region, asic, (9, 10)) == expected


def test_adu_of_a_photon_grow_with_its_energy():
    maps = Calibration(np.zeros((1, 3), np.float32), np.float32([[100, 50, 100]]))
    # Each frame holds 3, 3 and 1 photons of its own energy.
    ratio = np.array([1.0, 1.5, 0.8])
    block = np.float32([[[300, 150, 100]]]) * ratio[:, None, None].astype(np.float32)
    assert find_photons(block, maps, ratio).tolist() == [[[3, 3, 1]]] * 3
    assert find_photons(block, maps)[:, 0].tolist() == [[3, 3, 1], [5, 5, 2], [2, 2, 1]]
    ones = find_photons(block, maps, np.ones(3))
    np.testing.assert_array_equal(ones, find_photons(block, maps))


def unlit_pixels(kind, size, rng):
    """Pixels of one ASIC whose median is hard to guess from their mean."""
    if kind == "noise":
        return rng.normal(3, 8, size)
    if kind == "ties":
        return rng.integers(-2, 3, size) * np.array([1.0, -1.0])[rng.integers(0, 2, size)]
    if kind == "outliers":
        return np.where(rng.random(size) < 0.4, -(10 ** rng.uniform(0, 30, size)), 1.0)
    if kind == "two levels":
        return np.where(np.arange(size) % 2, -1e5, 40.0)
    return 10 ** rng.uniform(-40, 1, size) * rng.choice([-1, 1], size)


@pytest.mark.parametrize("kind", ["noise", "ties", "outliers", "two levels", "many magnitudes"])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 127, 128, 1024])
def test_the_common_mode_is_numpys_median_to_the_last_bit(kind, size):
    rng = np.random.default_rng(size)
    for _ in range(20):
        frame = unlit_pixels(kind, size, rng).astype(np.float32)
        frame[rng.random(size) < 0.1] = np.nan
        frame[rng.random(size) < 0.1] = 1000
        unlit = frame[frame <= 50]
        expected = frame - np.median(unlit) if unlit.size else frame.copy()
        found = frame[None].copy()
        _subtract_common_mode(found, 1, size, np.float32(50), np.empty(size, np.int32))
        np.testing.assert_array_equal(found[0], expected)
