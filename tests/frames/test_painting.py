import numpy as np
import pytest

from spidask.frames.painting import paint

TABLE = np.linspace(0, 1, 256 * 3, dtype=np.float32).reshape(256, 3)


def taps(n_from, n_to, rng):
    """Two neighbours for each place, in ascending order, and weights that sum to one."""
    first = np.sort(rng.integers(0, n_from, n_to))
    places = np.stack([first, np.minimum(first + 1, n_from - 1)], 1).astype(np.int32)
    share = rng.random(n_to).astype(np.float32)
    return places, np.stack([1 - share, share], 1)


def multiply(levels, table, rows, columns):
    """Colour everything, then every pixel as a sum over four."""
    colours = table[levels].transpose(0, 3, 1, 2).astype(float)
    down = sum(colours[:, :, rows[0][:, k]] * rows[1][:, k, None] for k in (0, 1))
    return sum(down[..., columns[0][:, k]] * columns[1][:, k] for k in (0, 1))


@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (9, 3)])
@pytest.mark.parametrize("n_channels", [1, 3])
def test_a_picture_is_a_mixture_of_four_colours_in_a_frame(shape, n_channels):
    rng = np.random.default_rng(1)
    levels = rng.integers(0, 256, (4, *shape)).astype(np.uint8)
    rows, columns = taps(shape[0], 12, rng), taps(shape[1], 15, rng)
    table = TABLE[:, :n_channels]
    out = paint(levels, table, rows, columns, (17, 20), 0.5)
    assert out.shape == (4, n_channels, 17, 20)
    assert out.dtype == np.float32
    inner = out[:, :, 2:14, 2:17]
    np.testing.assert_allclose(inner, multiply(levels, table, rows, columns), rtol=0, atol=1e-6)
    inner[:] = 0.5
    assert (out == 0.5).all()


def test_pictures_do_not_depend_on_each_other():
    rng = np.random.default_rng(2)
    levels = rng.integers(0, 256, (3, 6, 6)).astype(np.uint8)
    rows, columns = taps(6, 9, rng), taps(6, 9, rng)
    whole = paint(levels, TABLE, rows, columns, (9, 9), 0.5)
    parts = [paint(levels[i : i + 1], TABLE, rows, columns, (9, 9), 0.5) for i in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert paint(levels[:0], TABLE, rows, columns, (9, 9), 0.5).shape == (0, 3, 9, 9)
