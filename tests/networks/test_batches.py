"""Batches depend on their place only, and come in order, one ahead."""

import threading

import numpy as np
import pytest
import torch

from spidask.networks.batches import Labelled, draw_ahead, draw_batch, upload

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


def make_supply(device: str = "cpu"):
    random = np.random.default_rng(0)
    patterns = random.poisson(2.0, (20, 16, 24)).astype(np.float32)
    boxes = random.uniform(0.3, 0.7, (20, 4)).astype(np.float32)
    return upload(Labelled(patterns, np.arange(20) % 2 + 1, boxes), device)


def are_equal(one, other) -> bool:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in pairs)


def test_a_part_depends_on_seed_iteration_and_first_place_only():
    drawn = {
        (seed, iteration, start): draw_batch(supply, seed, iteration, slice(start, start + 8))
        for supply in [make_supply()]
        for seed in (1, 2)
        for iteration in (1, 2)
        for start in (0, 8)
    }
    for (seed, iteration, start), batch in drawn.items():
        again = draw_batch(make_supply(), seed, iteration, slice(start, start + 8))
        assert are_equal(batch, again)
    batches = list(drawn.values())
    assert not any(are_equal(a, b) for i, a in enumerate(batches) for b in batches[:i])


def test_rare_classes_are_drawn_more_often_than_they_are():
    patterns = np.zeros((101, 8, 8), np.float32)
    supply = upload(Labelled(patterns, np.array([1] + [2] * 100)), "cpu")
    drawn = torch.cat([draw_batch(supply, 0, i, slice(0, 64)).classes for i in range(20)])
    # Square roots of 1 and 100: one in eleven instead of one in a hundred.
    assert abs(float((drawn == 1).float().mean()) - 1 / 11) < 0.04


def test_all_patterns_of_a_class_are_drawn_alike():
    patterns = np.arange(1, 11, dtype=np.float32)[:, None, None] * np.ones((1, 48, 48), np.float32)
    supply = upload(Labelled(patterns, np.ones(10, np.int64)), "cpu")
    batch = draw_batch(supply, 3, 1, slice(0, 4000))
    seen = batch.patterns[1::2].nan_to_num().amax((1, 2))  # these are not thinned
    counts = torch.bincount(seen.long(), minlength=11)[1:]
    assert counts.min() > 150  # 200 +- 13
    assert counts.max() < 250


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_of_the_gpu_come_again_and_photons_there_are_binomial():
    supply = make_supply("cuda")
    first, again = (draw_batch(supply, 1, 3, slice(0, 8)) for _ in range(2))
    assert first.patterns.is_cuda
    assert are_equal(first, again)
    here = draw_batch(make_supply(), 1, 3, slice(0, 8)).patterns
    assert here.shape == first.patterns.shape
    flat = upload(Labelled(np.full((2, 200, 250), 12, np.float32), np.array([1, 2])), "cuda")
    kept = draw_batch(flat, 0, 1, slice(0, 400)).patterns[::2].cpu().numpy()
    shares = np.nanmean(kept, (1, 2)) / 12
    assert 0.4 < shares.min() < 0.43
    assert 0.97 < shares.max() < 1
    spread = np.nanvar(kept, (1, 2)) / (12 * shares * (1 - shares))
    assert abs(spread.mean() - 1) < 0.01
