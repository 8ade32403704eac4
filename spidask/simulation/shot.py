"""One pulse: where it hits the particles, and the photons it scatters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from spidask.config import Beam, Geometry, Sample
from spidask.errors import ConfigError
from spidask.simulation.detector import PANEL, outside_hole
from spidask.simulation.formfactor import amplitude
from spidask.simulation.particle import ELECTRON_RADIUS_NM, Particle
from spidask.simulation.scattering import amplitude_map, intensity, momentum
from spidask.simulation.scene import Scene, draw_scene

Floats = NDArray[np.float64]
FloatMap = NDArray[np.float32]

SIGNAL_RADIUS_PX = 120
"""Photons this close to the beam, and outside the panel's hole, are a shot's signal."""
FAINTEST = 0.03
"""A companion at least this bright, relative to the first particle, makes a multiple hit."""
VISIBLE_SIGMA = 5.0
"""And so does only a companion that an ideal observer could tell, by this many sigma."""
BEAM_WIDTH_NM = 1500.0
"""Standard deviation of the particles' places along the beam."""
SAMPLED = 6
"""Every so many pixels along each axis are enough to tell how bright a particle is."""
MOST_DRAWS = 2000
JOULE_PER_EV = 1.602176634e-19


@dataclass(frozen=True)
class Shot:
    """What one pulse scatters.

    Attributes
    ----------
    photons : numpy.ndarray
        Photons expected, without stray light, shape (y, x), float32.
    scene : Scene
        What was hit.
    signal : float
        Photons expected in `photons` outside the hole.
    pulse : float
        Pulse energy over its mean.
    """

    photons: NDArray[np.float32]
    scene: Scene
    signal: float
    pulse: float


def draw_shot(
    label: str,
    sample: Sample,
    beam: Beam,
    geometry: Geometry,
    rows: range,
    columns: range,
    rng: np.random.Generator,
    model: Particle | None = None,
) -> Shot:
    """Draw one pulse and what it hits, and compute the photons it scatters.

    Parameters
    ----------
    label : str
        Class, see `schema.CLASSES`.
    sample : Sample
        What is injected.
    beam : Beam
        Pulses and focus.
    geometry : Geometry
        Photon energy, distance, pixel size and mean beam centre.
    rows, columns : range
        Pixels of the full frame to compute.
    rng : numpy.random.Generator
        Source of all randomness.
    model : Particle or None
        The particle of single hits; nothing: PR772.

    Returns
    -------
    Shot
        Expected photons and what made them.

    Raises
    ------
    ConfigError
        If the particles are too faint to make hits.
    """
    pulse = float(max(0.2, rng.normal(1, beam.energy_jitter)))
    dy, dx = rng.normal(0, beam.beam_jitter_px, 2)
    here = geometry.model_copy(
        update={
            "beam_centre_y_px": geometry.beam_centre_y_px + dy,
            "beam_centre_x_px": geometry.beam_centre_x_px + dx,
        }
    )
    peak = pulse * peak_fluence(beam, geometry.photon_energy_ev)
    counted = _counted(geometry, rows, columns)
    for scene, places in _draw_hits(label, sample, beam, geometry, peak, rng, model):
        maps = [[amplitude_map(p, here, rows, columns) for p in group] for group in scene.groups]
        groups = [
            _Group(amplitudes, place + offsets, peak * _profile(place + offsets, beam))
            for amplitudes, place, offsets in zip(maps, places, scene.offsets, strict=True)
        ]
        photons = _scatter(groups, here, rows, columns)
        # Neither a person nor an analysis could tell such a pair from a single hit: draw again.
        if len(groups) < 2 or not _looks_single(
            photons, groups, here, beam, counted, rows, columns
        ):
            break
    return Shot(photons, scene, float(photons[counted].sum()), pulse)


def tell_apart(pattern: FloatMap, other: FloatMap, stray: float) -> float:
    """Sigma by which an ideal observer tells a pattern from another one of free brightness.

    Parameters
    ----------
    pattern : numpy.ndarray
        Photons expected, float32, any shape.
    other : numpy.ndarray
        Photons expected from the other, same shape and dtype; scaled to as many in all.
    stray : float
        Photons of stray light in each pixel, in both.

    Returns
    -------
    float
        Square root of the deviance expected between two Poisson patterns, twice their
        Kullback-Leibler divergence (Wilks 1938 for one parameter).

    Examples
    --------
    >>> fringes, flat = np.float32([[150, 50]]), np.float32([[1, 1]])
    >>> round(tell_apart(fringes, flat, 0.0), 2)  # 150 ln 1.5 + 50 ln 0.5 is 26.16
    7.23
    """
    found = pattern.astype(float) + stray
    expected = other * (float(pattern.sum()) / max(float(other.sum()), 1e-30)) + max(stray, 1e-6)
    return float(np.sqrt(2 * max(np.sum(found * np.log(found / expected)), 0.0)))


@dataclass(frozen=True)
class _Group:
    """Particles that touch: their amplitude maps, places (particle, 3) in nm and fluences."""

    amplitudes: list[NDArray[np.complex64]]
    positions: Floats
    fluences: Floats


def _scatter(groups: list[_Group], here: Geometry, rows: range, columns: range) -> FloatMap:
    if not groups:
        return np.zeros((len(rows), len(columns)), np.float32)
    amplitudes = [one for group in groups for one in group.amplitudes]
    positions = np.concatenate([group.positions for group in groups])
    fluences = np.concatenate([group.fluences for group in groups])
    return intensity(amplitudes, positions, fluences, here, rows, columns)


def _looks_single(
    photons: FloatMap,
    groups: list[_Group],
    here: Geometry,
    beam: Beam,
    counted: NDArray[np.bool_],
    rows: range,
    columns: range,
) -> bool:
    """Whether one of the groups alone would make the same pattern, as far as photons can tell."""
    if not counted.any():
        return False
    ys, xs = (slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(counted))
    stray = beam.stray_photons / int(counted.sum())
    counted, seen = counted[ys, xs], photons[ys, xs]
    for group in groups:
        cut = _Group([a[ys, xs] for a in group.amplitudes], group.positions, group.fluences)
        alone = _scatter([cut], here, rows[ys], columns[xs])
        if tell_apart(seen[counted], alone[counted], stray) < VISIBLE_SIGMA:
            return True
    return False


def _draw_hits(
    label: str,
    sample: Sample,
    beam: Beam,
    geometry: Geometry,
    peak: float,
    rng: np.random.Generator,
    model: Particle | None,
) -> Iterator[tuple[Scene, list[Floats]]]:
    """Draw particles and places that make hits, all of the kind drawn first."""
    q = _sampled_momentum(geometry)
    first = scene = draw_scene(label, sample, geometry.photon_energy_ev, rng, model)
    brightest = 0.0
    for _ in range(MOST_DRAWS):
        if _alike(scene, first, sample):
            signals = [peak * _brightness(group, q, geometry) for group in scene.groups]
            reaches = [_reach(*group) for group in zip(scene.groups, scene.offsets, strict=True)]
            places = _place(signals, reaches, beam, rng)
            if places is not None:
                yield scene, places
            brightest = max(brightest, *signals)
        scene = draw_scene(label, sample, geometry.photon_energy_ev, rng, model)
    raise ConfigError(
        f"simulation.beam.hit_photons: {beam.hit_photons:g} is out of reach of '{first.kind}': the "
        f"brightest of {MOST_DRAWS} draws gives {brightest:.0f} photons in the centre of the "
        "focus; lower it, or raise pulse_energy_mj or transmission",
        brightest=brightest,
    )


def _alike(scene: Scene, first: Scene, sample: Sample) -> bool:
    # Faint scenes are drawn again, which must not change the mix of kinds and sizes.
    low, high = sample.window_nm
    inside = low <= scene.diameter <= high
    return scene.kind == first.kind and inside == (low <= first.diameter <= high)


def peak_fluence(beam: Beam, photon_energy_ev: float) -> float:
    """Fluence in the centre of the focus at the mean pulse energy.

    Parameters
    ----------
    beam : Beam
        Pulse energy, transmission and width of the focus.
    photon_energy_ev : float
        Photon energy, eV.

    Returns
    -------
    float
        Photons per nm^2.
    """
    photons = beam.pulse_energy_mj * 1e-3 * beam.transmission / (photon_energy_ev * JOULE_PER_EV)
    return float(photons * 4 * np.log(2) / (np.pi * beam.focus_nm**2))


@lru_cache(maxsize=8)
def _counted(geometry: Geometry, rows: range, columns: range) -> NDArray[np.bool_]:
    y = np.array(rows)[:, None] - geometry.beam_centre_y_px
    x = np.array(columns)[None, :] - geometry.beam_centre_x_px
    near = y * y + x * x <= SIGNAL_RADIUS_PX**2
    return np.asarray(near & outside_hole(geometry, rows, columns))


def _brightness(group: tuple[Particle, ...], q: Floats, geometry: Geometry) -> float:
    """Signal of a group, its interference left out, for one photon per nm^2."""
    solid_angle = (geometry.pixel_size_um * 1e-6 / geometry.detector_distance_m) ** 2
    factor = ELECTRON_RADIUS_NM**2 * solid_angle * SAMPLED**2
    return factor * sum(float(np.sum(np.abs(amplitude(p, q)) ** 2)) for p in group)


@lru_cache(maxsize=8)
def _sampled_momentum(geometry: Geometry) -> Floats:
    """Momentum transfer of every sixth pixel, along each axis, of those that make the signal."""
    centres = (geometry.beam_centre_y_px, geometry.beam_centre_x_px)
    rows, columns = (
        range(max(0, round(c) - SIGNAL_RADIUS_PX), min(n, round(c) + SIGNAL_RADIUS_PX), SAMPLED)
        for c, n in zip(centres, PANEL, strict=True)
    )
    q = momentum(geometry, np.array(rows, float), np.array(columns, float))
    return q[_counted(geometry, rows, columns).ravel()]


def _reach(group: tuple[Particle, ...], offsets: Floats) -> float:
    """Radius of a group around its place, nm."""
    return max(float(np.linalg.norm(o)) + p.radius for p, o in zip(group, offsets, strict=True))


def _profile(positions: Floats, beam: Beam) -> Floats:
    distance2 = positions[:, 0] ** 2 + positions[:, 1] ** 2
    return np.asarray(np.exp(-4 * np.log(2) * distance2 / beam.focus_nm**2))


def _place(
    signals: list[float], reaches: list[float], beam: Beam, rng: np.random.Generator
) -> list[Floats] | None:
    """Draw where each group meets the focus; None if it cannot make such a hit there."""
    places: list[Floats] = []
    brightest = 0.0
    for signal, reach in zip(signals, reaches, strict=True):
        limit = FAINTEST * brightest if places else beam.hit_photons
        if signal <= limit:
            return None
        if places and rng.random() < 0.5:
            place = _near(places[0], reaches[0] + reach, beam, rng)
        else:
            place = _anywhere(signal / limit, beam, rng)
        seen = signal * float(_profile(place[None], beam)[0])
        apart = [np.linalg.norm(place - p) - r for p, r in zip(places, reaches, strict=False)]
        if seen < limit or any(gap < reach for gap in apart):
            return None
        brightest = max(brightest, seen)
        places.append(place)
    return places


def _anywhere(dynamic_range: float, beam: Beam, rng: np.random.Generator) -> Floats:
    """Draw a place, uniform over the area in which a signal is at most so much weakened."""
    largest = beam.focus_nm * np.sqrt(np.log(dynamic_range) / (4 * np.log(2)))
    distance, angle = largest * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
    along = rng.normal(0, BEAM_WIDTH_NM)
    return np.array([distance * np.cos(angle), distance * np.sin(angle), along])


def _near(place: Floats, touching: float, beam: Beam, rng: np.random.Generator) -> Floats:
    """Draw a place close to another one, from touching to the width of the focus."""
    distance = np.exp(rng.uniform(np.log(touching), np.log(max(beam.focus_nm, 2 * touching))))
    direction = rng.normal(size=3)
    return np.asarray(place + distance * direction / np.linalg.norm(direction))
