"""The kernels of `frames` once more, in torch, for raw frames that are on a device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from spidask.frames.calibrate import Calibration, missing_from


@dataclass(frozen=True, eq=False)
class DeviceCalibration:
    """A calibration whose maps are on a device.

    Attributes
    ----------
    settings : Calibration
        What it was made of, on the host.
    offset, divisor : torch.Tensor
        As in `Calibration`, shape (y, x), float32.
    parts : torch.Tensor or None
        Pixels that are summed into those of the assembled region, shape (part, y, x), int64; 0
        in gaps. None where the pattern is the block.
    gap : torch.Tensor or None
        True where a part lies in a gap, shape (y, x), bool.
    """

    settings: Calibration
    offset: torch.Tensor
    divisor: torch.Tensor
    parts: torch.Tensor | None
    gap: torch.Tensor | None


@lru_cache(maxsize=8)
def to_device(calibration: Calibration, device: torch.device) -> DeviceCalibration:
    """Put a calibration on a device, once.

    Parameters
    ----------
    calibration : Calibration
        Maps and settings.
    device : torch.device
        Where the raw frames are.

    Returns
    -------
    DeviceCalibration
        For `calibrate`.
    """
    parts = gap = None
    if calibration.index is not None:
        index = torch.from_numpy(calibration.index).to(device, torch.int64).permute(2, 0, 1)
        parts, gap = index.clamp(min=0).contiguous(), (index < 0).any(0)
    offset, divisor = (
        torch.from_numpy(values).to(device) for values in (calibration.offset, calibration.divisor)
    )
    return DeviceCalibration(calibration, offset, divisor, parts, gap)


def calibrate(
    raw: torch.Tensor,
    calibration: DeviceCalibration,
    energy_ratio: NDArray[np.float64] | None = None,
    *,
    lit_photons: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn raw frames into photons, and count them, as `frames.calibrate.calibrate` does.

    Parameters
    ----------
    raw : torch.Tensor
        Raw frames, shape (frame, y, x), any integer or float dtype, ADU.
    calibration : DeviceCalibration
        On the same device.
    energy_ratio : numpy.ndarray, optional
        Photon energy of each frame over the expected one, shape (frame,), float64.
    lit_photons : float
        A pixel above this is lit. Photons.

    Returns
    -------
    patterns : torch.Tensor
        Whole photons, shape (frame, y, x), float32, on the device; NaN where missing.
    counts : torch.Tensor
        What `frames.hits.count_photons` gives of the patterns, shape (frame, 3), float64.

    Notes
    -----
    The operations on a pixel are those of the kernel for the CPU, in float32 and in its order, each
    rounded for itself, so that patterns and counts are equal to the last bit. Differs from it where
    a pixel holds infinitely many photons, which are counted as photons here.
    """
    settings = calibration.settings
    saturation = min(settings.saturation_adu, missing_from(_numpy_dtype(raw.dtype)))
    adu = _subtract_dark(raw, calibration.offset, saturation)
    if settings.asic is not None:
        _subtract_common_mode(adu, settings.asic, settings.max_adu)
    divisor = calibration.divisor
    if energy_ratio is not None:
        ratio = torch.from_numpy(energy_ratio.astype(np.float32)).to(raw.device)
        divisor = divisor * ratio[:, None, None]
    patterns = adu.div_(divisor).add_(_single(1.0 - settings.photon_threshold)).floor_()
    # Adding zero turns -0.0 into 0.0.
    patterns.clamp_(min=0).add_(0.0)
    if calibration.parts is not None and calibration.gap is not None:
        patterns = _assemble(patterns, calibration.parts, calibration.gap)
    return patterns, _count_photons(patterns, lit_photons)


def _subtract_dark(raw: torch.Tensor, offset: torch.Tensor, saturation: float) -> torch.Tensor:
    # In place: of a block of uint16, float32 has twice the bytes each time.
    adu = raw.to(torch.float32, copy=True)
    usable = adu < _single(saturation)
    adu.sub_(offset)
    usable &= adu.isfinite()
    return adu.masked_fill_(usable.logical_not_(), torch.nan)


def _subtract_common_mode(adu: torch.Tensor, asic: tuple[int, int], max_adu: float) -> None:
    """Take the median of the unlit pixels off each group, in place."""
    n_frames, height, width = adu.shape
    rows, columns = asic
    # Groups at the edge are filled up with pixels that do not count.
    down, across = -(-height // rows), -(-width // columns)
    unlit = adu.masked_fill(~(adu <= _single(max_adu)), torch.nan)
    filling = (0, across * columns - width, 0, down * rows - height)
    unlit = functional.pad(unlit, filling, value=torch.nan)
    groups = unlit.view(n_frames, down, rows, across, columns).transpose(2, 3).flatten(3)
    level = _median(groups)
    level = torch.where(level.isnan(), 0.0, level)[:, :, None, :, None]
    spread = level.expand(-1, -1, rows, -1, columns).reshape(unlit.shape)
    adu.sub_(spread[:, :height, :width])
    adu.masked_fill_(adu.isfinite().logical_not_(), torch.nan)


def _median(groups: torch.Tensor) -> torch.Tensor:
    """Median along the last axis without NaN, as numpy.median gives it; NaN of nothing else."""
    low = groups.nanmedian(-1, keepdim=True).values  # of an even number the lower middle one
    n, n_upto = groups.isfinite().sum(-1), (groups <= low).sum(-1)
    high = groups.masked_fill(~(groups > low), torch.inf).amin(-1)
    low = low.squeeze(-1)
    return torch.where((n % 2 == 1) | (n_upto > n // 2), low, (low + high) / 2)


def _assemble(patterns: torch.Tensor, parts: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
    flat, (height, width) = patterns.flatten(1), gap.shape
    total = flat.new_zeros((len(flat), height * width))
    for part in parts:  # in the order of the kernel for the CPU
        total += flat.index_select(1, part.flatten())
    return total.masked_fill_(gap.flatten(), torch.nan).view(len(flat), height, width)


def _count_photons(patterns: torch.Tensor, lit_photons: float) -> torch.Tensor:
    # Sums of whole photons are exact in any order.
    total = patterns.nansum((1, 2), dtype=torch.float64)
    n_lit = (patterns > _single(lit_photons)).sum((1, 2))
    n_usable = patterns.isnan().logical_not_().sum((1, 2))
    total = torch.where(n_usable > 0, total, torch.nan)
    return torch.stack([total, n_lit.double(), n_usable.double()], 1)


def _single(value: float) -> float:
    return float(np.float32(value))


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[np.generic]:
    return np.dtype(str(dtype).removeprefix("torch."))
