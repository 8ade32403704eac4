"""An ensemble on many patterns: what members see alike is made once, and batches are full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit

from spidask.networks.classifier import in_single_precision
from spidask.networks.member import Member

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.intp]
Seen = tuple[torch.Tensor, ...]
Batch = tuple[IntArray, Seen]


def score_members(
    members: Sequence[Member],
    patterns: FloatArray | torch.Tensor,
    batch_sizes: Sequence[int],
    *,
    early_exit: bool,
) -> FloatArray:
    """Score patterns with every member.

    Parameters
    ----------
    members : sequence of Member
        The classifiers, on one device.
    patterns : numpy.ndarray or torch.Tensor
        Shape (frame, y, x), float32, photons, NaN where missing.
    batch_sizes : sequence of int
        Patterns that each member sees at once; a last batch is filled up, because the last digits
        of a convolution depend on the size.
    early_exit : bool
        Show a pattern to the next member only where those before accept it.

    Returns
    -------
    numpy.ndarray
        Calibrated probabilities of a single hit, shape (frame, member), float32; NaN where a
        member did not see the pattern.

    Notes
    -----
    A batch goes through all members before the next one is made, so that what they see is held of
    few patterns whatever their number. With an early exit, patterns wait until they fill a batch.
    """
    stages = [_Stage(member, size) for member, size in zip(members, batch_sizes, strict=True)]
    for before, stage in pairwise(stages):
        stage.sees_as_before = stage.sight == before.sight
    out = np.full((len(patterns), len(members)), np.nan, np.float32)
    batches = _split(len(patterns), batch_sizes[0])
    with torch.inference_mode():
        for number, rows in enumerate(batches):
            passed: list[Batch] = [(rows, ())]
            for column, stage in enumerate(stages):
                for batch in passed:
                    stage.add(*batch)
                passed = []
                for rows, seen in stage.take(is_last=number == len(batches) - 1):
                    seen = seen or stage.look(patterns, rows)
                    found = stage.score(seen)
                    out[rows, column] = found
                    # In double precision, as the selection compares.
                    kept = found.astype(float) >= stage.member.threshold
                    passed.append(_take(rows, seen, kept) if early_exit else (rows, seen))
    return out


class _Stage:
    """A member, and patterns that wait for it."""

    def __init__(self, member: Member, batch_size: int) -> None:
        self.member, self.batch_size = member, batch_size
        self.sight = member.network.sight(member.representation)
        self.device = next(member.network.parameters()).device
        self.sees_as_before = False
        self.rows, self.seen = np.empty(0, np.intp), Seen()

    def add(self, rows: IntArray, seen: Seen) -> None:
        """Have patterns wait; what the member before saw of them is kept if it sees alike."""
        seen = seen if self.sees_as_before else ()
        is_first = not len(self.rows)
        self.rows = np.concatenate([self.rows, rows])
        self.seen = seen if is_first else tuple(map(torch.cat, zip(self.seen, seen, strict=True)))

    def take(self, *, is_last: bool) -> Iterator[Batch]:
        """Give full batches, and of the last what remains."""
        while len(self.rows) >= self.batch_size or (is_last and len(self.rows)):
            n = self.batch_size
            yield self.rows[:n], tuple(part[:n] for part in self.seen)
            self.rows, self.seen = self.rows[n:], tuple(part[n:] for part in self.seen)

    def look(self, patterns: FloatArray | torch.Tensor, rows: IntArray) -> Seen:
        full = torch.as_tensor(patterns[_fill(rows, self.batch_size)]).to(self.device)
        seen = self.member.network.see(full, self.member.representation)
        return tuple(part[: len(rows)] for part in seen)

    def score(self, seen: Seen) -> FloatArray:
        n, member = len(seen[0]), self.member
        if n < self.batch_size:
            filled = torch.from_numpy(_fill(np.arange(n), self.batch_size)).to(self.device)
            seen = tuple(part[filled] for part in seen)
        outputs = in_single_precision(member.network(*seen))
        logits = member.network.log_odds(outputs)[:n].cpu().numpy()
        return np.asarray(expit(member.slope * logits + member.intercept), np.float32)


def _split(n: int, size: int) -> list[IntArray]:
    return [np.arange(start, min(start + size, n)) for start in range(0, n, size)]


def _fill(rows: IntArray, size: int) -> IntArray:
    """Repeat the last row until the batch is full."""
    return np.pad(rows, (0, size - len(rows)), mode="edge")


def _take(rows: IntArray, seen: Seen, kept: npt.NDArray[np.bool_]) -> Batch:
    if kept.all():
        return rows, seen
    where = torch.from_numpy(np.flatnonzero(kept)).to(seen[0].device)
    return rows[kept], tuple(part[where] for part in seen)
