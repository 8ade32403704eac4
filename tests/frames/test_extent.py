"""Boxes around discs whose radius is known."""

import numpy as np
import pytest

from spidask.frames.extent import signal_boxes

BEAM = (-3.0, 119.5)


def draw_discs(radii: list[float], background: float, seed: int = 0) -> np.ndarray:
    y, x = np.indices((123, 240))
    radius = np.hypot(y - BEAM[0], x - BEAM[1])
    random = np.random.default_rng(seed)
    means = [np.where(radius < r, 0.5, 0.0) + background for r in radii]
    return random.poisson(means).astype(np.float32)


@pytest.mark.parametrize("background", [0.0, 0.02, 0.1])
def test_a_box_holds_the_disc_of_signal(background):
    radii = [40, 60, 90]
    found = signal_boxes(draw_discs(radii, background), BEAM)
    for (x, y, width, height), radius in zip(found, radii, strict=True):
        assert x == pytest.approx(0.5, abs=1e-6)
        assert width * 240 == pytest.approx(2 * radius, abs=4)
        # The beam is 3 pixels above the first row, so that less than half of the disc is seen.
        assert y - height / 2 == pytest.approx(0, abs=1e-6)
        assert height * 123 == pytest.approx(radius - 2.5, abs=3)


def test_fringes_with_dark_rings_count_as_a_whole():
    y, x = np.indices((123, 240))
    radius = np.hypot(y - BEAM[0], x - BEAM[1])
    mean = np.where(radius < 80, np.cos(radius / 5) ** 2, 0) + 0.02
    pattern = np.random.default_rng(1).poisson(mean).astype(np.float32)
    pattern[30:50, 100:140] = np.nan
    ((_, _, width, _),) = signal_boxes(pattern[None], BEAM)
    assert width * 240 == pytest.approx(160, abs=8)


def test_background_alone_has_no_box():
    found = signal_boxes(draw_discs([0.0] * 20, 0.05, seed=2), BEAM)
    assert np.isnan(found).all(axis=1).sum() >= 19
    assert np.isnan(signal_boxes(np.zeros((1, 123, 240), np.float32), BEAM)).all()
    assert np.isnan(signal_boxes(np.full((1, 123, 240), np.nan, np.float32), BEAM)).all()


def test_a_box_ends_at_the_edges():
    ((x, y, width, height),) = signal_boxes(draw_discs([110.0], 0.0), (61.0, 10.0))
    assert x - width / 2 == pytest.approx(0)
    assert y - height / 2 == pytest.approx(0)
