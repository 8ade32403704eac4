"""The fit of spheres on a device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from spidask.frames.fitting import fit_amplitudes
from spidask.frames.sizing import SphereLibrary

AT_ONCE = 64
"""Patterns fitted at once, the last ones filled up, because the last digits of a product of
matrices depend on its size."""

PIXELS_AT_ONCE = 2**25
"""Of which rings are summed at once, for the memory of the device: 8 bytes each, three times."""


@dataclass(frozen=True, eq=False)
class DeviceLibrary:
    """A library of spheres whose arrays are on a device.

    Attributes
    ----------
    pixels : torch.Tensor
        Positions in the flattened region, ring by ring, shape (pixel,), int64.
    n_pixels : torch.Tensor
        Pixels of each ring, shape (bin,), int64.
    exposure : torch.Tensor
        Relative exposure of each of the `pixels`, shape (pixel, 1), float64.
    amplitudes, diameters : torch.Tensor
        As in `SphereLibrary`, float64.
    brightest : float
        As in `SphereLibrary`.
    """

    pixels: torch.Tensor
    n_pixels: torch.Tensor
    exposure: torch.Tensor
    amplitudes: torch.Tensor
    diameters: torch.Tensor
    brightest: float


@lru_cache(maxsize=8)
def to_device(library: SphereLibrary, device: torch.device) -> DeviceLibrary:
    """Put a library on a device, once.

    Parameters
    ----------
    library : SphereLibrary
        From `sphere_library`.
    device : torch.device
        Where the patterns are.

    Returns
    -------
    DeviceLibrary
        For `fit_patterns`.
    """
    bins = library.bins.ravel()
    order = np.argsort(bins, kind="stable")  # in a ring they keep theirs
    pixels, n_pixels, exposure, amplitudes, diameters = (
        torch.from_numpy(array).to(device)
        for array in (
            order,
            np.bincount(bins, minlength=len(library.q)),
            library.exposure.ravel()[order][:, None],
            library.amplitudes,
            library.diameters,
        )
    )
    return DeviceLibrary(pixels, n_pixels, exposure, amplitudes, diameters, library.brightest)


def radial_sums(
    patterns: torch.Tensor, library: DeviceLibrary
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum photons and exposure over rings, as `frames.sizing.radial_sums` does.

    Parameters
    ----------
    patterns : torch.Tensor
        Patterns, shape (frame, y, x), float32, photons; NaN is missing.
    library : DeviceLibrary
        On the same device.

    Returns
    -------
    photons, exposures : torch.Tensor
        Both of shape (frame, bin), float64.

    Notes
    -----
    Pixels of a ring are added one after the other in the order of the kernel for the CPU, so that
    the sums are equal to the last bit.
    """
    few = max(1, PIXELS_AT_ONCE // len(library.pixels))
    sums = [_sum_rings(part, library) for part in torch.split(patterns, few)]
    photons, exposures = zip(*sums, strict=True)
    return torch.cat(photons), torch.cat(exposures)


def fit_patterns(patterns: torch.Tensor, library: DeviceLibrary) -> NDArray[np.float32]:
    """Fit patterns with the form factor of a sphere, as `frames.sizing.fit_spheres` does.

    Parameters
    ----------
    patterns : torch.Tensor
        Patterns, shape (frame, y, x), float32, photons; NaN is missing.
    library : DeviceLibrary
        On the same device.

    Returns
    -------
    numpy.ndarray
        Diameter [nm], quality and fluence [photons/um^2], shape (frame, 3), float32; NaN for empty
        patterns.

    Notes
    -----
    The formulas are those for the CPU, in float64; products of matrices add in another order.
    """
    out = [np.empty((0, 3), np.float32)]
    for part in torch.split(patterns, AT_ONCE) if len(patterns) else ():
        filling = (0, 0, 0, AT_ONCE - len(part))
        photons, exposures = (functional.pad(sums, filling) for sums in radial_sums(part, library))
        found = fit_amplitudes(
            photons, exposures, library.amplitudes, library.diameters, library.brightest
        )
        out.append(torch.stack(found, 1)[: len(part)].cpu().numpy())
    return np.concatenate(out)


def _sum_rings(patterns: torch.Tensor, library: DeviceLibrary) -> tuple[torch.Tensor, torch.Tensor]:
    values = patterns.flatten(1).T[library.pixels].double()  # (pixel, frame)
    usable = values.isfinite()
    photons, exposures = values.where(usable, 0.0), library.exposure.where(usable, 0.0)
    return _add_up(photons, library), _add_up(exposures, library)


def _add_up(values: torch.Tensor, library: DeviceLibrary) -> torch.Tensor:
    summed = torch.segment_reduce(values, "sum", lengths=library.n_pixels, initial=0.0)
    return summed.T.contiguous()
