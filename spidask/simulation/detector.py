"""The pnCCD panel: stray light, electronics, and what they make of expected photons."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import ndtri

from spidask.config import Beam, Geometry, Panel

PANEL = (512, 1024)
"""Rows and columns of the panel."""
ASIC_COLUMNS = 128
"""Columns of a row that one ASIC reads, with one common-mode offset a frame."""
HOLE_RADIUS_PX = 12.0
"""The beam passes through a hole in the panel; nothing is recorded closer to it."""
ADC_MAXIMUM = 16383
"""Largest value of the 14-bit converter; brighter pixels saturate."""
CLOUD_UM = 8.0
"""Standard deviation of the charge that a photon frees, across the pixels."""
# A pixel with more photons than this shares the mean share of its charge, not photon by photon.
MANY_PHOTONS = 40

Maps = NDArray[np.float32]


@dataclass(frozen=True)
class Pixels:
    """The panel's pixels as built, during one run.

    Attributes
    ----------
    offset : numpy.ndarray
        Dark level, shape (512, 1024), float32, ADU.
    gain : numpy.ndarray
        Relative gain, shape (512, 1024), float32; 0 where a pixel is dead.
    noise : numpy.ndarray
        Standard deviation of the read noise, shape (512, 1024), float32, ADU.
    missing : numpy.ndarray
        True where there is no pixel or no line to it, shape (512, 1024), bool.
    good : numpy.ndarray
        True where a pixel measures photons, shape (512, 1024), bool.
    """

    offset: Maps
    gain: Maps
    noise: Maps
    missing: NDArray[np.bool_]
    good: NDArray[np.bool_]


def random_stream(seed: int, *key: int) -> np.random.Generator:
    """Give one of the independent sources of randomness of a seed.

    Parameters
    ----------
    seed : int
        Seed of the beamtime.
    *key : int
        What the numbers are for, then which run and frame.

    Returns
    -------
    numpy.random.Generator
        The same for the same arguments, whoever asks and when.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def build_pixels(panel: Panel, geometry: Geometry, seed: int, run: int) -> Pixels:
    """Draw a panel, the same for all runs of a seed but for drifts.

    Parameters
    ----------
    panel : Panel
        Gain, its spread, read noise.
    geometry : Geometry
        Gives the beam centre, around which the hole is.
    seed : int
        Seed of the beamtime.
    run : int
        Number of the run: dark levels drift and a few more pixels turn hot.

    Returns
    -------
    Pixels
        Maps of the whole panel.
    """
    rng = random_stream(seed, 1)
    n_asics = PANEL[1] // ASIC_COLUMNS
    offset = 1200 + rng.normal(0, 40, PANEL[1]) + rng.normal(0, 12, PANEL)
    gain = 1 + rng.normal(0, panel.gain_spread, PANEL)
    gain *= np.repeat(1 + rng.normal(0, 0.01, n_asics), ASIC_COLUMNS)
    noise = panel.read_noise_adu * rng.normal(1, 0.05, PANEL).clip(0.5)
    missing = ~outside_hole(geometry, range(PANEL[0]), range(PANEL[1]))
    for column, width in zip(rng.integers(0, PANEL[1], 4), (1, 1, 2, 5), strict=True):
        # A broken line: lost from some row to the outer edge.
        missing[rng.integers(0, PANEL[0] // 2) :, column : column + width] = True
    dead = rng.random(PANEL) < 3e-4
    hot = rng.random(PANEL) < 2e-4
    drift = random_stream(seed, 2, run)
    offset += drift.normal(0, 1.0, PANEL) + drift.normal(0, 2.0)
    hot |= drift.random(PANEL) < 2e-5
    offset[hot] += drift.uniform(1000, 9000, int(hot.sum()))
    noise[hot] *= 20
    gain[dead] = 0
    return Pixels(
        offset.astype(np.float32),
        gain.astype(np.float32),
        noise.astype(np.float32),
        missing,
        ~(missing | dead | hot),
    )


def outside_hole(geometry: Geometry, rows: range, columns: range) -> NDArray[np.bool_]:
    """Tell which pixels lie outside the panel's hole.

    Parameters
    ----------
    geometry : Geometry
        Gives the beam centre.
    rows, columns : range
        Pixels of the full frame.

    Returns
    -------
    numpy.ndarray
        True outside, shape (rows, columns), bool.
    """
    y = np.array(rows)[:, None] - geometry.beam_centre_y_px
    x = np.array(columns)[None, :] - geometry.beam_centre_x_px
    return np.asarray(y * y + x * x > HOLE_RADIUS_PX**2)


def expose(
    photons: Maps | None,
    pixels: Pixels,
    panel: Panel,
    pixel_size_um: float,
    rng: np.random.Generator,
) -> NDArray[np.uint16]:
    """Read the panel out once.

    Parameters
    ----------
    photons : numpy.ndarray or None
        Photons expected in each pixel, shape (512, 1024), float32; None with the beam off.
    pixels : Pixels
        The panel.
    panel : Panel
        Gain and common mode.
    pixel_size_um : float
        Edge of a pixel, um.
    rng : numpy.random.Generator
        Source of all randomness.

    Returns
    -------
    numpy.ndarray
        Raw frame, shape (512, 1024), uint16, ADU; 0 where a pixel is missing.

    Notes
    -----
    Poisson photons; each frees a Gaussian cloud of charge at a random place of its pixel, of
    which the neighbours get their part; gain, dark level, common mode of each row of an ASIC and
    read noise; rounding and the range of the converter.
    """
    charge = np.zeros(PANEL, np.float32)
    if photons is not None:
        _collect(photons, CLOUD_UM / pixel_size_um, rng, charge)
    shape = (PANEL[0], PANEL[1] // ASIC_COLUMNS)
    common = rng.normal(0, panel.common_mode_adu, shape).astype(np.float32)
    bits = rng.integers(0, 2**64, PANEL[0] * PANEL[1] // 4, dtype=np.uint64).view(np.uint16)
    gain = np.float32(panel.adu_per_photon)
    maps = (pixels.offset, pixels.gain, pixels.noise, pixels.missing)
    return np.asarray(
        _digitize(charge, bits.reshape(PANEL), _quantiles(), common, gain, *maps, rng)
    )


def stray_light(geometry: Geometry, rows: range, columns: range, rng: np.random.Generator) -> Maps:
    """Draw the shape of a beamline's stray light, as parts that vary from pulse to pulse.

    Parameters
    ----------
    geometry : Geometry
        Gives the beam centre.
    rows, columns : range
        Pixels of the full frame.
    rng : numpy.random.Generator
        Source of all randomness.

    Returns
    -------
    numpy.ndarray
        Shape (4, rows, columns), float32: scatter of the optics (a power law), of the gas
        (nearly flat), flares of the horizontal and of the vertical slits. Each part sums to 1
        over the whole panel.
    """
    reach, power = rng.uniform(10, 30), rng.uniform(2.2, 3.2)
    broad = rng.uniform(250, 450)
    tilts, widths = rng.normal(0, 0.03, 2), rng.uniform(2.0, 5.0, 2)
    lengths = rng.uniform(25, 70, 2)

    def parts(y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
        v = (y - geometry.beam_centre_y_px)[:, None]
        u = (x - geometry.beam_centre_x_px)[None, :]
        r2 = u * u + v * v
        maps = [(1 + r2 / reach**2) ** (-power / 2), np.exp(-r2 / (2 * broad**2))]
        for along, across, tilt, width, length in zip(
            (u, v), (v, u), tilts, widths, lengths, strict=True
        ):
            # Fraunhofer edge of a slit: 1 / distance^2 along, narrow across.
            narrow = np.exp(-(((across - tilt * along) / width) ** 2) / 2)
            maps.append(narrow / (1 + (along / length) ** 2))
        return np.stack(maps)

    # Each part's sum over the panel, from every third pixel (none of them is sharper).
    whole = parts(np.arange(1.0, PANEL[0], 3), np.arange(1.0, PANEL[1], 3)).sum(axis=(1, 2)) * 9
    here = parts(np.array(rows, float), np.array(columns, float))
    return np.asarray(here / whole[:, None, None], np.float32)


def pulse_stray(parts: Maps, pulse: float, beam: Beam, rng: np.random.Generator) -> Maps:
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


@njit(cache=True, nogil=True)
def _collect(photons, cloud, rng, charge):  # type: ignore[no-untyped-def]
    n_rows, n_columns = photons.shape
    mean_side = cloud / math.sqrt(2 * math.pi)  # of one photon, averaged over its place
    for y in range(n_rows):
        for x in range(n_columns):
            expected = photons[y, x]
            u = rng.random()
            if u < 1 - expected:  # exp(-expected) is larger still: no photon
                continue
            n = _poisson(expected, u, rng)
            if n > MANY_PHOTONS:
                lost = n * np.float32(mean_side)
                _share(charge, y, x, n, lost, lost, lost, lost)
                continue
            for _ in range(n):
                v, h = rng.random(), rng.random()
                up, down = _beyond(v, cloud), _beyond(1 - v, cloud)
                left, right = _beyond(h, cloud), _beyond(1 - h, cloud)
                _share(charge, y, x, 1.0, up, down, left, right)


@njit(inline="always")
def _poisson(expected, u, rng):  # type: ignore[no-untyped-def]
    if expected > 20:
        return rng.poisson(expected)
    chance = math.exp(-expected)
    n = 0
    while u > chance and n < 100:
        u -= chance
        n += 1
        chance *= expected / n
    return n


@njit(inline="always")
def _beyond(distance, cloud):  # type: ignore[no-untyped-def]
    if distance > 4 * cloud:
        return 0.0
    return 0.5 * math.erfc(distance / (cloud * math.sqrt(2.0)))


@njit(inline="always")
def _share(charge, y, x, n, up, down, left, right):  # type: ignore[no-untyped-def]
    # Corner pixels get the product of two small parts: left with the edge neighbours.
    charge[y, x] += n - up - down - left - right
    if y > 0:
        charge[y - 1, x] += up
    if y < charge.shape[0] - 1:
        charge[y + 1, x] += down
    if x > 0:
        charge[y, x - 1] += left
    if x < charge.shape[1] - 1:
        charge[y, x + 1] += right


@lru_cache(maxsize=1)
def _quantiles() -> Maps:
    """Normal deviates in the middle of 65536 equally likely intervals."""
    return np.asarray(ndtri((np.arange(65536) + 0.5) / 65536), np.float32)


@njit(cache=True, nogil=True)
def _tail(rng):  # type: ignore[no-untyped-def]
    """Draw from the last of the 65536 intervals of the normal distribution (Marsaglia 1964)."""
    start = 4.169569
    while True:
        x = math.sqrt(start * start - 2 * math.log(1 - rng.random()))
        if x * rng.random() < start:
            return x


@njit(cache=True, nogil=True, fastmath=True)
def _digitize(charge, bits, quantiles, common, adu, offset, gain, sigma, missing, rng):  # type: ignore[no-untyped-def]
    out = np.empty(charge.shape, np.uint16)
    for y in range(charge.shape[0]):
        for x in range(charge.shape[1]):
            chance = bits[y, x]
            noise = quantiles[chance]
            if chance == 0:
                noise = -np.float32(_tail(rng))
            elif chance == 65535:
                noise = np.float32(_tail(rng))
            value = offset[y, x] + common[y, x // ASIC_COLUMNS] + sigma[y, x] * noise
            value += adu * gain[y, x] * charge[y, x]
            value = min(max(value + np.float32(0.5), np.float32(0)), np.float32(ADC_MAXIMUM))
            out[y, x] = np.uint16(0) if missing[y, x] else np.uint16(value)
    return out
