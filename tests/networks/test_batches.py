"""Batches come in order, one ahead."""

import threading

import pytest

from spidask.networks.batches import draw_ahead

PARTS = [(1, slice(0, 4)), (1, slice(4, 8)), (2, slice(0, 4))]


def test_batches_come_in_order_and_one_ahead():
    drawn, begun = [], threading.Semaphore(0)

    def draw(iteration, part):
        drawn.append((iteration, part))
        begun.release()
        return drawn[-1]

    batches = draw_ahead(draw, PARTS)
    assert next(batches) == PARTS[0]
    # The second is drawn without being asked for.
    assert all(begun.acquire(timeout=60) for _ in range(2))
    assert list(batches) == PARTS[1:]
    assert drawn == PARTS


def test_what_goes_wrong_in_drawing_is_told():
    def draw(iteration, _part):
        if iteration == 2:
            raise ValueError("no such pattern")
        return iteration

    batches = draw_ahead(draw, PARTS)
    assert [next(batches), next(batches)] == [1, 1]
    with pytest.raises(ValueError, match="no such pattern"):
        next(batches)


def test_nothing_wanted_is_nothing_drawn():
    assert list(draw_ahead(lambda *_: 1 / 0, [])) == []
