"""Particles read from files."""

from __future__ import annotations

from pathlib import Path

import gemmi
import numpy as np
import pytest

from spidask.errors import DataError
from spidask.simulation.density import read_particle
from spidask.simulation.formfactor import amplitude
from spidask.simulation.particle import electron_density, ellipsoid

ENERGY = 1700.7
Q = np.random.default_rng(0).normal(0, 0.2, (100, 3))


def write_pdb(path: Path, places: np.ndarray) -> Path:
    lines = [
        f"ATOM  {i:5d}  C   ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 10.00           C"
        for i, (x, y, z) in enumerate(places, 1)
    ]
    path.write_text("\n".join([*lines, "END", ""]))
    return path


def write_map(path: Path, values: np.ndarray, voxel_angstrom: float) -> Path:
    file = gemmi.Ccp4Map()
    file.grid = gemmi.FloatGrid(values.astype(np.float32))
    sides = [n * voxel_angstrom for n in values.shape]
    file.grid.set_unit_cell(gemmi.UnitCell(*sides, 90, 90, 90))
    file.grid.spacegroup = gemmi.SpaceGroup("P1")
    file.update_ccp4_header()
    file.write_ccp4_map(str(path))
    return path


def ball(diameter_nm: float, voxel_nm: float) -> np.ndarray:
    """Share of each voxel that lies in a ball."""
    n = int(diameter_nm / voxel_nm) + 6
    fine = (np.arange(4 * n) + 0.5) / 4 - n / 2
    r2 = fine[:, None, None] ** 2 + fine[None, :, None] ** 2 + fine**2
    inside = r2 <= (diameter_nm / voxel_nm / 2) ** 2
    return np.asarray(inside.reshape(n, 4, n, 4, n, 4).mean(axis=(1, 3, 5)))


def test_atoms_scatter_like_points(tmp_path: Path) -> None:
    places = np.random.default_rng(1).normal(0, 40, (300, 3)).round(3)  # angstrom
    particle = read_particle(write_pdb(tmp_path / "a.pdb", places), ENERGY, None)
    found = amplitude(particle, Q)
    # Carbon at 1700.7 eV (Chantler): f1 = 6 + 0.193, f2 = 0.216.
    points = (places - places.mean(axis=0)) / 10
    expected = (6.193 - 0.216j) * np.exp(-1j * Q @ points.T).sum(axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-4 * 300 * 6.193)
    assert particle.radius >= np.linalg.norm(points, axis=1).max()


def test_a_ball_in_a_map_is_a_sphere(tmp_path: Path) -> None:
    # 0.4 electrons per cubic angstrom are 400 per nm^3.
    path = write_map(tmp_path / "ball.mrc", 0.4 * ball(20.0, 0.5), 5.0)
    particle = read_particle(path, ENERGY, None)
    sphere = ellipsoid(20.0, 400 + 0j)
    electrons = 400 * np.pi / 6 * 20**3
    found, expected = np.abs(amplitude(particle, Q)), np.abs(amplitude(sphere, Q))
    np.testing.assert_allclose(found, expected, atol=2e-3 * electrons)


def test_a_contour_fills_a_map_with_protein(tmp_path: Path) -> None:
    path = write_map(tmp_path / "ball.map", 7.0 * ball(20.0, 0.5), 5.0)
    particle = read_particle(path, ENERGY, 3.5)
    assert particle.diameter == pytest.approx(20, rel=0.01)
    electrons = electron_density("protein", ENERGY) * np.pi / 6 * 20**3
    assert amplitude(particle, np.zeros((1, 3)))[0] == pytest.approx(electrons, rel=0.01)


def test_an_assembly_is_built_from_its_unit(tmp_path: Path) -> None:
    """Two copies of one atom, 4 nm apart, interfere."""
    remarks = [
        "REMARK 350 BIOMOLECULE: 1",
        "REMARK 350 APPLY THE FOLLOWING TO CHAINS: A",
        "REMARK 350   BIOMT1   1  1.000000  0.000000  0.000000        0.00000",
        "REMARK 350   BIOMT2   1  0.000000  1.000000  0.000000        0.00000",
        "REMARK 350   BIOMT3   1  0.000000  0.000000  1.000000        0.00000",
        "REMARK 350   BIOMT1   2 -1.000000  0.000000  0.000000        0.00000",
        "REMARK 350   BIOMT2   2  0.000000 -1.000000  0.000000        0.00000",
        "REMARK 350   BIOMT3   2  0.000000  0.000000  1.000000        0.00000",
    ]
    path = write_pdb(tmp_path / "a.pdb", np.array([[20.0, 0.0, 0.0]]))
    path.write_text("\n".join([*remarks, path.read_text()]))
    q = np.array([[0.0, 0.0, 0.0], [np.pi / 4, 0.0, 0.0], [0.0, 0.5, 0.0]])
    found = amplitude(read_particle(path, ENERGY, None), q) / (6.193 - 0.216j)
    np.testing.assert_allclose(found, [2, 0, 2], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("none.pdb", None, "holds no particle"),
        ("empty.pdb", "END\n", "no atom in it"),
        ("text.mrc", "this is no map", "holds no particle"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, text: str | None, reason: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=reason):
        read_particle(tmp_path / name, ENERGY, None)


def test_a_map_below_its_contour_is_refused(tmp_path: Path) -> None:
    path = write_map(tmp_path / "ball.map", ball(5.0, 0.5), 5.0)
    with pytest.raises(DataError, match="no voxel above the contour 2"):
        read_particle(path, ENERGY, 2.0)
