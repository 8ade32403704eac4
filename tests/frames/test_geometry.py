import numpy as np
import pytest

from spidask.errors import DataError
from spidask.frames.geometry import (
    find_beam_centre,
    momentum_transfer,
    pixel_positions,
    polarization,
    solid_angle,
    suggest_region,
    wavelength,
)


def test_wavelength_of_1_7_kev():
    assert wavelength(1700.7) == pytest.approx(0.72902e-9, rel=1e-5)


def test_positions_count_from_the_beam():
    y, x = pixel_positions(np.arange(3), np.arange(510, 513), (-3.0, 511.5), 75e-6)
    np.testing.assert_allclose(y[:, 0], [225e-6, 300e-6, 375e-6])
    np.testing.assert_allclose(x[0], [-112.5e-6, -37.5e-6, 37.5e-6])


def test_momentum_lies_on_the_ewald_sphere():
    y, x = pixel_positions(np.arange(5), np.arange(7), (-3.0, 3.0), 75e-6)
    q = momentum_transfer(y, x, 0.13, 0.729e-9)
    k = 2 * np.pi / 0.729e-9
    # The outgoing wave vector q + k z has the length of the incoming one.
    np.testing.assert_allclose(np.hypot(np.hypot(q[0], q[1]), q[2] + k), k, rtol=1e-12)
    # |q| = 2 k sin(theta / 2)
    angle = np.arctan2(np.hypot(y, x), 0.13)
    np.testing.assert_allclose(np.linalg.norm(q, axis=0), 2 * k * np.sin(angle / 2), rtol=1e-9)


def test_momentum_equals_dragonfly_in_its_units():
    # detd and ewald_rad of 1733.3 px; q in voxels, without 2 pi.
    y, x = np.array([[10.0]]), np.array([[-20.0]])
    detd = 1733.3
    f = np.sqrt(20**2 + 10**2 + detd**2)
    q = momentum_transfer(y, x, detd, 1.0) / (2 * np.pi) * detd
    np.testing.assert_allclose(q[:, 0, 0], [detd * -20 / f, detd * 10 / f, detd * (detd / f - 1)])


def test_corrections_equal_dragonflys():
    # corr = detd / f^3 (1 - x^2 / f^2), with lengths in pixels.
    y, x = np.array([[30.0]]), np.array([[40.0]])
    f = np.sqrt(30**2 + 40**2 + 120**2)
    product = solid_angle(y, x, 120.0, 1.0) * polarization(y, x, 120.0)
    assert product[0, 0] == pytest.approx(120 / f**3 * (1 - 40**2 / f**2))


def test_solid_angles_of_a_huge_plane_make_a_half_sphere():
    edge = np.arange(-400, 401) * 0.05
    y, x = np.meshgrid(edge, edge, indexing="ij")
    assert solid_angle(y, x, 1.0, 0.05).sum() == pytest.approx(2 * np.pi, rel=0.05)


def rings(rows, columns, centre, diameter_px=19.0):
    """Sum of spheres' rings of a few sizes, smooth as in a powder of hits."""
    r = np.hypot(rows[:, None] - centre[0], columns - centre[1])
    out = np.zeros_like(r)
    for scale in (0.95, 1.0, 1.05):
        t = np.pi * r / diameter_px * scale + 1e-9
        out += (3 * (np.sin(t) - t * np.cos(t)) / t**3) ** 2
    return 1e4 * out + 0.02


@pytest.mark.parametrize("centre", [(-3.0, 119.5), (-8.3, 112.7), (40.2, 100.0), (60.0, -5.5)])
def test_beam_centre_of_analytic_rings(centre):
    rows, columns = np.arange(120), np.arange(240)
    start = (centre[0] + 9.0, centre[1] - 13.0)
    found, uncertainty = find_beam_centre(rings(rows, columns, centre), rows, columns, start)
    np.testing.assert_allclose(found, centre, atol=0.1)
    assert max(uncertainty) < 0.2


def test_beam_centre_beside_the_panel_with_mask_noise_flare_and_hot_pixels():
    rng = np.random.default_rng(8)
    rows, columns = np.arange(123), np.arange(392, 632)
    powder = rings(rows, columns, (-3.0, 511.5))
    powder = rng.poisson(powder * 20) / 20
    powder[rng.random(powder.shape) < 0.005] += 300.0
    powder[:15, 105:135] = np.nan
    powder[:, 60:64] = np.nan
    powder[30:34] += 2 / (1 + np.abs(columns - 511.5) / 20)
    found, uncertainty = find_beam_centre(powder, rows, columns, (4.0, 505.0))
    np.testing.assert_allclose(found, (-3.0, 511.5), atol=1.0)
    assert max(uncertainty) < 1.0


def test_no_beam_in_an_empty_powder():
    with pytest.raises(DataError, match="0 pixels hold photons, expected at least 100"):
        find_beam_centre(np.full((20, 20), np.nan), np.arange(20), np.arange(20), (0, 0))


def test_a_beam_far_from_the_start_is_refused():
    rows, columns = np.arange(100), np.arange(100)
    powder = rings(rows, columns, (50.0, 50.0))
    with pytest.raises(DataError, match="no beam centre within 4 px"):
        find_beam_centre(powder, rows, columns, (44.0, 44.0), reach=4.0)


@pytest.mark.parametrize(
    ("centre", "expected"),
    [((-3.0, 511.5), (0, 118, 392, 632)), ((256.0, 5.0), (136, 377, 0, 126))],
)
def test_region_around_the_beam(centre, expected):
    assert suggest_region(centre, (512, 1024), 120.0) == expected


def test_no_region_around_a_beam_far_away():
    with pytest.raises(DataError, match=r"geometry\.beam_centre_y_px"):
        suggest_region((-300.0, 5.0), (512, 1024), 120.0)
