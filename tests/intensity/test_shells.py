import numpy as np
import pytest

from spidask.errors import DataError
from spidask.intensity import correlate_shells, cut_plane, find_rotation
from tests.intensity.conftest import SHELLS, SIZE, grid, noise


def test_equal_volumes_correlate_fully(lopsided):
    cube = lopsided[0]
    correlation = correlate_shells(cube, cube, SHELLS)
    np.testing.assert_allclose(correlation[SHELLS[0] : SHELLS[1] + 1], 1)
    assert np.isnan(correlation[: SHELLS[0]]).all()
    assert np.isnan(correlation[SHELLS[1] + 1 :]).all()
    # A factor that depends on the radius alone changes nothing.
    factor = np.exp(-np.linalg.norm(grid(), axis=-1) / 9)
    again = correlate_shells(cube * factor, cube, SHELLS)
    np.testing.assert_allclose(again[SHELLS[0] : SHELLS[1] + 1], 1, atol=2e-3)


def test_independent_noise_does_not_correlate():
    correlation = correlate_shells(5 + noise(0), 5 + noise(1), (8, 18))[8:19]
    assert abs(correlation.mean()) < 0.1


def test_unknown_voxels_are_left_out(lopsided):
    cube = lopsided[0].copy()
    cube[: SIZE // 2 - 3] = np.nan
    correlation = correlate_shells(cube, lopsided[0], (5, 15))
    np.testing.assert_allclose(correlation[5:15], 1, atol=0.01)
    cube[: SIZE // 2 + 5] = np.nan
    assert np.isnan(correlate_shells(cube, lopsided[0], (5, 15))[5:16]).all()


def test_a_constant_has_no_correlation(lopsided):
    assert np.isnan(correlate_shells(np.ones((SIZE,) * 3), lopsided[0], SHELLS)).all()


def test_a_cut_of_the_turned_intensity_is_that_of_the_reference(lopsided):
    turned, upright, _ = lopsided
    found = find_rotation(turned, upright, SHELLS)
    cut, expected = cut_plane(turned, found), upright[SIZE // 2]
    y, z = grid(SIZE)[SIZE // 2, :, :, 1], grid(SIZE)[SIZE // 2, :, :, 2]
    radius = np.hypot(y, z)
    assert np.isnan(cut[radius > SIZE // 2]).all()
    ring = (radius > 4) & (radius < 17)
    assert np.corrcoef(cut[ring], expected[ring])[0, 1] > 0.99
    np.testing.assert_allclose(cut_plane(upright)[ring], expected[ring])


def test_other_shapes_are_refused(lopsided):
    with pytest.raises(DataError, match=r"\(41, 41, 41\) and \(37, 37, 37\) voxels"):
        correlate_shells(lopsided[0], lopsided[0][2:-2, 2:-2, 2:-2], SHELLS)
