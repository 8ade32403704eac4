"""What labels are made from: whatever changes a score is in it, and nothing else."""

import pytest

from spidask.config import Representation
from spidask.errors import StoreError
from spidask.io.fingerprint import read_fingerprint
from spidask.networks.member import Member, save_member
from spidask.networks.yolo import YoloV2
from spidask.provenance import refuse_stale_labels, sign_labels


def test_labels_record_how_networks_computed_them(beamtime, tmp_path):
    save_member(Member(YoloV2(0.1).eval(), Representation()), tmp_path / "y.safetensors")
    members = [*beamtime.members, tmp_path / "y.safetensors"]
    (tmp_path / "labels.zarr").mkdir()
    sign_labels(members, beamtime.config(tmp_path, inference={"batch_size": "auto"}))
    stored = read_fingerprint(tmp_path / "labels.zarr")
    assert stored["inference.batch_size"] == [8, 8, 1]
    assert (stored["inference.runtime"], stored["inference.precision"]) == ("torch", "fp32")
    refuse_stale_labels(members, {}, beamtime.config(tmp_path, inference={"batch_size": "auto"}))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("precision", "bf16", "inference.precision .*fp32.*bf16"),
        ("runtime", "openvino", "inference.runtime .*torch.*openvino"),
        ("batch_size", 4, r"inference.batch_size .*16, 16.*4, 4"),
    ],
)
def test_labels_that_were_computed_otherwise_are_stale(beamtime, tmp_path, key, value, told):
    (tmp_path / "labels.zarr").mkdir()
    sign_labels(beamtime.members, beamtime.config(tmp_path, inference={"device": "cpu"}))
    changed = beamtime.config(tmp_path, inference={"device": "cpu", key: value})
    with pytest.raises(StoreError, match=told):
        refuse_stale_labels(beamtime.members, {}, changed)
