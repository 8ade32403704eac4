"""Every architecture as a member: built, trained for a moment, saved, loaded, scored."""

import csv
import functools
import itertools
import logging

import numpy as np
import pytest
import torch

from spidask.config import Representation, Training
from spidask.errors import DataError
from spidask.networks.architectures import ARCHITECTURES, new_network, rebuild
from spidask.networks.batches import Labelled, draw_batch, upload
from spidask.networks.boxes import overlap
from spidask.networks.checkpoints import list_checkpoints, load_checkpoint
from spidask.networks.classifier import Batch
from spidask.networks.cost import measure_cost
from spidask.networks.darknet import write_weights
from spidask.networks.learning import begin, train_rank
from spidask.networks.member import Member, load_member, logits, save_member
from tests.conftest import make_frames

PICTURE = Representation(colours="jet", size=(64, 96), maximum="own")
SETTINGS = {
    "compact": {"width": 0.5},
    "resnet18": {"width": 1 / 16},
    "efficientnet": {"representation": PICTURE},
    "yolov2": {"width": 1 / 16, "representation": PICTURE},
    "yolov3": {"width": 1 / 16, "representation": PICTURE},
}
WHOLE = np.array([[0.5, 0.5, 1, 1]], np.float32)


def settings_of(name: str, **changes) -> Training:
    short = {"iterations": 2, "checkpoint_every": 2, "batch_size": 8, "threads": 1}
    values = {"architecture": name, "initial": "random", **short, **SETTINGS[name], **changes}
    return Training(**values)


def make_labelled() -> Labelled:
    frames, labels = make_frames(24, 3, 1.0)
    classes = np.array([1 if label == "single" else 2 for label in labels])
    boxes = np.tile(np.float32([0.5, 0.45, 0.6, 0.7]), (24, 1))
    return Labelled(frames.astype(np.float32), classes, boxes)


def test_all_architectures_are_tried():
    assert set(ARCHITECTURES) == set(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_member_of_every_architecture_comes_back_as_it_was(name, tmp_path):
    labelled, settings = make_labelled(), settings_of(name, subdivisions=2)
    train_rank(
        functools.partial(begin, settings, labelled),
        functools.partial(draw_batch, upload(labelled, "cpu"), 0),
        labelled.patterns,
        lambda found: {"validation_f1": float(len(found))},
        settings,
        0,
        tmp_path,
    )
    checkpoint = load_checkpoint(list_checkpoints(tmp_path)[-1])
    assert checkpoint.network.name == name
    assert np.isfinite(checkpoint.validation).all()
    member = Member(checkpoint.network, settings.representation)
    save_member(member, tmp_path / "m.safetensors")
    again = load_member(tmp_path / "m.safetensors")
    found = logits(again.network, again.representation, labelled.patterns, 4)
    np.testing.assert_allclose(found, checkpoint.validation, rtol=1e-3, atol=1e-5)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    terms = ("objectness", "localization", "classification")
    for row in rows:
        if name.startswith("yolo"):
            total = sum(float(row[term]) for term in terms)
            assert total == pytest.approx(float(row["loss"]), abs=1e-5)
            assert float(row["localization"]) > 0
        else:
            assert [row[term] for term in terms] == [""] * 3


def test_an_unknown_architecture_is_refused():
    with pytest.raises(DataError, match="architecture 'vgg' is not known; known: compact"):
        rebuild("vgg", {})


@pytest.mark.parametrize("name", ["yolov2", "yolov3"])
def test_one_channel_stands_for_three_alike(name):
    torch.manual_seed(0)
    network = new_network(settings_of(name), WHOLE, (36, 40)).eval()
    picture = torch.rand(2, 1, 64, 96)
    for a, b in zip(network(picture), network(picture.expand(-1, 3, -1, -1)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["yolov2", "yolov3"])
def test_log_odds_are_those_of_the_best_box(name):
    torch.manual_seed(1)
    network = new_network(settings_of(name), WHOLE, (36, 40)).eval()
    with torch.inference_mode():
        outputs = network(torch.rand(4, 3, 64, 96))
        boxes, scores = network.decode(outputs)
        found = torch.sigmoid(network.log_odds(outputs))
    np.testing.assert_allclose(found, scores.amax(1), rtol=1e-5)
    detected = network.detect(outputs, float(scores.amax(1).min()))
    for (kept, best), all_boxes, all_scores in zip(detected, boxes, scores, strict=True):
        assert float(best[0]) == float(all_scores.max())
        torch.testing.assert_close(kept[0], all_boxes[all_scores.argmax()])
        for number in range(1, len(kept)):
            assert float(overlap(kept[number], kept[:number]).max()) <= 0.45


def test_log_odds_of_certain_boxes_are_finite():
    network = new_network(settings_of("yolov3"), WHOLE, (36, 40))
    outputs = [torch.full((1, 18, n, n), 200.0) for n in (2, 4, 8)]
    assert 10 < float(network.log_odds(outputs)) < 100


@pytest.mark.parametrize("name", ["yolov2", "yolov3"])
def test_boxes_count_for_single_hits_alone(name):
    network = new_network(settings_of(name), WHOLE, (36, 40))
    patterns = torch.from_numpy(make_labelled().patterns[:2])
    with torch.inference_mode():
        outputs = network(*network.see(patterns, PICTURE))
    losses = []
    for code in (1, 2, 3):
        boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5]] * 2)
        batch = Batch(patterns, torch.tensor([code, code]), boxes)
        losses.append(float(sum(network.losses(outputs, batch, PICTURE, 20_000).values())))
    assert losses[1] == losses[2] < losses[0]


def test_anchors_are_those_of_the_boxes_on_the_picture():
    # Regions of 36 x 40 become a figure of 279 x 309, and 64 x 70 of the picture's 64 x 96.
    boxes = np.repeat(np.float32([[0.5, 0.5, 0.5, 0.25]]), 20, 0)
    network = new_network(settings_of("yolov3"), boxes, (36, 40))
    np.testing.assert_allclose(network.anchors, [[35, 16]] * 9, rtol=0.02)
    cells = new_network(settings_of("yolov2"), boxes, (36, 40))
    np.testing.assert_allclose(cells.anchors, [[35 / 32, 16 / 32]] * 5, rtol=0.02)


def test_weights_of_darknet_begin_a_network(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    torch.manual_seed(3)
    source = new_network(settings_of("yolov2"), WHOLE, (36, 40))
    path = tmp_path / "darknet19_448.conv.23"
    write_weights(source.darknet, path)
    network = begin(settings_of("yolov2", initial=str(path)), make_labelled())
    pairs = zip(source.darknet.parameters(), network.darknet.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert f"{path} fills 23 of 23 convolutions" in caplog.messages


def test_imagenet_weights_are_other_than_random_ones():
    first, second = (
        new_network(settings_of("efficientnet", initial=initial), None, (36, 40))
        for initial in ("imagenet", "imagenet")
    )
    states = [n.network._conv_head.weight for n in (first, second)]
    assert torch.equal(*states)
    fresh = new_network(settings_of("efficientnet"), None, (36, 40)).network._conv_head.weight
    assert not torch.allclose(states[0], fresh, atol=0.01)


def test_costs_are_those_counted_by_hand():
    network = new_network(Training(initial="random"), None, (123, 240))
    cost = measure_cost(network, Representation(), (123, 240))
    assert cost.n_parameters == 127_960
    assert cost.gflop == pytest.approx(0.1005, abs=1e-4)
    picture = Representation(colours="jet", size=(416, 416))
    full = Training(architecture="yolov2", initial="random", representation=picture)
    cost = measure_cost(new_network(full, WHOLE, (123, 240)), picture, (123, 240))
    # The layers of yolov2-voc.cfg: edge of the output, input and output channels, filter.
    layers = [(416, 3, 32, 3), (208, 32, 64, 3)]
    layers += [(104, 64, 128, 3), (104, 128, 64, 1), (104, 64, 128, 3)]
    layers += [(52, 128, 256, 3), (52, 256, 128, 1), (52, 128, 256, 3)]
    layers += [(26, a, b, k) for a, b, k in ((256, 512, 3), (512, 256, 1)) * 2] + [
        (26, 256, 512, 3)
    ]
    layers += [(13, a, b, k) for a, b, k in ((512, 1024, 3), (1024, 512, 1)) * 2]
    layers += [(13, 512, 1024, 3), (13, 1024, 1024, 3), (13, 1024, 1024, 3), (26, 512, 64, 1)]
    layers += [(13, 1280, 1024, 3), (13, 1024, 30, 1)]
    # The picture is a product with a matrix from each side, in three colours.
    rendered = 3 * (213 * 123 * 240 + 213 * 240 * 416)
    expected = 2 * (rendered + sum(n * n * a * b * k * k for n, a, b, k in layers)) / 1e9
    assert cost.gflop == pytest.approx(expected, rel=1e-9)


def test_the_gradient_of_one_channel_is_that_of_three():
    torch.manual_seed(0)
    grey = Representation(colours="grey", size=(64, 96))
    network = new_network(settings_of("yolov2", representation=grey), WHOLE, (36, 40)).double()
    picture, gradients = torch.rand(2, 1, 64, 96, dtype=torch.float64), []
    for n_channels in (1, 3):
        network.zero_grad()
        (output,) = network(picture.expand(-1, n_channels, -1, -1))
        output.square().mean().backward()
        gradients.append(next(network.parameters()).grad.clone())
    for a, b in itertools.pairwise(gradients):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
