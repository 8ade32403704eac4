"""Members: round trips, refusals, and scores that do not depend on the company they keep."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from spidask.config import Representation
from spidask.errors import DataError
from spidask.networks.compact import Compact
from spidask.networks.member import (
    SHIPPED,
    Member,
    load_member,
    logits,
    save_member,
)
from spidask.networks.tensors import count_parameters


@pytest.fixture
def member():
    torch.manual_seed(1)
    network = Compact(widths=(4, 6, 8), autocorrelation_widths=(4, 6), hidden=8).eval()
    return Member(network, Representation(maximum=20), 0.4, 1.5, -0.3, {"iteration": 7})


@pytest.fixture
def patterns():
    return np.random.default_rng(0).poisson(1.0, (11, 40, 50)).astype(np.float32)


def test_round_trip_keeps_everything(member, patterns, tmp_path):
    save_member(member, tmp_path / "m.safetensors")
    again = load_member(tmp_path / "m.safetensors")
    assert (again.threshold, again.slope, again.intercept) == (0.4, 1.5, -0.3)
    assert again.representation == member.representation
    assert again.provenance == {"iteration": 7}
    expected, found = (logits(m.network, m.representation, patterns, 4) for m in (member, again))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_shipped_member_is_small_and_loads():
    assert SHIPPED.stat().st_size < 5e6
    member = load_member(SHIPPED)
    assert 0 < member.threshold < 1


def test_refuses_what_is_no_member(tmp_path):
    text, foreign = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    text.write_bytes(b"no tensors here")
    save_file({"x": torch.zeros(2)}, foreign)
    for path in (text, foreign, tmp_path / "missing.safetensors"):
        with pytest.raises(DataError, match=path.name):
            load_member(path)


def test_truncated_member_is_refused(member, tmp_path):
    path = tmp_path / "m.safetensors"
    save_member(member, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"m\.safetensors"):
        load_member(path)


def test_parameters_are_counted_from_the_file(member, tmp_path):
    save_member(member, tmp_path / "m.safetensors")
    expected = sum(parameter.numel() for parameter in member.network.parameters())
    assert count_parameters(tmp_path / "m.safetensors") == expected
    (tmp_path / "m.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="is no file of tensors"):
        count_parameters(tmp_path / "m.safetensors")
