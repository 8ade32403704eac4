"""Pictures against the chain of files that they replace."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from spidask.networks import picture
from spidask.networks.picture import fold_channels, render


def draw_figure(pattern: np.ndarray, colours: str, scale: str) -> np.ndarray:
    """The published chain up to the file: 954 x 1855 pixels, 8 bits."""
    shown = pattern if scale == "linear" else np.log10(np.maximum(pattern, 1))
    figure = plt.figure(figsize=(18.55, 9.54), dpi=100, frameon=False)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(shown, cmap="jet" if colours == "jet" else "gray", aspect="auto", vmin=0)
    file = io.BytesIO()
    figure.savefig(file, dpi=100)
    plt.close(figure)
    picture = np.asarray(Image.open(file).convert("RGB"))
    assert picture.shape == (954, 1855, 3)
    return picture.astype(np.float32) / 255


def resize_as_darknet(picture: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Pixel by pixel as Darknet's resize_image: along x, then along y."""
    old_rows, old_columns = picture.shape[:2]
    part = np.empty((old_rows, columns, 3), np.float32)
    for c in range(columns):
        if c == columns - 1:
            part[:, c] = picture[:, -1]
            continue
        x = c * (old_columns - 1) / (columns - 1)
        left = int(x)
        part[:, c] = (1 - (x - left)) * picture[:, left] + (x - left) * picture[:, left + 1]
    out = np.empty((rows, columns, 3), np.float32)
    for r in range(rows):
        y = r * (old_rows - 1) / (rows - 1)
        top = int(y)
        out[r] = (1 - (y - top)) * part[top]
        if r < rows - 1:
            out[r] += (y - top) * part[top + 1]
    return out


def letterbox(picture: np.ndarray, side: int) -> np.ndarray:
    rows = picture.shape[0] * side // picture.shape[1]
    out = np.full((side, side, 3), 0.5, np.float32)
    top = (side - rows) // 2
    out[top : top + rows] = resize_as_darknet(picture, rows, side)
    return out


def fringes(seed: int) -> np.ndarray:
    """A pattern like a single hit's, with counts from 0 to some hundreds."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:123, :240]
    r = np.hypot(y + 3, x - 119.5)
    return random.poisson(3e6 / (r + 5) ** 3 * (1 + np.cos(r / 6))).astype(np.float32)


@pytest.mark.parametrize("side", [416, 608])
@pytest.mark.parametrize("colours", ["jet", "grey"])
@pytest.mark.parametrize("scale", ["linear", "logarithmic"])
def test_a_picture_is_that_of_the_chain_of_files(colours, scale, side):
    pattern = fringes(1)
    expected = letterbox(draw_figure(pattern, colours, scale), side)
    found = render(torch.from_numpy(pattern)[None], (side, side), colours=colours, scale=scale)[0]
    assert found.shape == (3 if colours == "jet" else 1, side, side)
    shown = np.broadcast_to(found.numpy().transpose(1, 2, 0), expected.shape)
    # One grey level of 255 for 99.9 % of the pixels.
    assert np.mean(np.abs(shown - expected) <= 1.001 / 255) >= 0.999
    assert expected.std() > 0.05


@pytest.mark.parametrize("colours", ["jet", "grey"])
@pytest.mark.parametrize("shape", [(123, 240), (36, 40), (60, 20)])
def test_other_devices_see_the_same_picture(colours, shape):
    patterns = torch.from_numpy(np.random.default_rng(2).poisson(4, (3, *shape)).astype("f4"))
    found = render(patterns, (224, 416), colours=colours, scale="linear")
    levels = (patterns / patterns.amax((1, 2), keepdim=True) * 256).clamp(max=255).long()
    _, inner = picture._sizes(shape, (224, 416))
    edges = [
        (n, round(n * f), to) for n, f, to in zip(shape, picture.FIGURE_SCALE, inner, strict=True)
    ]
    elsewhere = picture._paint_by_matrices(levels, picture._table(colours), *edges, (224, 416))
    torch.testing.assert_close(found, elsewhere, rtol=1e-5, atol=1e-6)


def test_missing_pixels_and_empty_patterns_are_dark():
    patterns = torch.tensor([[[4.0, float("nan")], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    found = render(patterns, (32, 32), colours="grey", scale="linear")
    inner = found[0, 0, 16]
    assert found[0].max() == 1
    assert inner.min() == 0
    assert set(found[1].unique().tolist()) == {0.0, 0.5}


def test_a_set_limit_makes_patterns_comparable():
    patterns = torch.tensor([2.0, 8.0])[:, None, None].expand(2, 123, 240)
    found = render(patterns, (64, 64), colours="grey", scale="linear", maximum=16.0)
    middle = found[:, 0, 32, 32] * 255
    assert middle.tolist() == pytest.approx([32, 128])


def test_what_is_far_beyond_the_limit_is_brightest():
    patterns = torch.full((1, 4, 4), 1e6)
    found = render(patterns, (32, 32), colours="grey", scale="linear", maximum=1e-20)
    assert found[0, 0, 16, 16] == 1


def test_the_regions_own_aspect_leaves_little_grey():
    found = render(torch.zeros(1, 123, 240), (224, 416), colours="grey", scale="linear")
    assert (found == 0.5).float().mean() < 0.06


def test_three_channels_alike_fold_into_one():
    torch.manual_seed(0)
    weight, grey = torch.randn(8, 3, 3, 3), torch.rand(2, 1, 32, 32)
    expected = torch.nn.functional.conv2d(grey.expand(-1, 3, -1, -1), weight, padding=1)
    found = torch.nn.functional.conv2d(grey, fold_channels(weight), padding=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
