"""Train the network that ships with the package, on simulated patterns only.

The patterns are those of the 2018 experiment with fluence, hole, dead columns and beam position
drawn anew each time a pattern is shown, so that the network learns particles and not a detector.

    python jobs/pretrain.py out/pretrain --patterns 100000 --iterations 10000
"""

from __future__ import annotations

import argparse
import functools
import logging
from pathlib import Path

import numba
import numpy as np
import torch

from spidask.config import Ensemble, Geometry, Region, Training
from spidask.metrics import average_precision, best_threshold
from spidask.networks.augmentation import add_margin, augment
from spidask.networks.batches import Labelled, seed_generator
from spidask.networks.checkpoints import list_checkpoints, load_checkpoint
from spidask.networks.classifier import SINGLE, Batch
from spidask.networks.learning import begin, train_rank
from spidask.networks.member import Member, save_member
from spidask.schema import CLASSES
from spidask.simulation.beamtime import simulate_patterns

REGION = Region(y=(0, 123), x=(392, 632))
MIX = {"background": 0.06, "single": 0.34, "multiple": 0.32, "contaminant": 0.28}
VALIDATION = 1500


def simulate(n: int, seed: int, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Expected photons in half precision and class codes, kept on disk between calls."""
    path = folder / f"patterns_{n}_{seed}.npz"
    if not path.exists():
        photons, labels, _, _ = simulate_patterns(n, seed, Geometry(), REGION, mix=MIX)
        codes = np.array([CLASSES.index(label) for label in labels])
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, photons=photons.astype(np.float16), codes=codes)
    with np.load(path) as file:
        return file["photons"], file["codes"]


@numba.njit(nogil=True, fastmath=True)
def count(expected: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Poisson photons by inversion, many times quicker than the library for faint pixels."""
    out = np.empty(expected.shape, np.float32)
    for i, mean in enumerate(expected.flat):
        if mean > 30:
            out.flat[i] = random.poisson(mean)
            continue
        n, left = 0, random.random()
        share = np.exp(-mean)
        while left > share and n < 200:
            left -= share
            n += 1
            share *= mean / n
        out.flat[i] = n
    return out


def observe(expected: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """One exposure: a fluence, a hole, dead columns, and the photons that happen to come."""
    brightness = np.exp(random.uniform(np.log(0.7), np.log(5.0)))
    pattern = count(expected.astype(np.float32) * np.float32(brightness), random)
    height, width = pattern.shape
    centre = width // 2 + random.integers(-4, 5)
    if random.random() < 0.9:
        half = random.integers(8, 36)
        pattern[: random.integers(4, 34), max(centre - half, 0) : centre + half] = np.nan
    for _ in range(random.integers(0, 3)):
        start = random.integers(0, width)
        pattern[random.integers(0, height // 2) :, start : start + random.integers(1, 8)] = np.nan
    return pattern


def draw(
    expected: np.ndarray, codes: np.ndarray, size: int, seed: int, iteration: int, part: slice
) -> Batch:
    """A part of a batch of exposures."""
    rows = np.random.default_rng([seed, iteration]).integers(0, len(codes), size)[part]
    exposed = []
    for place, row in zip(range(size)[part], rows, strict=True):
        exposed.append(observe(expected[row], np.random.default_rng([seed, iteration, place + 1])))
    framed = add_margin(torch.from_numpy(np.stack(exposed)))
    random = seed_generator(framed.device, seed, iteration, part)
    patterns, _ = augment(framed, torch.arange(len(rows)), None, random)
    return Batch(patterns, torch.from_numpy(codes[rows]))


def judge(logits: np.ndarray, is_single: np.ndarray) -> dict[str, float]:
    """Numbers for the table."""
    scores = logits.astype(float)
    return {
        "validation_f1": round(best_threshold(scores, is_single)[1], 6),
        "validation_average_precision": round(average_precision(scores, is_single), 6),
    }


def main() -> None:
    """Simulate, train, write the member."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--patterns", type=int, default=100000)
    parser.add_argument("--iterations", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=2018)
    parser.add_argument("--initial", default="random", help="random, or a member to go on from")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    expected, codes = simulate(options.patterns, options.seed, options.folder)
    unseen, unseen_codes = simulate(VALIDATION, options.seed + 1, options.folder)
    exposed = [observe(p, np.random.default_rng([1, i])) for i, p in enumerate(unseen)]
    is_single = unseen_codes == SINGLE
    settings = Training(
        initial=options.initial,
        iterations=options.iterations,
        learning_rate=options.learning_rate,
        checkpoint_every=500,
        threads=options.threads,
        ensemble=Ensemble(n_members=1),
    )
    validation = Labelled(np.stack(exposed), unseen_codes)
    train_rank(
        functools.partial(begin, settings, validation),
        functools.partial(draw, expected, codes, settings.batch_size, options.seed),
        validation.patterns,
        functools.partial(judge, is_single=is_single),
        settings,
        options.seed,
        options.folder / "checkpoints",
    )
    checkpoint = load_checkpoint(list_checkpoints(options.folder / "checkpoints")[-1])
    provenance = {"patterns": options.patterns, "seed": options.seed, **checkpoint.history[-1]}
    threshold, _ = best_threshold(1 / (1 + np.exp(-checkpoint.validation.astype(float))), is_single)
    member = Member(checkpoint.network, settings.representation, threshold, provenance=provenance)
    save_member(member, options.folder / "compact.safetensors")


if __name__ == "__main__":
    main()
