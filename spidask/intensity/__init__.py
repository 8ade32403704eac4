"""3D intensities that orientation determination recovers, and how much of them is signal.

An intensity is an array over momentum transfer, shape (n, n, n) with axes x, y, z and n odd, its
origin in the middle voxel. A shell is the sphere of a radius that is counted in voxels.
"""

from spidask.intensity.alignment import find_rotation, measure_symmetry
from spidask.intensity.shells import (
    ALIGNED,
    Alignment,
    correlate_shells,
    cut_plane,
    mean_over_shells,
    measure_contrast,
)

__all__ = [
    "ALIGNED",
    "Alignment",
    "correlate_shells",
    "cut_plane",
    "find_rotation",
    "mean_over_shells",
    "measure_contrast",
    "measure_symmetry",
]
