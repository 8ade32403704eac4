"""What one pulse hits: particles drawn at random, class by class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from spidask.config import Sample
from spidask.simulation.particle import (
    Particle,
    Polyhedron,
    clip,
    electron_density,
    ellipsoid,
    icosahedron,
    turn,
)

Floats = NDArray[np.float64]
# Circumradius and inradius of an icosahedron over its volume-equivalent diameter.
CIRCUMRADIUS = 0.591028
INRADIUS = 0.469663


@dataclass(frozen=True)
class Scene:
    """Particles that may meet one pulse; where in the focus is not yet said.

    Attributes
    ----------
    label : str
        Class, see `schema.CLASSES`.
    kind : str
        What it is in particular, for the truth table.
    diameter : float
        Volume-equivalent diameter, nm; NaN where there is not exactly one particle.
    groups : tuple
        Each group a tuple of particles that touch; groups fly independently.
    offsets : tuple
        For each group the places of its particles, shape (particle, 3), float64, nm.
    """

    label: str
    kind: str
    diameter: float
    groups: tuple[tuple[Particle, ...], ...]
    offsets: tuple[Floats, ...]


def draw_scene(
    label: str,
    sample: Sample,
    photon_energy_ev: float,
    rng: np.random.Generator,
    model: Particle | None = None,
) -> Scene:
    """Draw what one pulse hits.

    Parameters
    ----------
    label : str
        Class, see `schema.CLASSES`.
    sample : Sample
        Sizes and shares.
    photon_energy_ev : float
        Photon energy, eV.
    rng : numpy.random.Generator
        Source of all randomness.
    model : Particle or None
        The particle of single hits; nothing: PR772.

    Returns
    -------
    Scene
        The particles, randomly oriented.
    """
    if label == "background":
        return Scene(label, "empty", float("nan"), (), ())
    draw_one = _Draw(sample, photon_energy_ev, rng, model)
    if label == "multiple":
        return draw_one.multiple()
    particle = draw_one.wanted() if label == "single" else draw_one.contaminant()
    return Scene(label, particle.kind, particle.diameter, ((particle,),), (np.zeros((1, 3)),))


def draw_particle(sample: Sample, photon_energy_ev: float, rng: np.random.Generator) -> Particle:
    """Draw the icosahedral particle that the experiment is about.

    Parameters
    ----------
    sample : Sample
        Sizes.
    photon_energy_ev : float
        Photon energy, eV.
    rng : numpy.random.Generator
        Source of all randomness.

    Returns
    -------
    Particle
        PR772 with its axes along those of the laboratory.
    """
    return _Draw(sample, photon_energy_ev, rng, None).upright()


@dataclass(frozen=True)
class _Draw:
    sample: Sample
    energy: float
    rng: np.random.Generator
    model: Particle | None

    def wanted(self) -> Particle:
        """Draw the particle that the experiment is about."""
        if self.model is not None:
            return self.oriented(replace(self.model, kind="particle"))
        return self.oriented(self.upright())

    def upright(self) -> Particle:
        diameter = self.rng.normal(self.sample.diameter_nm, self.sample.diameter_spread_nm)
        return self.virus(max(diameter, 0.5 * self.sample.diameter_nm))

    def virus(self, diameter: float) -> Particle:
        bodies = self.capsid(diameter)
        return Particle(bodies, "virus", diameter, CIRCUMRADIUS * diameter)

    def capsid(self, diameter: float) -> tuple[Polyhedron, Polyhedron]:
        """Build PR772: an icosahedral protein capsid, and the core of DNA that replaces it."""
        thickness = self.rng.uniform(5.0, 8.0) * diameter / 68
        shell = self.density("protein")
        core = self.density("core") * self.rng.uniform(0.85, 1.05)
        inner = diameter - thickness / INRADIUS
        return icosahedron(diameter, shell), icosahedron(inner, core - shell)

    def contaminant(self) -> Particle:
        """Draw one particle that is no intact virus."""
        make: list[Callable[[float], Particle]] = [
            self.droplet,
            self.sucrose,
            self.spheroid,
            self.coated,
            self.broken,
            self.cluster,
        ]
        diameter = self.contaminant_diameter()
        return self.oriented(make[self.rng.integers(len(make))](diameter))

    def contaminant_diameter(self) -> float:
        low, high = self.sample.window_nm
        if self.rng.random() < self.sample.contaminants_in_window:
            return float(self.rng.uniform(low, high))
        # Much smaller particles would be no hits: intensity goes with the sixth power.
        below, above = 0.25 * (high - low), high - low
        diameter = self.rng.uniform(-below, above)
        return float(low + diameter if diameter < 0 else high + diameter)

    def droplet(self, diameter: float) -> Particle:
        return ellipsoid(diameter, self.density("buffer"), kind="droplet")

    def sucrose(self, diameter: float) -> Particle:
        return ellipsoid(diameter, self.density("sucrose"), kind="sucrose")

    def spheroid(self, diameter: float) -> Particle:
        aspect = np.exp(self.rng.uniform(0.12, 0.7) * self.rng.choice([-1, 1]))
        material = self.rng.choice(["sucrose", "protein", "buffer"])
        return ellipsoid(diameter, self.density(material), aspect, "spheroid")

    def coated(self, diameter: float) -> Particle:
        """Build a virus inside a drop of buffer or sucrose, off its centre."""
        density = self.density(self.rng.choice(["buffer", "sucrose"]))
        virus = self.virus(diameter * self.rng.uniform(0.6, 0.8))
        displaced = icosahedron(virus.diameter, -density)
        inside = replace(virus, bodies=(displaced, *virus.bodies))
        free = diameter / 2 - virus.radius
        inside = turn(inside, self.rotation(), self.direction() * free * self.rng.random())
        coat = ellipsoid(diameter, density, kind="coated")
        return replace(coat, bodies=(*coat.bodies, *inside.bodies))

    def broken(self, diameter: float) -> Particle:
        """Build a capsid cut by a plane, its core partly gone."""
        cut, normal = CIRCUMRADIUS * self.rng.uniform(0.0, 0.65), self.direction()
        whole = icosahedron(1.0, 1)
        left = clip(whole, normal, cut).volume / whole.volume
        size = diameter * left ** (-1 / 3)
        shell, core = self.capsid(size)
        full = core.density + shell.density
        core = replace(core, density=full * self.rng.random() - shell.density)
        bodies = tuple(clip(body, normal, cut * size) for body in (shell, core))
        return Particle(bodies, "broken", diameter, CIRCUMRADIUS * size)

    def cluster(self, diameter: float) -> Particle:
        """Build small spheres that stick together, as much matter as a sphere of the diameter."""
        n = int(self.rng.integers(3, 10))
        radii = self.rng.uniform(0.7, 1.3, n)
        radii *= diameter / 2 / np.sum(radii**3) ** (1 / 3)
        density = self.density(self.rng.choice(["protein", "sucrose"]))
        centres = self.stick(radii)
        spheres = [
            turn(ellipsoid(2 * r, density), np.eye(3), c).bodies[0]
            for r, c in zip(radii, centres, strict=True)
        ]
        reach = float(np.max(np.linalg.norm(centres, axis=1) + radii))
        return Particle(tuple(spheres), "cluster", diameter, reach)

    def multiple(self) -> Scene:
        """Draw two to four particles, touching or apart."""
        if self.rng.random() < 0.3:
            group = tuple(
                self.wanted() for _ in range(self.rng.choice([2, 3, 4], p=[0.7, 0.2, 0.1]))
            )
            offsets = self.stick(np.array([self.contact(p) for p in group]))
            return Scene("multiple", "aggregate", float("nan"), (group,), (offsets,))
        n = int(self.rng.choice([2, 3], p=[0.8, 0.2]))
        groups = tuple(
            (self.wanted() if i == 0 or self.rng.random() < 0.8 else self.contaminant(),)
            for i in range(n)
        )
        return Scene("multiple", "multi", float("nan"), groups, (np.zeros((1, 3)),) * n)

    def contact(self, particle: Particle) -> float:
        # Randomly oriented icosahedra touch at a distance between inradius and circumradius.
        if particle.kind != "virus":
            return particle.radius
        return particle.diameter * self.rng.uniform(INRADIUS, CIRCUMRADIUS)

    def stick(self, radii: Floats) -> Floats:
        """Place spheres at random so that each touches an earlier one and none overlap."""
        centres = np.zeros((len(radii), 3))
        for i in range(1, len(radii)):
            while True:
                j = self.rng.integers(i)
                centres[i] = centres[j] + self.direction() * (radii[i] + radii[j])
                gaps = np.linalg.norm(centres[:i] - centres[i], axis=1) - radii[:i] - radii[i]
                if gaps.min() > -1e-9:
                    break
        return centres - np.average(centres, axis=0, weights=radii**3)

    def density(self, material: str) -> complex:
        return electron_density(material, self.energy)

    def direction(self) -> Floats:
        vector = self.rng.normal(size=3)
        return np.asarray(vector / np.linalg.norm(vector))

    def rotation(self) -> Floats:
        return np.asarray(Rotation.random(rng=self.rng).as_matrix())

    def oriented(self, particle: Particle) -> Particle:
        return turn(particle, self.rotation())
