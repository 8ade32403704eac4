"""Intensities that are known: of an icosahedron in any orientation, and noise of its grain."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

SIZE, SHELLS = 41, (5, 18)
"""Voxels along each axis, and shells that hold the noise and the signal."""
DIAMETER = 1.1
"""In units of one over a voxel: a fringe is 2 pi / 1.1 = 5.7 voxels wide."""


def grid(size=SIZE):
    axis = np.arange(size) - size // 2
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).astype(float)


def points_intensity(rotation, corners):
    """|F|^2 of points at the corners, the falling envelope of q^-2 besides."""
    q = grid() @ rotation  # q in the particle's axes
    amplitude = np.exp(1j * (q @ corners.T)).sum(axis=-1)
    return np.abs(amplitude) ** 2 / (1 + np.sum(q**2, axis=-1))


def icosahedron_corners():
    golden = (1 + np.sqrt(5)) / 2
    one = np.array([(0, a, b * golden) for a in (-1, 1) for b in (-1, 1)], float)
    corners = np.concatenate([np.roll(one, k, axis=1) for k in range(3)])
    return corners * DIAMETER / 2 / np.linalg.norm(corners[0])


@pytest.fixture(scope="session")
def icosahedral():
    """The intensity of twelve points in an orientation of its own, and upright."""
    rotation = Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix()
    corners = icosahedron_corners()
    return points_intensity(rotation, corners), points_intensity(np.eye(3), corners), rotation


@pytest.fixture(scope="session")
def lopsided():
    """The intensity of points without any symmetry, in two orientations, and what turns one."""
    corners = np.random.default_rng(5).normal(size=(7, 3)) * DIAMETER / 3
    rotation = Rotation.from_rotvec([-0.3, 0.9, 1.4]).as_matrix()
    return points_intensity(rotation, corners), points_intensity(np.eye(3), corners), rotation


def noise(seed, size=SIZE):
    """Gaussian noise of the grain of speckles, of unit variance."""
    grain = gaussian_filter(np.random.default_rng(seed).normal(size=(size,) * 3), 1.5)
    return grain / grain.std()
