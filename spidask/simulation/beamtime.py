"""Beamtimes and patterns of the 2018 experiment, computed from settings and a seed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from spidask.config import Beam, Geometry, Region, Sample
from spidask.schema import CLASSES
from spidask.simulation.detector import stray_light
from spidask.simulation.particle import Particle
from spidask.simulation.scattering import amplitude_map, intensity
from spidask.simulation.scene import Scene, draw_scene

Floats = NDArray[np.float64]
T = TypeVar("T")

DEFAULT_REGION = Region(y=(0, 123), x=(391, 631))
TRAINING_MIX = {"background": 0.1, "single": 0.3, "multiple": 0.35, "contaminant": 0.25}
# Pixels closer to the beam fall into the hole of the panel and do not count as signal.
HOLE_RADIUS_PX = 12.0
# A companion at least this bright, relative to the brightest particle, makes a multiple hit.
FAINTEST = 0.03
BEAM_WIDTH_NM = 1500.0
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


def simulate_patterns(
    n: int,
    seed: int = 0,
    geometry: Geometry = Geometry(),  # noqa: B008
    region: Region = DEFAULT_REGION,
    mix: Mapping[str, float] = TRAINING_MIX,
    sample: Sample = Sample(),  # noqa: B008
    beam: Beam = Beam(),  # noqa: B008
    workers: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.str_], NDArray[np.float32], NDArray[np.str_]]:
    """Compute patterns with labels, as a network trains on them.

    Parameters
    ----------
    n : int
        Number of patterns.
    seed : int
        Pattern i depends on the seed and i alone.
    geometry : Geometry
        Photon energy, distance, pixel size and beam centre.
    region : Region
        Pixels of the full frame to compute.
    mix : mapping
        Share of each class, see `schema.CLASSES`; normalized to one.
    sample : Sample
        What is injected.
    beam : Beam
        Pulses, focus and stray light.
    workers : int
        Threads; 0 takes every core.

    Returns
    -------
    patterns : numpy.ndarray
        Photons expected in each pixel, stray light included, before Poisson noise, shape
        (n, y, x), float32.
    labels : numpy.ndarray
        Class of each pattern, shape (n,), str.
    diameters : numpy.ndarray
        Volume-equivalent diameters, shape (n,), float32, nm; NaN unless one particle was hit.
    kinds : numpy.ndarray
        What each pattern shows in particular, shape (n,), str.
    """
    rows, columns = range(*region.y), range(*region.x)
    shares = np.array([mix.get(name, 0.0) for name in CLASSES])

    def one(i: int) -> tuple[NDArray[np.float32], Scene]:
        rng = np.random.default_rng([seed, i])
        label = CLASSES[rng.choice(len(CLASSES), p=shares / shares.sum())]
        shot = draw_shot(label, sample, beam, geometry, rows, columns, rng)
        stray = stray_light(geometry, rows, columns, rng)
        return shot.photons + draw_stray(stray, shot.pulse, beam, rng), shot.scene

    patterns = np.empty((n, len(rows), len(columns)), np.float32)
    scenes = []
    for i, (pattern, scene) in enumerate(_in_threads(one, n, workers)):
        patterns[i] = pattern
        scenes.append(scene)
    return (
        patterns,
        np.array([scene.label for scene in scenes]),
        np.array([scene.diameter for scene in scenes], np.float32),
        np.array([scene.kind for scene in scenes]),
    )


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
    """
    pulse = float(max(0.2, rng.normal(1, beam.energy_jitter)))
    dy, dx = rng.normal(0, beam.beam_jitter_px, 2)
    here = geometry.model_copy(
        update={
            "beam_centre_y_px": geometry.beam_centre_y_px + dy,
            "beam_centre_x_px": geometry.beam_centre_x_px + dx,
        }
    )
    outside = _outside_hole(geometry, rows, columns)
    peak = pulse * peak_fluence(beam, geometry.photon_energy_ev)
    while True:
        scene = draw_scene(label, sample, geometry.photon_energy_ev, rng, model)
        maps = [[amplitude_map(p, here, rows, columns) for p in group] for group in scene.groups]
        signals = [_signal(group, peak, here, rows, columns, outside) for group in maps]
        places = _place(signals, beam, rng)
        if places is not None:
            break
    if not scene.groups:
        return Shot(np.zeros((len(rows), len(columns)), np.float32), scene, 0.0, pulse)
    positions = np.concatenate([p + o for p, o in zip(places, scene.offsets, strict=True)])
    fluences = peak * _profile(positions, beam)
    flat = [each for group in maps for each in group]
    photons = intensity(flat, positions, fluences, here, rows, columns)
    return Shot(photons, scene, float(photons[outside].sum()), pulse)


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
    return photons * 4 * np.log(2) / (np.pi * beam.focus_nm**2)


def draw_stray(
    parts: NDArray[np.float32], pulse: float, beam: Beam, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draw one pulse's stray light.

    Parameters
    ----------
    parts : numpy.ndarray
        Parts of `stray_light`, shape (4, y, x), float32.
    pulse : float
        Pulse energy over its mean.
    beam : Beam
        Gives the mean number of stray photons.
    rng : numpy.random.Generator
        Source of all randomness.

    Returns
    -------
    numpy.ndarray
        Photons expected, shape (y, x), float32.
    """
    shares = np.array([0.45, 0.35, 0.1, 0.1]) * np.exp(rng.normal(0, 0.3, 4))
    weights = (beam.stray_photons * pulse * shares).astype(np.float32)
    return np.asarray(np.tensordot(weights, parts, 1))


def _outside_hole(geometry: Geometry, rows: range, columns: range) -> NDArray[np.bool_]:
    y = np.array(rows)[:, None] - geometry.beam_centre_y_px
    x = np.array(columns)[None, :] - geometry.beam_centre_x_px
    return np.asarray(np.hypot(y, x) > HOLE_RADIUS_PX)


def _signal(
    group: list[NDArray[np.complex64]],
    fluence: float,
    geometry: Geometry,
    rows: range,
    columns: range,
    outside: NDArray[np.bool_],
) -> float:
    """Photons of a group in the centre of the focus, its interference left out."""
    nowhere, full = np.zeros((1, 3)), np.array([fluence])
    return sum(
        float(intensity([each], nowhere, full, geometry, rows, columns)[outside].sum())
        for each in group
    )


def _profile(positions: Floats, beam: Beam) -> Floats:
    distance2 = positions[:, 0] ** 2 + positions[:, 1] ** 2
    return np.asarray(np.exp(-4 * np.log(2) * distance2 / beam.focus_nm**2))


def _place(signals: list[float], beam: Beam, rng: np.random.Generator) -> list[Floats] | None:
    """Draw where each group meets the focus; None if it cannot make such a hit there."""
    places: list[Floats] = []
    brightest = 0.0
    for signal in signals:
        limit = FAINTEST * brightest if places else beam.hit_photons
        near = bool(places) and rng.random() < 0.5
        if signal <= limit:
            return None
        place = _near(places[0], beam, rng) if near else _anywhere(signal / limit, beam, rng)
        seen = signal * float(_profile(place[None], beam)[0])
        if seen < limit or (places and min(np.linalg.norm(place - p) for p in places) < 80):
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


def _near(place: Floats, beam: Beam, rng: np.random.Generator) -> Floats:
    """Draw a place close to another one, from touching to the width of the focus."""
    distance = np.exp(rng.uniform(np.log(80.0), np.log(beam.focus_nm)))
    direction = rng.normal(size=3)
    return place + distance * direction / np.linalg.norm(direction)


def _in_threads(work: Callable[[int], T], n: int, workers: int) -> Iterator[T]:
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        yield from pool.map(work, range(n))
