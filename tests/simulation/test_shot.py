"""Places in the focus and absolute photon numbers."""

from __future__ import annotations

import numpy as np
import pytest

from spidask.config import Beam, Geometry, Sample
from spidask.errors import ConfigError
from spidask.simulation import shot
from spidask.simulation.shot import (
    FAINTEST,
    Shot,
    _place,
    _profile,
    draw_shot,
    peak_fluence,
    tell_apart,
)

NEAR = range(123), range(391, 631)


def draw(label: str, n: int, beam: Beam = Beam()) -> list[Shot]:  # noqa: B008
    return [
        draw_shot(label, Sample(), beam, Geometry(), *NEAR, np.random.default_rng([1, i]))
        for i in range(n)
    ]


def test_the_fluence_of_a_gaussian_focus() -> None:
    # 1 mJ of 1700.7 eV are 3.67e12 photons; spread over a focus of 1 um, 0.8825 of them per um^2.
    beam = Beam(pulse_energy_mj=1, transmission=1, focus_nm=1000)
    assert peak_fluence(beam, 1700.7) == pytest.approx(3.67e12 * 0.8825 / 1e6, rel=1e-3)


def test_hits_have_the_photons_of_a_hit() -> None:
    signals = np.array([shot.signal for shot in draw("single", 60)])
    assert signals.min() > 0.85 * 2500
    assert 4000 < np.median(signals) < 20_000


def test_a_pattern_is_told_from_another_by_its_photons_alone() -> None:
    flat = np.full((10, 10), 20, np.float32)
    fringes = flat * np.tile([1.1, 0.9], 5).astype(np.float32)
    # Brightness is free, so that a brighter one is the same; and 2000 photons with a contrast c
    # differ by 2000 c^2 = 20 in the deviance, to lowest order.
    assert tell_apart(flat, 3 * flat, 0.0) == pytest.approx(0, abs=1e-3)
    assert tell_apart(fringes, flat, 0.0) == pytest.approx(np.sqrt(20), rel=0.01)
    # Stray light halves the contrast and doubles the photons.
    assert tell_apart(fringes, flat, 20.0) == pytest.approx(np.sqrt(10), rel=0.01)


def test_no_multiple_hit_looks_like_a_single_one(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    judge = shot._looks_single

    def watch(*args: object) -> bool:
        looks.append(judge(*args))
        return looks[-1]

    monkeypatch.setattr(shot, "_looks_single", watch)
    drawn = draw("multiple", 60)
    apart = [one for one in drawn if one.scene.kind == "multi"]
    # Every pair was looked at until it could be told apart; a few were drawn again.
    assert looks.count(False) == len(apart)
    assert 0 < looks.count(True) < len(apart) / 2


def test_background_has_no_signal() -> None:
    (shot,) = draw("background", 1)
    assert shot.signal == 0
    assert not shot.photons.any()


def test_photons_go_with_the_pulse_energy() -> None:
    weak, strong = (
        draw_shot(
            "single", Sample(), beam, Geometry(), *NEAR, np.random.default_rng(3)
        ).photons.max()
        for beam in (
            Beam(hit_photons=1, energy_jitter=0),
            Beam(hit_photons=2, energy_jitter=0, pulse_energy_mj=4.0),
        )
    )
    assert strong == pytest.approx(2 * weak, rel=1e-4)


def test_companions_are_faint_and_bright_near_and_far() -> None:
    beam, rng = Beam(), np.random.default_rng(0)
    drawn = [_place([10_000.0, 10_000.0], [40.0, 40.0], beam, rng) for _ in range(400)]
    pairs = np.array([places for places in drawn if places is not None])
    assert len(pairs) > 200
    first, second = (_profile(pairs[:, i], beam) for i in (0, 1))
    assert np.all(first >= 0.25)  # a hit has 2500 photons
    ratio = second / first
    assert ratio.min() >= FAINTEST
    assert 0.1 < np.mean(ratio < 0.15) < 0.5
    assert 0.1 < np.mean(ratio > 1) < 0.6
    apart = np.linalg.norm(pairs[:, 0] - pairs[:, 1], axis=1)
    assert apart.min() >= 80  # touching
    assert np.mean(apart < 200) > 0.1
    assert np.mean(apart > 1300) > 0.1


def test_particles_too_faint_to_hit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"hit_photons: 1e\+09 is out of reach of 'virus'"):
        draw("single", 1, Beam(hit_photons=1e9))
