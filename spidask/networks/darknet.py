"""Networks as Darknet describes them, layer for layer, and its files of weights."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from spidask.errors import DataError
from spidask.networks.picture import PictureConv

LEAK = 0.1
EPSILON = 1e-5
"""Of the batch norm, as on Darknet's GPU; its CPU code takes 1e-6 outside of the root."""
HEADER = "<iii"
"""Major, minor and revision; then the images seen, 8 bytes from version 0.2 on, else 4."""


@dataclass(frozen=True)
class Conv:
    """A convolution; with batch norm and a leaky ReLU, or, as an output, with a bias alone."""

    filters: int
    size: int = 3
    stride: int = 1
    is_output: bool = False


@dataclass(frozen=True)
class Pool:
    """The largest of 2 x 2."""


@dataclass(frozen=True)
class Route:
    """Outputs of other layers, counted from this one, side by side."""

    layers: tuple[int, ...]


@dataclass(frozen=True)
class Shortcut:
    """The sum of the last output and an earlier one, counted from this one."""

    layer: int


@dataclass(frozen=True)
class Upsample:
    """Each value four times."""


@dataclass(frozen=True)
class Reorg:
    """Darknet's rearrangement of 2 x 2 into channels."""


Layer = Conv | Pool | Route | Shortcut | Upsample | Reorg


class Darknet(nn.Module):
    """A network of Darknet's layers.

    Parameters
    ----------
    layers : sequence of Layer
        As in Darknet's cfg file, without ``[net]``, ``[region]`` and ``[yolo]``; these three have
        no weights, and the last two count as no layer here.
    n_channels : int
        Channels of the picture.
    """

    def __init__(self, layers: Sequence[Layer], n_channels: int = 3) -> None:
        super().__init__()
        self._layers = tuple(layers)
        self.blocks = nn.ModuleList()
        widths: list[int] = []
        for place, layer in enumerate(layers):
            before = widths[-1] if widths else n_channels
            kind = nn.Conv2d if place else PictureConv
            block = _block(layer, before, kind) if isinstance(layer, Conv) else nn.Identity()
            self.blocks.append(block)
            widths.append(_width(layer, place, before, widths))
        kept = [place + back for place, layer in enumerate(layers) for back in _looks_back(layer)]
        self._kept = frozenset(kept)

    def forward(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """Compute the outputs.

        Parameters
        ----------
        pictures
            Shape (picture, channel, y, x), or one channel that stands for as many alike; y and x
            are multiples of 32.

        Returns
        -------
        list of torch.Tensor
            What each output convolution gives, shape (picture, filters, y / stride, x / stride).
        """
        x, kept, outputs = pictures, dict[int, torch.Tensor](), []
        for place, (layer, block) in enumerate(zip(self._layers, self.blocks, strict=True)):
            match layer:
                case Conv(is_output=is_output):
                    x = block(x)
                    if is_output:
                        outputs.append(x)
                case Pool():
                    x = functional.max_pool2d(x, 2)
                case Route(layers=others):
                    x = torch.cat([kept[place + back] for back in others], 1)
                case Shortcut(layer=back):
                    x = x + kept[place + back]
                case Upsample():
                    x = functional.interpolate(x, scale_factor=2, mode="nearest")
                case Reorg():
                    x = reorganize(x)
            if place in self._kept:
                kept[place] = x
        return outputs

    def convolutions(self) -> Iterator[tuple[int, nn.Sequential]]:
        """List the layers that have weights, in Darknet's order.

        Yields
        ------
        place : int
            Place among all layers, from 0.
        block : torch.nn.Sequential
            The convolution and, but for outputs, the batch norm and the leaky ReLU.
        """
        for place, block in enumerate(self.blocks):
            if isinstance(block, nn.Sequential):
                yield place, block


def reorganize(x: torch.Tensor) -> torch.Tensor:
    """Turn 2 x 2 pixels into channels, in the order of Darknet's ``reorg`` layer.

    Parameters
    ----------
    x
        Shape (picture, channel, y, x); channel is a multiple of 4, y and x of 2.

    Returns
    -------
    torch.Tensor
        Shape (picture, 4 * channel, y / 2, x / 2).

    Notes
    -----
    Darknet reads the memory of its input as if it had a quarter of the channels and twice the
    rows and columns, which is not what its paper says; trained weights depend on it.
    """
    n, channels, rows, columns = x.shape
    read = x.reshape(n, channels // 4, rows, 2, columns, 2)
    return read.permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * channels, rows // 2, columns // 2)


def read_weights(network: Darknet, path: str | Path, *, prefix: bool = False) -> int:
    """Put a Darknet ``.weights`` file into a network.

    Parameters
    ----------
    network : Darknet
        Changed in place.
    path : str or pathlib.Path
        The file.
    prefix : bool
        Whether it may end early at the end of a layer, as ``darknet19_448.conv.23`` and
        ``darknet53.conv.74`` do; the layers beyond it stay as they are.

    Returns
    -------
    int
        Convolutions that were filled.

    Raises
    ------
    DataError
        If the file is cut off within a layer, holds more than the network, or something else
        than numbers; names the layer.
    """
    numbers = _read_numbers(Path(path))
    at, n_filled = 0, 0
    for place, block in network.convolutions():
        if at == len(numbers) and prefix and n_filled:
            return n_filled
        parts = _parts(block)
        wanted = sum(part.numel() for part in parts)
        if at + wanted > len(numbers):
            raise DataError(
                f"{path} ends in layer {place}, convolution {n_filled}: {len(numbers) - at} of "
                f"{wanted} numbers are there; is it cut off, or of another network?",
                layer=place,
            )
        if not np.isfinite(numbers[at : at + wanted]).all():
            raise DataError(
                f"{path}: not all of layer {place}, convolution {n_filled}, are numbers; is it "
                "damaged, or no file of Darknet weights?",
                layer=place,
            )
        for part in parts:
            found = torch.from_numpy(numbers[at : at + part.numel()].copy())
            with torch.no_grad():
                part.copy_(found.reshape(part.shape))
            at += part.numel()
        n_filled += 1
    if at < len(numbers):
        raise DataError(
            f"{path} holds {len(numbers) - at} numbers more than this network's {at}; is it of "
            "another network?"
        )
    return n_filled


def write_weights(
    network: Darknet, path: str | Path, seen: int = 0, *, n_layers: int | None = None
) -> None:
    """Write a network as a Darknet ``.weights`` file.

    Parameters
    ----------
    network : Darknet
        The network.
    path : str or pathlib.Path
        The file.
    seen : int
        Pictures that it was trained on.
    n_layers : int, optional
        Layers to write, as of Darknet's command ``partial``: the first 23 of YOLOv2 are
        ``darknet19_448.conv.23``, the first 74 of YOLOv3 ``darknet53.conv.74``. Nothing: all.
    """
    with Path(path).open("wb") as file:
        file.write(struct.pack("<iiiq", 0, 2, 0, seen))
        for place, block in network.convolutions():
            if n_layers is not None and place >= n_layers:
                break
            for part in _parts(block):
                file.write(part.detach().cpu().contiguous().numpy().astype("<f4").tobytes())


def _read_numbers(path: Path) -> npt.NDArray[np.float32]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) < struct.calcsize(HEADER):
        raise DataError(f"{path} has {len(data)} bytes and no header of Darknet weights")
    major, minor, _ = struct.unpack_from(HEADER, data)
    is_long = 10 * major + minor >= 2 and major < 1000 and minor < 1000
    start = struct.calcsize(HEADER) + (8 if is_long else 4)
    if major < 0 or minor < 0 or len(data) < start:
        raise DataError(f"{path} is no file of Darknet weights")
    # What is left of a number that is cut off counts as one that is none.
    odd = (len(data) - start) % 4
    numbers = np.frombuffer(data[: len(data) - odd], "<f4", offset=start)
    return np.append(numbers, [np.nan] * bool(odd)).astype(np.float32)


def _parts(block: nn.Sequential) -> list[torch.Tensor]:
    """What a layer has, in the order of the file."""
    convolution = block[0]
    assert isinstance(convolution, nn.Conv2d)
    if convolution.bias is not None:
        return [convolution.bias, convolution.weight]
    norm = block[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return [norm.bias, norm.weight, norm.running_mean, norm.running_var, convolution.weight]


def _block(layer: Conv, n_in: int, kind: type[nn.Conv2d]) -> nn.Sequential:
    padding = layer.size // 2
    if layer.is_output:
        return nn.Sequential(kind(n_in, layer.filters, layer.size, layer.stride, padding))
    # Darknet keeps 99 % of the running statistics at each step.
    return nn.Sequential(
        kind(n_in, layer.filters, layer.size, layer.stride, padding, bias=False),
        nn.BatchNorm2d(layer.filters, eps=EPSILON, momentum=0.01),
        nn.LeakyReLU(LEAK),
    )


def _looks_back(layer: Layer) -> tuple[int, ...]:
    if isinstance(layer, Route):
        return layer.layers
    return (layer.layer,) if isinstance(layer, Shortcut) else ()


def _width(layer: Layer, place: int, before: int, widths: Sequence[int]) -> int:
    if isinstance(layer, Conv):
        return layer.filters
    if isinstance(layer, Route):
        return sum(widths[place + back] for back in layer.layers)
    return 4 * before if isinstance(layer, Reorg) else before
