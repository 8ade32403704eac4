"""What a running job tells about itself: small events, sent while the work goes on."""

from __future__ import annotations

import base64
import logging
import os
import time
from typing import Any

import numpy as np
import numpy.typing as npt
from distributed import default_client, get_worker

FloatArray = npt.NDArray[np.float32]
log = logging.getLogger(__name__)

TOPIC = "spidask"
"""Topic of the events on the scheduler, and name of the plugin that listens."""
PICTURE_SIDE = 128
"""Most pixels along a side of a picture."""


def tell(kind: str, **facts: Any) -> None:
    """Send an event to the scheduler, or nowhere if there is none.

    It never raises into the work that it tells about.

    Parameters
    ----------
    kind : str
        ``stage``, with name, n_shards and n_frames to do;
        ``shard``, with run, number, n_frames, n_hits, n_single, seconds, read_s, preprocess_s,
        score_s, size_s, write_s and reader, the worker that read it;
        ``failed``, with run, number and cause;
        ``loss``, with seed, iteration, loss and, at checkpoints, validation_f1;
        ``picture``, with run, index, score and pattern, made by `shrink_pattern`;
        ``selected``, with what `selection.count_reasons` gives;
        ``gpu``, with what `gpu_facts` gives.
    **facts : Any
        Numbers, text, and lists and dicts of these.
    """
    try:
        _send({"kind": kind, "time": time.time(), **{k: _plain(v) for k, v in facts.items()}})
    except Exception as error:
        log.debug("an event of kind %r was not sent: %s", kind, error)


def _send(event: dict[str, Any]) -> None:
    try:
        worker = get_worker()
    except ValueError:
        # Raises for its part where no client is: then nobody listens.
        default_client().log_event(TOPIC, {**event, "worker": "driver"})
    else:
        worker.log_event(TOPIC, {**event, "worker": worker.address})


def _plain(value: Any) -> Any:
    # Events travel as msgpack, which knows no NumPy scalars.
    return value.item() if isinstance(value, np.generic) else value


def shrink_pattern(pattern: FloatArray) -> dict[str, Any]:
    """Turn a pattern into a small picture that an event can carry.

    Parameters
    ----------
    pattern : numpy.ndarray
        One pattern, shape (y, x), float32, photons; NaN where a pixel is missing.

    Returns
    -------
    dict
        ``shape``, height and width of at most `PICTURE_SIDE` pixels, and ``pixels``, base64 text
        of uint8 in C order: 0 is missing, 1 no photon, 255 the brightest, on a log scale.

    Examples
    --------
    >>> picture = shrink_pattern(np.float32([[0, 1], [np.nan, 3]]))
    >>> picture["shape"], list(base64.b64decode(picture["pixels"]))
    ([2, 2], [1, 128, 0, 255])
    """
    factor = max(1, -(-max(pattern.shape) // PICTURE_SIDE))
    photons = np.log1p(_sum_blocks(np.asarray(pattern, np.float64), factor))
    brightest = max(np.nanmax(photons, initial=0.0), 1e-6)
    with np.errstate(invalid="ignore"):
        grey = np.round(1 + 254 * np.clip(photons / brightest, 0, 1))
    pixels = np.where(np.isnan(photons), 0, grey).astype(np.uint8)
    return {"shape": list(pixels.shape), "pixels": base64.b64encode(pixels.tobytes()).decode()}


def _sum_blocks(pattern: npt.NDArray[np.float64], factor: int) -> npt.NDArray[np.float64]:
    # Photons of each block, as if its missing pixels were like the others in it.
    ny, nx = (-(-n // factor) for n in pattern.shape)
    padded = np.full((ny * factor, nx * factor), np.nan)
    padded[: pattern.shape[0], : pattern.shape[1]] = pattern
    blocks = padded.reshape(ny, factor, nx, factor)
    n_valid = np.isfinite(blocks).sum(axis=(1, 3))
    total = np.where(np.isfinite(blocks), blocks, 0).sum(axis=(1, 3))
    total[n_valid == 0] = np.nan
    photons: npt.NDArray[np.float64] = np.maximum(total, 0) * factor**2 / np.maximum(n_valid, 1)
    return photons


def gpu_facts() -> dict[str, Any] | None:
    """Look at the GPU that this process uses.

    Returns
    -------
    dict or None
        ``device``, its name and its number on the node; ``used_bytes`` and ``total_bytes``, by all
        processes; ``utilisation``, percent, None without pynvml. None where CUDA is not in use.
    """
    import torch

    # To ask a device that this process doesn't use would take its memory for a context.
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    free, total = torch.cuda.mem_get_info()
    number = os.environ.get("CUDA_VISIBLE_DEVICES") or str(torch.cuda.current_device())
    return {
        "device": f"{torch.cuda.get_device_name()} {number}",
        "used_bytes": int(total - free),
        "total_bytes": int(total),
        "utilisation": _utilisation(),
    }


def _utilisation() -> float | None:
    import torch

    try:
        return float(torch.cuda.utilization())
    except Exception:  # pynvml is absent, or its driver library
        return None
