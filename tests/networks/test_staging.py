import threading

import numpy as np
import pytest
import torch

from spidask.networks.staging import stage

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FRAMES = np.arange(20 * 6 * 4).reshape(20, 6, 4)
BLOCKS = [slice(i, min(i + 3, 20)) for i in range(0, 20, 3)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["u2", ">u2", "i2", "<u4", "f2", ">f4", "f8", "u1"])
def test_blocks_come_in_order_and_regions_are_joined(dtype, device):
    frames = FRAMES.astype(dtype)
    frames.setflags(write=False)

    def read(block):
        return [frames[block, :2, 1:3], frames[block, 3:, 1:3]]

    found = list(stage(read, BLOCKS, torch.device(device), 2))
    assert [len(raw) for raw in found] == [3, 3, 3, 3, 3, 3, 2]
    assert {raw.device.type for raw in found} == {device}
    expected = frames[:, [0, 1, 3, 4, 5], 1:3]
    joined = np.concatenate([raw.cpu().numpy() for raw in found])
    assert joined.dtype == expected.dtype.newbyteorder("=")
    np.testing.assert_array_equal(joined, expected)


def test_blocks_are_read_ahead_but_not_without_bound():
    n_threads, begun, lock = 2, [], threading.Condition()

    def read(block):
        with lock:
            begun.append(block.start)
            lock.notify_all()
        return [FRAMES[block]]

    for number, _ in enumerate(stage(read, BLOCKS, torch.device("cpu"), n_threads)):
        ahead = min(number + 1 + n_threads + 1, len(BLOCKS))
        with lock:  # those ahead are read although nobody asks for them
            assert lock.wait_for(lambda n=ahead: len(begun) >= n, timeout=60)
            assert len(begun) == ahead


def test_a_block_that_cannot_be_read_ends_it_and_the_rest_is_left():
    read_after = []

    def read(block):
        if block.start == 6:
            raise OSError("gone")
        read_after.append(block.start)
        return [FRAMES[block]]

    found = stage(read, BLOCKS, torch.device("cpu"), 1)
    assert len(next(found)) == len(next(found)) == 3
    with pytest.raises(OSError, match="gone"):
        next(found)
    assert set(read_after) <= {0, 3, 9, 12}
    assert next(found, None) is None
