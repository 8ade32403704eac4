"""Raw frames read ahead and sent to a device while those before them are worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Parts = Sequence[NDArray[Any]]


def stage(
    read: Callable[[slice], Parts],
    blocks: Sequence[slice],
    device: torch.device,
    n_threads: int,
) -> Iterator[torch.Tensor]:
    """Read blocks of frames in threads, each of which sends its block on to a device.

    Parameters
    ----------
    read : callable
        From the positions of a block to the regions of its frames that lie one below the other,
        each of shape (frame, y, x), alike but for y, any integer or float dtype.
    blocks : sequence of slice
        Positions of each block.
    device : torch.device
        Where the frames go.
    n_threads : int
        Threads that read.

    Yields
    ------
    torch.Tensor
        The frames of each block, in order, shape (frame, y, x), in the dtype that was read.

    Notes
    -----
    At most `n_threads` + 1 blocks are being read, on their way, or wait on the device, beside the
    one that was given last. They pass through pinned memory, which torch keeps for the next ones,
    and a stream of their own, so that the bus is busy while the device computes.
    """
    stream = None
    if device.type == "cuda":
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    remaining = iter(blocks)
    with ThreadPoolExecutor(n_threads) as pool:

        def submit(n: int) -> list[Future[torch.Tensor]]:
            return [
                pool.submit(lambda block: send(read(block), device, stream), block)
                for block in islice(remaining, n)
            ]

        waiting = deque(submit(n_threads + 1))
        try:
            while waiting:
                raw = waiting.popleft().result()
                waiting.extend(submit(1))
                if stream is not None:
                    # Its memory belongs to the other stream, which must not use it again too soon.
                    raw.record_stream(torch.cuda.current_stream(device))
                yield raw
        finally:
            pool.shutdown(cancel_futures=True)


def send(parts: Parts, device: torch.device, stream: torch.cuda.Stream | None) -> torch.Tensor:
    """Join regions in pinned memory, copy them to a device and wait until they are there.

    Parameters
    ----------
    parts : sequence of numpy.ndarray
        Regions that lie one below the other, each of shape (frame, y, x).
    device : torch.device
        Where they go.
    stream : torch.cuda.Stream or None
        What copies; None where the device is the CPU.

    Returns
    -------
    torch.Tensor
        Shape (frame, y, x), in the dtype of the regions.
    """
    n_frames, _, width = parts[0].shape
    shape = (n_frames, sum(part.shape[1] for part in parts), width)
    host = torch.empty(shape, dtype=_torch_dtype(parts[0].dtype), pin_memory=stream is not None)
    np.concatenate(parts, axis=1, out=host.numpy())
    if stream is None:
        return host
    with torch.cuda.stream(stream):
        raw = host.to(device, non_blocking=True)
        # Threads sleep until then, for cores have other blocks to read.
        copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        copied.record(stream)
    copied.synchronize()
    return raw


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    # torch knows no foreign byte order.
    return torch.from_numpy(np.empty(0, dtype.newbyteorder("="))).dtype
