"""Boxes and losses of both networks, against slow loops written from Darknet's description."""

import math

import numpy as np
import pytest
import torch

from spidask.networks import yolov2, yolov3
from spidask.networks.boxes import find_anchors, overlap, suppress
from spidask.networks.picture import render
from tests.conftest import make_frames

NAN = float("nan")


def iou(a, b) -> float:
    """Of two boxes (x, y, w, h), from their edges."""
    wide = min(a[0] + a[2] / 2, b[0] + b[2] / 2) - max(a[0] - a[2] / 2, b[0] - b[2] / 2)
    high = min(a[1] + a[3] / 2, b[1] + b[3] / 2) - max(a[1] - a[3] / 2, b[1] - b[3] / 2)
    if wide <= 0 or high <= 0:
        return 0.0
    return wide * high / (a[2] * a[3] + b[2] * b[3] - wide * high)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def cross_entropy(x: float, target: float) -> float:
    return -target * math.log(sigmoid(x)) - (1 - target) * math.log(1 - sigmoid(x))


def best_anchor(box, sizes) -> int:
    shared = [iou((0, 0, *box[2:]), (0, 0, *size)) for size in sizes]
    return int(np.argmax(shared))


def off(cell, box, at, anchor) -> float:
    """Localization of one cell; anchor relative to the picture, at and box in cells and picture."""
    column, row, columns, rows = at
    centre = cross_entropy(cell[0], box[0] * columns - column)
    centre += cross_entropy(cell[1], box[1] * rows - row)
    extent = (cell[2] - math.log(box[2] / anchor[0])) ** 2
    extent += (cell[3] - math.log(box[3] / anchor[1])) ** 2
    return (2 - box[2] * box[3]) * (centre + extent / 2)


def slow_yolov2(output, truth, anchors, seen) -> dict[str, float]:
    n, _, rows, columns = output.shape
    cells = output.reshape(n, len(anchors), 6, rows, columns)
    sizes = [(w / columns, h / rows) for w, h in anchors]
    terms = {"objectness": 0.0, "localization": 0.0, "classification": 0.0}
    for picture, box in enumerate(truth):
        has = not math.isnan(box[0])
        mine = None
        if has:
            place = int(box[0] * columns), int(box[1] * rows)
            mine = (best_anchor(box, sizes), place[1], place[0])
        for a, (w, h) in enumerate(sizes):
            for row in range(rows):
                for column in range(columns):
                    cell = cells[picture, a, :, row, column].tolist()
                    x, y = (sigmoid(cell[0]) + column) / columns, (sigmoid(cell[1]) + row) / rows
                    predicted = (x, y, w * math.exp(cell[2]), h * math.exp(cell[3]))
                    shared = iou(predicted, box) if has else 0.0
                    if (a, row, column) == mine:
                        terms["objectness"] += 5 * cross_entropy(cell[4], shared)
                        at = (column, row, columns, rows)
                        terms["localization"] += off(cell, box, at, (w, h))
                        continue
                    if shared <= 0.6:
                        terms["objectness"] += cross_entropy(cell[4], 0.0)
                    if seen < 12_800:
                        drawn = cross_entropy(cell[0], 0.5) + cross_entropy(cell[1], 0.5)
                        drawn += (cell[2] ** 2 + cell[3] ** 2) / 2
                        terms["localization"] += 0.01 * drawn
    return {name: value / n for name, value in terms.items()}


def slow_yolov3(outputs, truth, anchors) -> dict[str, float]:
    n = len(truth)
    wide, high = outputs[0].shape[3] * 32, outputs[0].shape[2] * 32
    sizes = [(w / wide, h / high) for w, h in anchors]
    terms = {"objectness": 0.0, "localization": 0.0, "classification": 0.0}
    for number, output in enumerate(outputs):
        rows, columns = output.shape[2:]
        cells = output.reshape(n, 3, 6, rows, columns)
        for picture, box in enumerate(truth):
            has = not math.isnan(box[0])
            best = best_anchor(box, sizes) if has else None
            for own in range(3):
                anchor = 6 - 3 * number + own
                for row in range(rows):
                    for column in range(columns):
                        cell = cells[picture, own, :, row, column].tolist()
                        x = (sigmoid(cell[0]) + column) / columns
                        y = (sigmoid(cell[1]) + row) / rows
                        w, h = sizes[anchor]
                        predicted = (x, y, w * math.exp(cell[2]), h * math.exp(cell[3]))
                        here = has and (int(box[0] * columns), int(box[1] * rows)) == (column, row)
                        if here and anchor == best:
                            terms["objectness"] += cross_entropy(cell[4], 1.0)
                            terms["classification"] += cross_entropy(cell[5], 1.0)
                            at = (column, row, columns, rows)
                            terms["localization"] += off(cell, box, at, (w, h))
                        elif not has or iou(predicted, box) <= 0.5:
                            terms["objectness"] += cross_entropy(cell[4], 0.0)
    return {name: value / n for name, value in terms.items()}


TRUTH = [
    [0.4, 0.6, 0.5, 0.3],
    [NAN] * 4,
    [0.95, 0.05, 0.2, 0.9],
    [0.3, 0.3, 0.05, 0.06],
    [0.5, 0.5, 0.9, 0.9],
]


def draw(*shape: int, seed: int) -> torch.Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.normal(0, 1, shape)).requires_grad_(True)


def gradient_by_differences(function, values: torch.Tensor, place: tuple[int, ...]) -> float:
    # The overlap that objectness is held against is not differentiated, so each term by itself.
    step, found = 1e-5, []
    term = {4: "objectness", 5: "classification"}.get(place[1] % 6, "localization")
    for sign in (1, -1):
        moved = values.detach().numpy().copy()
        moved[place] += sign * step
        found.append(function(moved)[term])
    return (found[0] - found[1]) / (2 * step)


@pytest.mark.parametrize("seen", [0, 20_000])
def test_the_loss_of_yolov2_is_that_of_the_slow_loop(seen):
    output, anchors = draw(5, 30, 3, 4, seed=1), np.array(yolov2.ANCHORS) / 3
    truth = torch.tensor(TRUTH, dtype=torch.float64)
    found = yolov2.loss(output, truth, torch.from_numpy(anchors), seen)
    expected = slow_yolov2(output.detach().numpy(), TRUTH, anchors, seen)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected)
    sum(found.values()).backward()
    # Every number of a cell that stands for a box, and of one that is empty.
    places = [(0, 6 * a + i, row, 1) for a in range(5) for i in range(6) for row in (0, 1)]
    for place in places:
        expected_gradient = gradient_by_differences(
            lambda moved: slow_yolov2(moved, TRUTH, anchors, seen), output, place
        )
        assert output.grad[place].item() == pytest.approx(expected_gradient, abs=1e-6), place


def test_the_loss_of_yolov3_is_that_of_the_slow_loop():
    shapes = [(5, 18, 2, 3), (5, 18, 4, 6), (5, 18, 8, 12)]
    outputs = [draw(*shape, seed=number) for number, shape in enumerate(shapes)]
    anchors = np.array(yolov3.ANCHORS) / 3
    truth = torch.tensor(TRUTH, dtype=torch.float64)
    found = yolov3.loss(outputs, truth, torch.from_numpy(anchors))
    arrays = [output.detach().numpy() for output in outputs]
    expected = slow_yolov3(arrays, TRUTH, anchors)
    assert expected["classification"] > 0
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected)
    sum(found.values()).backward()
    for number, output in enumerate(outputs):
        n_rows, n_columns = output.shape[2:]
        here = [(p, int(TRUTH[p][1] * n_rows), int(TRUTH[p][0] * n_columns)) for p in (0, 3, 4)]
        for place in [(p, channel, y, x) for p, y, x in here for channel in range(18)]:
            expected_gradient = gradient_by_differences(
                lambda moved, number=number: slow_yolov3(
                    [moved if i == number else array for i, array in enumerate(arrays)],
                    TRUTH,
                    anchors,
                ),
                output,
                place,
            )
            assert output.grad[place].item() == pytest.approx(expected_gradient, abs=1e-6)


def test_boxes_of_yolov2_come_back_from_what_encodes_them():
    anchors, columns, rows = torch.tensor(yolov2.ANCHORS), 13, 9
    output = torch.full((1, 30, rows, columns), -9.0)
    # Anchor 2, column 5, row 7: centre a quarter into the cell, twice as wide and half as high.
    cell = [math.log(0.25 / 0.75), math.log(0.25 / 0.75), math.log(2), math.log(0.5), 3.0, 0.0]
    output[0, 12:18, 7, 5] = torch.tensor(cell)
    boxes, scores = yolov2.decode(output, anchors)
    best = np.unravel_index(int(scores[0].argmax()), scores[0].shape)
    assert best == (2, 7, 5)
    width, height = yolov2.ANCHORS[2]
    expected = [5.25 / columns, 7.25 / rows, 2 * width / columns, 0.5 * height / rows]
    assert boxes[0][best].tolist() == pytest.approx(expected, rel=1e-5)
    assert scores[0][best].item() == pytest.approx(sigmoid(3.0))


def test_boxes_of_yolov3_come_back_from_what_encodes_them():
    outputs = [torch.full((1, 18, n, n), -9.0) for n in (13, 26, 52)]
    cell = [0.0, 0.0, math.log(1.5), 0.0, 2.0, 1.0]
    outputs[1][0, 6:12, 20, 3] = torch.tensor(cell)  # the second anchor of the middle output
    boxes, scores = yolov3.decode(outputs, torch.tensor(yolov3.ANCHORS))
    assert boxes.shape == (1, 3 * (13**2 + 26**2 + 52**2), 4)
    best = int(scores[0].argmax())
    width, height = yolov3.ANCHORS[4]
    expected = [3.5 / 26, 20.5 / 26, 1.5 * width / 416, height / 416]
    assert boxes[0, best].tolist() == pytest.approx(expected, rel=1e-5)
    assert scores[0, best].item() == pytest.approx(sigmoid(2.0) * sigmoid(1.0))


def test_overlaps_by_hand():
    box = torch.tensor([0.5, 0.5, 0.4, 0.2])
    others = torch.tensor([[0.5, 0.5, 0.4, 0.2], [0.7, 0.5, 0.4, 0.2], [0.9, 0.9, 0.1, 0.1]])
    assert overlap(box, others).tolist() == pytest.approx([1, 1 / 3, 0])
    assert overlap(box, torch.zeros(4)).item() == 0


def test_the_best_of_boxes_on_each_other_stays():
    boxes = torch.tensor(
        [[0.5, 0.5, 0.4, 0.4], [0.52, 0.5, 0.4, 0.4], [0.2, 0.2, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1]]
    )
    assert suppress(boxes, torch.tensor([0.8, 0.9, 0.3, 0.7])).tolist() == [1, 3, 2]
    assert suppress(boxes[:0], torch.zeros(0)).tolist() == []


def test_anchors_are_the_middles_of_clusters():
    random = np.random.default_rng(0)
    centres = np.array([[0.1, 0.1], [0.3, 0.6], [0.8, 0.4]])
    sizes = np.concatenate([c * random.uniform(0.95, 1.05, (200, 2)) for c in centres])
    found = find_anchors(sizes, 3, seed=2)
    np.testing.assert_allclose(found, centres, rtol=0.02)
    assert find_anchors(sizes[:1], 2).shape == (2, 2)


@pytest.mark.parametrize(("name", "n_iterations"), [("yolov2", 80), ("yolov3", 90)])
def test_a_narrow_network_learns_32_patterns_by_heart(name, n_iterations):
    frames, labels = make_frames(32, 3, 1.0)
    single = torch.tensor([label == "single" for label in labels])
    patterns = torch.from_numpy(frames.astype(np.float32))
    seen = render(patterns, (64, 96), colours="grey", scale="logarithmic").expand(-1, 3, -1, -1)
    truth = torch.full((32, 4), NAN)
    truth[single] = torch.tensor([0.5, 0.45, 0.6, 0.7])
    module = {"yolov2": yolov2, "yolov3": yolov3}[name]
    anchors = torch.tensor(module.ANCHORS) / 4
    torch.manual_seed(0)
    network = getattr(module, name)(1 / 16)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 0.1  # there are too few steps for Darknet's
    optimizer = torch.optim.SGD(network.parameters(), 0.02, momentum=0.9, weight_decay=0.0005)
    for iteration in range(n_iterations):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * min(1, (iteration + 1) / 20)
        optimizer.zero_grad()
        outputs = network(seen)
        terms = (
            yolov2.loss(outputs[0], truth, anchors, 20_000)
            if name == "yolov2"
            else yolov3.loss(outputs, truth, anchors)
        )
        sum(terms.values()).backward()
        optimizer.step()
    with torch.inference_mode():
        outputs = network.eval()(seen)
        if name == "yolov2":
            boxes, scores = yolov2.decode(outputs[0], anchors)
            boxes, scores = boxes.flatten(1, 3), scores.flatten(1)
        else:
            boxes, scores = yolov3.decode(outputs, anchors)
    best, place = scores.max(1)
    # F1 is 1, and the boxes are where they were said to be.
    assert ((best > 0.5) == single).all()
    found = boxes[torch.arange(32), place][single]
    assert overlap(found, truth[single]).min() > 0.8
