"""The panel: what it adds to photons, and what it loses."""

from __future__ import annotations

import numpy as np
import pytest

from spidask.config import Beam, Geometry, Panel
from spidask.simulation.detector import (
    ADC_MAXIMUM,
    PANEL,
    Pixels,
    build_pixels,
    expose,
    outside_hole,
    pulse_stray,
    random_stream,
    stray_light,
)

GEOMETRY = Geometry()


def flat(offset: float = 1000.0, noise: float = 0.0) -> Pixels:
    whole = np.ones(PANEL, np.float32)
    good = np.ones(PANEL, bool)
    return Pixels(whole * np.float32(offset), whole, whole * np.float32(noise), ~good, good)


def read(photons: float, pixels: Pixels, panel: Panel, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return expose(np.full(PANEL, photons, np.float32), pixels, panel, 75.0, rng)


QUIET = Panel(common_mode_adu=0, read_noise_adu=0)


@pytest.mark.parametrize("photons", [0.01, 0.5, 5.0, 45.0])
def test_charge_is_kept_and_photons_are_poissonian(photons: float) -> None:
    charge = (read(photons, flat(), QUIET)[1:-1, 1:-1].astype(float) - 1000) / 130
    error = np.sqrt(photons / charge.size)
    assert charge.mean() == pytest.approx(photons, abs=5 * error + 1e-3)
    # Sharing charge among neighbours smooths a little.
    assert 0.6 * photons < charge.var() < 1.05 * photons


def test_a_photon_in_the_middle_of_a_pixel_stays_there() -> None:
    charge = (read(0.001, flat(), QUIET).astype(float) - 1000) / 130
    assert charge.max() <= 2.01
    # A cloud of 8 um in a pixel of 75 um: 4.3 % of a photon leaves over each edge on average.
    lit = charge[charge > 0.5]
    assert 0.8 < lit.mean() < 0.95


def test_noise_is_normal_to_its_tails() -> None:
    frames = np.stack([read(0, flat(noise=100.0), QUIET, seed) for seed in range(8)])
    noise = (frames.astype(float) - 1000) / 100
    assert noise.mean() == pytest.approx(0, abs=0.005)
    assert noise.std() == pytest.approx(1, abs=0.005)
    expected = noise.size * 2.0 * 1.335e-5  # beyond 4.2 sigma, where the table ends
    assert np.sum(np.abs(noise) > 4.2) == pytest.approx(expected, abs=5 * np.sqrt(expected))


def test_128_columns_of_a_row_share_an_offset() -> None:
    panel = Panel(common_mode_adu=50, read_noise_adu=0)
    groups = read(0, flat(), panel).reshape(512, 8, 128)
    assert np.all(groups == groups[:, :, :1])
    assert groups[:, :, 0].std() == pytest.approx(50, rel=0.05)


def test_bright_pixels_saturate_and_missing_ones_are_zero() -> None:
    pixels = flat()
    pixels.missing[3] = True
    frame = read(1000.0, pixels, QUIET)
    assert np.all(frame[3] == 0)
    assert np.all(frame[4:] == ADC_MAXIMUM)


def test_a_panel_has_defects_and_a_mask_of_them() -> None:
    pixels = build_pixels(Panel(), GEOMETRY, 0, 1)
    assert not pixels.good[0, 511]  # 3 px from the beam: in the hole
    assert outside_hole(GEOMETRY, range(20), range(1024)).sum() < 20 * 1024
    assert 0.98 < pixels.good.mean() < 0.9999
    assert not np.any(pixels.good & (pixels.missing | (pixels.gain == 0)))
    assert pixels.offset[pixels.good].max() < 2000 < pixels.offset.max()
    assert pixels.gain[pixels.good].std() == pytest.approx(0.03, rel=0.15)


def test_a_panel_is_the_same_in_every_run_but_drifts() -> None:
    first, again, later = (build_pixels(Panel(), GEOMETRY, 0, run) for run in (1, 1, 2))
    np.testing.assert_array_equal(first.offset, again.offset)
    np.testing.assert_array_equal(first.gain, later.gain)
    change = (later.offset - first.offset)[first.good & later.good]
    assert 0 < change.std() < 3
    assert np.any(first.good != later.good)
    assert np.any(first.good != build_pixels(Panel(), GEOMETRY, 1, 1).good)


def test_streams_are_independent() -> None:
    draws = [random_stream(*key).random() for key in ((0, 1), (0, 2), (0, 1, 0), (0, 1, 1), (1, 1))]
    assert len(set(draws)) == 5
    assert random_stream(0, 1, 1).random() == draws[3]


def test_stray_light_sums_to_one_and_surrounds_the_beam() -> None:
    parts = stray_light(GEOMETRY, range(512), range(1024), np.random.default_rng(0))
    np.testing.assert_allclose(parts.sum(axis=(1, 2)), 1, rtol=0.01)
    assert parts.min() >= 0
    y, x = np.unravel_index(parts.sum(axis=0).argmax(), PANEL)
    assert y < 5
    assert abs(x - 511.5) < 10


def test_a_part_of_the_frame_has_the_same_stray_light() -> None:
    rng = np.random.default_rng
    whole = stray_light(GEOMETRY, range(512), range(1024), rng(0))
    part = stray_light(GEOMETRY, range(123), range(391, 631), rng(0))
    np.testing.assert_allclose(part, whole[:, :123, 391:631], rtol=1e-6)


def test_stray_light_goes_with_the_pulse() -> None:
    parts = np.ones((4, 1, 1), np.float32)
    beam = Beam(stray_photons=1000)
    weak, strong = (pulse_stray(parts, p, beam, np.random.default_rng(0))[0, 0] for p in (1, 2))
    assert strong == pytest.approx(2 * weak)
    many = [pulse_stray(parts, 1, beam, np.random.default_rng(i))[0, 0] for i in range(300)]
    assert np.mean(many) == pytest.approx(1000 * np.exp(0.3**2 / 2), rel=0.05)
