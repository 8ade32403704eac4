"""An ensemble on many patterns: the scores of each member alone, whoever else is scored."""

import dataclasses

import numpy as np
import pytest
import torch

from spidask.config import Representation
from spidask.networks.cascade import score_members
from spidask.networks.compact import Compact
from spidask.networks.member import Member
from spidask.networks.resnet import ResNet18

SIZE = 4


def compact(seed, **representation):
    torch.manual_seed(seed)
    network = Compact(widths=(4, 6, 8), autocorrelation_widths=(4, 6), hidden=8).eval()
    return Member(network, Representation(**representation), 0.5, 1.5, -0.3)


@pytest.fixture
def patterns():
    return np.random.default_rng(0).poisson(1.0, (11, 40, 50)).astype(np.float32)


@pytest.fixture
def alike():
    return [compact(seed, maximum=30) for seed in range(3)]


def score_one_by_one(member, patterns, size=SIZE):
    """Each pattern in a batch with copies of itself, straight through the network."""
    found = []
    with torch.inference_mode():
        for pattern in patterns:
            seen = member.network.see(
                torch.from_numpy(np.repeat(pattern[None], size, 0)), member.representation
            )
            found.append(float(member.network.log_odds(member.network(*seen))[0]))
    return 1 / (1 + np.exp(-(member.slope * np.array(found) + member.intercept)))


def accept(members, patterns, shares):
    """Each member with the threshold above which it accepts a share of the patterns."""
    return [
        dataclasses.replace(m, threshold=float(np.quantile(score_one_by_one(m, patterns), 1 - s)))
        for m, s in zip(members, shares, strict=True)
    ]


def test_scores_are_calibrated_probabilities_of_each_member(alike, patterns):
    found = score_members(alike, patterns, [SIZE] * 3, early_exit=False)
    expected = np.stack([score_one_by_one(member, patterns) for member in alike], 1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("early_exit", [False, True])
def test_scores_do_not_depend_on_neighbours_or_place(alike, patterns, early_exit):
    members = accept(alike, patterns, (0.6, 0.6, 0.6))

    def score(some):
        return score_members(members, some, [SIZE] * 3, early_exit=early_exit)

    together = score(patterns)
    alone = np.concatenate([score(patterns[i : i + 1]) for i in range(len(patterns))])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together, score(patterns[::-1])[::-1])
    np.testing.assert_array_equal(together, score(torch.from_numpy(patterns)))


def test_an_early_exit_leaves_out_what_was_rejected_and_nothing_else(alike, patterns):
    members = accept(alike, patterns, (0.6, 0.5, 0.5))
    every = score_members(members, patterns, [SIZE] * 3, early_exit=False)
    found = score_members(members, patterns, [SIZE] * 3, early_exit=True)
    accepted = every.astype(float) >= [member.threshold for member in members]
    reached = np.stack([accepted[:, :n].all(1) for n in range(3)], 1)
    assert 0 < reached[:, 2].sum() < reached[:, 1].sum() < len(patterns)
    np.testing.assert_array_equal(found, np.where(reached, every, np.nan))


@pytest.mark.parametrize("early_exit", [False, True])
def test_members_that_see_differently_see_for_themselves(patterns, early_exit):
    torch.manual_seed(5)
    other = Member(ResNet18().eval(), Representation(maximum=30), 0.5)
    members = [compact(0, maximum=30), compact(1, maximum=10), other]
    members = accept(members, patterns, (0.9, 0.9, 0.9))
    found = score_members(members, patterns, [SIZE, SIZE, 2], early_exit=early_exit)
    expected = np.stack([score_one_by_one(member, patterns) for member in members], 1)
    scored = ~np.isnan(found)
    assert scored.all() != early_exit
    np.testing.assert_allclose(found[scored], expected[scored], rtol=1e-4)


def test_what_members_see_alike_is_made_once(alike, patterns, monkeypatch):
    calls = []
    see = Compact.see
    monkeypatch.setattr(Compact, "see", lambda *a: calls.append(len(a[1])) or see(*a))
    score_members(alike, patterns, [SIZE] * 3, early_exit=False)
    assert calls == [SIZE] * 3  # batches, not batches times members


def test_no_patterns_have_no_scores(alike, patterns):
    assert score_members(alike, patterns[:0], [SIZE] * 3, early_exit=True).shape == (0, 3)
