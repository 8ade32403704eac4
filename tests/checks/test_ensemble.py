"""Checks of labels, members and their training."""

import sys

import pytest

from spidask.checks import check
from spidask.config import Representation
from spidask.networks.efficientnet import EfficientNet
from spidask.networks.member import Member, save_member


def test_a_pattern_among_several_that_matches_nothing(beamtime, tmp_path):
    found = check(beamtime.config(tmp_path, training={"runs": ["r0001", "r7*"]}))
    assert [(p.place, p.message) for p in found] == [
        ("training.runs", "'r7*' is no labelled run; those are r0001, r0002")
    ]


@pytest.mark.parametrize(("every", "n_checkpoints"), [(2, 6), (3, 4), (5, 3), (100, 1)])
def test_checkpoints_are_counted_as_training_makes_them(beamtime, tmp_path, every, n_checkpoints):
    ensemble = {"n_members": n_checkpoints}
    enough = {"iterations": 12, "checkpoint_every": every, "ensemble": ensemble}
    assert check(beamtime.config(tmp_path, training=enough)) == []
    ensemble["n_members"] += 1
    (problem,) = check(beamtime.config(tmp_path, training=enough))
    assert problem.message.startswith(
        f"needs {n_checkpoints + 1} checkpoints and there are {n_checkpoints};"
    )


def test_members_of_several_seeds_need_one_checkpoint(beamtime, tmp_path):
    many = {"checkpoint_every": 100, "ensemble": {"n_members": 9, "kind": "seeds"}}
    assert check(beamtime.config(tmp_path, training=many)) == []


def test_given_members_need_no_labels(beamtime, tmp_path):
    members = {"members": [str(path) for path in beamtime.members]}
    training = {"initial": "none", "ensemble": {"n_members": 50}}
    labels = {"file": None}
    assert (
        check(beamtime.config(tmp_path, inference=members, training=training, labels=labels)) == []
    )


def test_a_size_window_that_is_partly_out_of_reach(beamtime, tmp_path):
    (problem,) = check(beamtime.config(tmp_path, selection={"size_window_nm": [20, 84]}))
    assert (problem.severity, problem.place) == ("warning", "selection.size_window_nm")
    assert problem.message.startswith("[20, 84] reaches beyond sizing.range_nm, [25, 150]")


def test_a_fraction_that_given_members_do_not_know(beamtime, tmp_path):
    inference = {"members": [str(beamtime.members[0])]}
    selection = {"expected_single_fraction": 0.123}
    (problem,) = check(beamtime.config(tmp_path, inference=inference, selection=selection))
    assert (problem.severity, problem.place) == ("warning", "selection.expected_single_fraction")
    assert problem.message.startswith("0.123 has no effect")


def test_a_representation_that_the_starting_weights_do_not_have(beamtime, tmp_path):
    training = {"representation": {"scale": "linear"}, "initial": "shipped"}
    (problem,) = check(beamtime.config(tmp_path, training=training))
    assert (problem.severity, problem.place) == ("error", "training.representation")
    assert problem.message.endswith("or training.initial to random")


def test_stages_by_name_need_no_others(beamtime, tmp_path):
    named = {"checkpoint_every": 6, "ensemble": {"stages": [12]}}
    assert check(beamtime.config(tmp_path, training=named)) == []


YOLO = {"architecture": "yolov2", "width": 1 / 16, "representation": {"colours": "jet"}}


def test_boxes_outside_of_the_region(beamtime, tmp_path):
    rows = (beamtime.folder / "labels.csv").read_text().splitlines()
    boxes = ["5,1,30,20", "50,30,70,39"]  # the region is of rows 0 to 36 and columns 4 to 44
    told = [f"{row},{boxes[i == 7]}" for i, row in enumerate(rows[1:])]
    table = tmp_path / "boxes.csv"
    table.write_text("\n".join([f"{rows[0]},x_min,y_min,x_max,y_max", *told]))
    labels = {"file": str(table)}
    assert check(beamtime.config(tmp_path, labels=labels)) == []
    (problem,) = check(beamtime.config(tmp_path, labels=labels, training=YOLO))
    assert (problem.severity, problem.place) == ("error", "labels.file")
    assert problem.message.startswith("run r0001 index 7: the box from x 50, y 30 to x 70, y 39")
    assert "x 4 to 44, y 0 to 36 (1 such rows)" in problem.message


@pytest.mark.parametrize("key", ["inference.members", "training.initial"])
def test_a_package_that_is_not_installed(beamtime, tmp_path, monkeypatch, key):
    picture = Representation(colours="jet", size=(32, 32))
    member = Member(EfficientNet().eval(), picture)
    save_member(member, tmp_path / "m.safetensors")
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    seen = {"architecture": "efficientnet", "representation": picture.model_dump()}
    sections = {
        "inference.members": {"inference": {"members": [str(tmp_path / "m.safetensors")]}},
        "training.initial": {"training": {**seen, "initial": "imagenet"}},
    }
    (problem,) = check(beamtime.config(tmp_path, **sections[key]))
    assert (problem.severity, problem.place) == ("error", key)
    assert problem.message.endswith("install spidask[transfer]")
