"""What scatters: shapes of known density, molecules from PDB files, density maps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import xraydb
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

from spidask.frames.geometry import wavelength

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ELECTRON_RADIUS_NM = 2.8179403205e-6

# Compositions and mass densities (g/cm^3). Protein: mean composition and density of
# proteins (Quillin and Matthews 2000: 1.35); core: packed DNA, protein and lipid with water.
MATERIALS = {
    "protein": ("H86C52N13O15S", 1.35),
    "core": ("H70C32N9O23P2", 1.25),
    "sucrose": ("C12H22O11", 1.587),
    "water": ("H2O", 1.0),
    "buffer": ("H60C5O30N2", 1.15),
}


@dataclass(frozen=True)
class Ellipsoid:
    """Homogeneous ellipsoid of revolution.

    Attributes
    ----------
    centre, axis : numpy.ndarray
        Centre, nm, and unit vector of the axis of revolution, shape (3,), float64.
    equatorial, polar : float
        Semi-axes, nm.
    density : complex
        Electrons per nm^3.
    """

    centre: Floats
    axis: Floats
    equatorial: float
    polar: float
    density: complex


@dataclass(frozen=True)
class Polyhedron:
    """Homogeneous convex polyhedron with triangulated faces.

    Attributes
    ----------
    vertices : numpy.ndarray
        Corners, shape (vertex, 3), float64, nm.
    faces : numpy.ndarray
        Corners of each triangle, counter-clockwise from outside, shape (face, 3), int64.
    edges : numpy.ndarray
        Both ends of each edge, shape (edge, 2), int64.
    sides : numpy.ndarray
        Edges of each triangle, from corner 0 to 1, 1 to 2, 2 to 0, shape (face, 3), int64.
    volume : float
        Volume, nm^3.
    density : complex
        Electrons per nm^3.
    """

    vertices: Floats
    faces: Ints
    edges: Ints
    sides: Ints
    volume: float
    density: complex


@dataclass(frozen=True)
class Volume:
    """Sampled density, as its Fourier transform.

    Attributes
    ----------
    transform : numpy.ndarray
        Amplitude at momentum transfers (i, j, k) times `step`, negative ones at the far end,
        corrected for `kernel`, shape (n, n, n), complex64, electrons.
    step : float
        Distance of samples, 1/nm.
    spread : float
        Knots of the quadratic spline by which points became samples, nm; 0 for none.
    kernel : numpy.ndarray
        Half of the interpolation kernel, from its centre to its end, float64.
    centre : numpy.ndarray
        Where the density's origin is, shape (3,), float64, nm.
    rotation : numpy.ndarray
        From the density's axes to those of the laboratory, shape (3, 3), float64.
    """

    transform: NDArray[np.complex64]
    step: float
    spread: float
    kernel: Floats
    centre: Floats
    rotation: Floats


Body = Ellipsoid | Polyhedron | Volume


@dataclass(frozen=True)
class Particle:
    """Bodies that move and turn as one.

    Attributes
    ----------
    bodies : tuple
        Ellipsoids, polyhedra or volumes; where they overlap their densities add.
    kind : str
        What it is, for the truth table.
    diameter : float
        Volume-equivalent diameter, nm.
    radius : float
        Largest distance of matter from the origin, nm.
    """

    bodies: tuple[Body, ...]
    kind: str
    diameter: float
    radius: float


def wavelength_nm(photon_energy_ev: float) -> float:
    """Wavelength of a photon.

    Parameters
    ----------
    photon_energy_ev : float
        Photon energy, eV.

    Returns
    -------
    float
        Wavelength, nm.
    """
    return wavelength(photon_energy_ev) * 1e9


@lru_cache
def electron_density(material: str, photon_energy_ev: float) -> complex:
    """Scattering electrons per volume of a material.

    Parameters
    ----------
    material : str
        A key of `MATERIALS`.
    photon_energy_ev : float
        Photon energy, eV.

    Returns
    -------
    complex
        2 pi (delta - i beta) / (r_e wavelength^2), electrons per nm^3.

    Notes
    -----
    delta and beta from `xraydb`. The sign of beta belongs to amplitudes with exp(-i q.r).
    """
    formula, mass_density = MATERIALS[material]
    delta, beta, _ = xraydb.xray_delta_beta(formula, mass_density, photon_energy_ev)
    area = ELECTRON_RADIUS_NM * wavelength_nm(photon_energy_ev) ** 2
    return complex(2 * np.pi * (delta - 1j * beta) / area)


def ellipsoid(
    diameter: float, density: complex, aspect: float = 1.0, kind: str = "sphere"
) -> Particle:
    """Homogeneous sphere or ellipsoid of revolution along z.

    Parameters
    ----------
    diameter : float
        Volume-equivalent diameter, nm.
    density : complex
        Electrons per nm^3.
    aspect : float
        Polar over equatorial axis; 1 is a sphere.
    kind : str
        Name for the truth table.

    Returns
    -------
    Particle
        The ellipsoid around the origin.
    """
    equatorial = diameter / 2 * aspect ** (-1 / 3)
    polar = equatorial * aspect
    body = Ellipsoid(np.zeros(3), np.array([0.0, 0.0, 1.0]), equatorial, polar, density)
    return Particle((body,), kind, diameter, max(equatorial, polar))


def icosahedron(diameter: float, density: complex) -> Polyhedron:
    """Regular icosahedron around the origin.

    Parameters
    ----------
    diameter : float
        Volume-equivalent diameter, nm.
    density : complex
        Electrons per nm^3.

    Returns
    -------
    Polyhedron
        The icosahedron.
    """
    unit = _unit_icosahedron()
    scale = diameter * (np.pi / 6 / unit.volume) ** (1 / 3)
    return replace(
        unit, vertices=unit.vertices * scale, volume=unit.volume * scale**3, density=density
    )


def clip(body: Polyhedron, normal: Floats, distance: float) -> Polyhedron:
    """Cut a polyhedron by a plane.

    Parameters
    ----------
    body : Polyhedron
        What is cut.
    normal : numpy.ndarray
        Unit normal of the plane, shape (3,), float64.
    distance : float
        Distance of the plane from the origin along the normal, nm.

    Returns
    -------
    Polyhedron
        The part where r . normal <= distance.

    Raises
    ------
    ValueError
        If nothing is left.
    """
    height = body.vertices @ normal - distance
    low, high = body.edges[:, 0], body.edges[:, 1]
    cut = height[low] * height[high] < 0
    low, high = low[cut], high[cut]
    share = (height[low] / (height[low] - height[high]))[:, None]
    crossings = body.vertices[low] * (1 - share) + body.vertices[high] * share
    kept = body.vertices[height <= 0]
    if len(kept) == 0:
        raise ValueError(f"the plane at {distance:g} nm leaves nothing of the polyhedron")
    return polyhedron(np.concatenate([kept, crossings]), body.density)


def polyhedron(points: Floats, density: complex) -> Polyhedron:
    """Convex hull of points.

    Parameters
    ----------
    points : numpy.ndarray
        Shape (n, 3), float64, nm.
    density : complex
        Electrons per nm^3.

    Returns
    -------
    Polyhedron
        The hull, its faces triangulated and oriented outwards.
    """
    hull = ConvexHull(points)
    number = np.full(len(points), -1)
    number[hull.vertices] = np.arange(len(hull.vertices))
    faces = number[hull.simplices]
    vertices = np.ascontiguousarray(points[hull.vertices])
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    inwards = np.einsum("ij,ij->i", np.cross(b - a, c - a), hull.equations[:, :3]) < 0
    faces[inwards] = faces[inwards][:, ::-1]
    pairs = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    edges, sides = np.unique(pairs, axis=0, return_inverse=True)
    return Polyhedron(
        vertices,
        faces.astype(np.int64),
        edges.astype(np.int64),
        sides.reshape(-1, 3).astype(np.int64),
        float(hull.volume),
        density,
    )


@lru_cache(maxsize=1)
def _unit_icosahedron() -> Polyhedron:
    golden = (1 + 5**0.5) / 2
    corners = [(0.0, i, j * golden) for i in (-1, 1) for j in (-1, 1)]
    points = np.array([np.roll(corner, turn) for corner in corners for turn in range(3)])
    return polyhedron(points, 1 + 0j)


def turn(particle: Particle, rotation: Floats, shift: Floats | None = None) -> Particle:
    """Rotate a particle about its origin, then shift it.

    Parameters
    ----------
    particle : Particle
        What is turned.
    rotation : numpy.ndarray
        Rotation matrix, shape (3, 3), float64.
    shift : numpy.ndarray or None
        Shift after the rotation, shape (3,), float64, nm.

    Returns
    -------
    Particle
        The same matter elsewhere.
    """
    offset = np.zeros(3) if shift is None else shift
    bodies = tuple(_turn_body(body, rotation, offset) for body in particle.bodies)
    return replace(particle, bodies=bodies, radius=particle.radius + float(np.linalg.norm(offset)))


def _turn_body(body: Body, rotation: Floats, shift: Floats) -> Body:
    if isinstance(body, Polyhedron):
        return replace(body, vertices=body.vertices @ rotation.T + shift)
    if isinstance(body, Ellipsoid):
        return replace(body, centre=rotation @ body.centre + shift, axis=rotation @ body.axis)
    return replace(body, rotation=rotation @ body.rotation, centre=rotation @ body.centre + shift)
