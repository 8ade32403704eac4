"""Darknet's layers and files, against Darknet itself."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from spidask.errors import DataError
from spidask.networks.darknet import Conv, Darknet, Pool, read_weights, reorganize, write_weights
from spidask.networks.yolov2 import yolov2
from spidask.networks.yolov3 import yolov3

FOLDER = Path(__file__).parent / "darknet"
SMALL = [Conv(8), Pool(), Conv(4, 1), Conv(6, 1, is_output=True)]
PER_LAYER = [4 * 8 + 8 * 3 * 9, 4 * 4 + 4 * 8, 6 + 6 * 4]


def fill(network: Darknet, seed: int) -> Darknet:
    """Weights by a stated seed, such that values neither die out nor grow."""
    random = np.random.default_rng(seed)

    def draw(low: float, high: float, shape) -> torch.Tensor:
        return torch.from_numpy(random.uniform(low, high, tuple(shape)).astype(np.float32))

    with torch.no_grad():
        for _, block in network.convolutions():
            weight = block[0].weight
            spread = (6 / weight[0].numel()) ** 0.5
            weight.copy_(draw(-spread, spread, weight.shape))
            if block[0].bias is not None:
                block[0].bias.copy_(draw(-0.1, 0.1, block[0].bias.shape))
                continue
            for part, low, high in (
                (block[1].bias, -0.1, 0.1),
                (block[1].weight, 0.7, 1.3),
                (block[1].running_mean, -0.1, 0.1),
                (block[1].running_var, 0.7, 1.3),
            ):
                part.copy_(draw(low, high, part.shape))
    return network.eval()


def test_reorg_reads_memory_as_darknet_does():
    # Darknet's loop: out[in_index] = x[out_index], for an input of 8 channels, 4 x 6 pixels.
    c, h, w, stride = 8, 4, 6, 2
    x = np.random.default_rng(0).standard_normal((c, h, w)).astype(np.float32)
    flat, out, out_c = x.ravel(), np.empty(x.size, np.float32), c // 4
    for k in range(c):
        for j in range(h):
            for i in range(w):
                c2, offset = k % out_c, k // out_c
                w2, h2 = i * stride + offset % stride, j * stride + offset // stride
                out[i + w * (j + h * k)] = flat[w2 + w * stride * (h2 + h * stride * c2)]
    found = reorganize(torch.from_numpy(x)[None])[0]
    np.testing.assert_array_equal(found.numpy(), out.reshape(4 * c, h // 2, w // 2))


def test_weights_come_back_as_they_were(tmp_path):
    network = fill(Darknet(SMALL), 1)
    write_weights(network, tmp_path / "small.weights", seen=6400)
    data = (tmp_path / "small.weights").read_bytes()
    assert struct.unpack_from("<iiiq", data) == (0, 2, 0, 6400)
    assert len(data) == 20 + 4 * sum(PER_LAYER)
    # Biases of the first layer come first, then its scales.
    first = np.frombuffer(data, "<f4", 16, 20)
    block = next(network.convolutions())[1]
    np.testing.assert_array_equal(first[:8], block[1].bias.detach())
    np.testing.assert_array_equal(first[8:], block[1].weight.detach())
    other = fill(Darknet(SMALL), 2)
    assert read_weights(other, tmp_path / "small.weights") == 3
    for name, tensor in network.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(other.state_dict()[name], tensor), name


def test_old_headers_are_shorter(tmp_path):
    network = fill(Darknet(SMALL), 1)
    write_weights(network, tmp_path / "new.weights")
    numbers = (tmp_path / "new.weights").read_bytes()[20:]
    (tmp_path / "old.weights").write_bytes(struct.pack("<iiii", 0, 1, 0, 64) + numbers)
    other = fill(Darknet(SMALL), 2)
    read_weights(other, tmp_path / "old.weights")
    assert torch.equal(other.blocks[0][0].weight, network.blocks[0][0].weight)


def test_a_prefix_fills_the_first_layers(tmp_path):
    network, path = fill(Darknet(SMALL), 1), tmp_path / "small.conv.1"
    write_weights(network, tmp_path / "small.weights")
    write_weights(network, path, n_layers=1)
    whole = (tmp_path / "small.weights").read_bytes()
    assert path.read_bytes() == whole[: 20 + 4 * PER_LAYER[0]]
    other = fill(Darknet(SMALL), 2)
    last = other.blocks[3][0].weight.clone()
    assert read_weights(other, path, prefix=True) == 1
    assert torch.equal(other.blocks[0][0].weight, network.blocks[0][0].weight)
    assert torch.equal(other.blocks[3][0].weight, last)
    with pytest.raises(DataError, match="ends in layer 2, convolution 1: 0 of 48 numbers"):
        read_weights(other, path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: data[:-8], r"ends in layer 3, convolution 2: 28 of 30 numbers are there"),
        (lambda data: data + bytes(40), "holds 10 numbers more than this network's 326"),
        (lambda data: data[:-3], "not all of layer 3, convolution 2, are numbers; is it damaged"),
        (lambda data: data[:-5], "ends in layer 3, convolution 2"),
        (lambda data: data + b"x", "holds 1 numbers more than this network's 326"),
        (lambda data: data[:100] + b"\xff" * 4 + data[104:], "not all of layer 0, convolution 0"),
        (lambda data: b"\xff" * len(data), "is no file of Darknet weights"),
        (lambda data: data[:7], "has 7 bytes and no header"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, change, match):
    path = tmp_path / "small.weights"
    write_weights(Darknet(SMALL), path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=match):
        read_weights(Darknet(SMALL), path)
    with pytest.raises(DataError, match="cannot be read"):
        read_weights(Darknet(SMALL), tmp_path / "gone.weights")


@pytest.mark.parametrize(
    ("build", "n_layers", "n_bytes"),
    # Of what `darknet partial` writes for the cfg files of below.
    [(yolov2, 23, 79_327_124), (yolov3, 74, 162_482_580)],
)
def test_feature_extractors_are_as_large_as_darknets(build, n_layers, n_bytes):
    with torch.device("meta"):
        network = build()
    n = sum(
        tensor.numel()
        for place, block in network.convolutions()
        for tensor in block.state_dict().values()
        if place < n_layers and tensor.ndim
    )
    assert 20 + 4 * n == n_bytes


@pytest.mark.parametrize(("name", "build"), [("yolov2", yolov2), ("yolov3", yolov3)])
def test_outputs_are_those_of_darknet_itself(name, build):
    """Against Darknet, commit f6afaabc, built for the CPU with gcc.

    Its cfg/yolov2-voc.cfg and cfg/yolov3.cfg with width=96, height=64, classes=1, filters of the
    last convolutions 30 and 18, and batch=1; weights of `fill` with seed 7, written by
    `write_weights`; the picture of below. ``darknet/dump.c`` wrote what goes into the region and
    yolo layers.
    """
    network = fill(build(), 7)
    for _, block in network.convolutions():
        if len(block) > 1:
            # On the CPU Darknet divides by sqrt(variance) + 1e-6, nearly this; on the GPU by
            # sqrt(variance + 1e-5), which is ours.
            block[1].eps = 2e-6
    picture = np.random.default_rng(3).uniform(0, 1, (1, 3, 64, 96)).astype(np.float32)
    with torch.inference_mode():
        outputs = network(torch.from_numpy(picture))
    with np.load(FOLDER / f"{name}.npz") as reference:
        assert len(outputs) == len(reference)
        for number, output in enumerate(outputs):
            expected = reference[f"output{number}"]
            assert np.abs(output[0].numpy() - expected).max() < 1e-5 * np.abs(expected).max()
