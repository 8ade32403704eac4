import base64
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest

from spidask.config import Representation
from spidask.metrics import precision_recall
from spidask.networks.compact import Compact
from spidask.networks.member import Member
from spidask.reporting.figures import (
    MOST_POINTS,
    draw_curve,
    draw_hit_rates,
    draw_powder,
    draw_scores,
    draw_sizes,
    draw_training,
)
from spidask.reporting.patterns import Powder
from spidask.selection import count_reasons

NAN = np.nan
WINDOW, TRIED = (55.0, 84.0), (25.0, 150.0)


def svg(picture):
    kind, data = picture.source.split(",")
    assert kind == "data:image/svg+xml;base64"
    text = base64.b64decode(data).decode()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    return text


def without_hits(selection):
    return selection.assign(
        hit=selection["hit"] & False,
        diameter=selection["diameter"] * NAN,
        scores=selection["scores"] * NAN,
    )


def test_sizes(beamtime):
    picture = draw_sizes(beamtime.selection, WINDOW, TRIED)
    assert "from 55 to 84 nm; median of the hits 70.0 nm" in picture.alt
    assert svg(picture)


def test_scores_with_thresholds(beamtime):
    picture = draw_scores(beamtime.selection, [0.5, 0.6])
    assert picture.alt == "Score histograms of 2 members; their thresholds are 0.50, 0.60"
    assert "thresholds are not known" in draw_scores(beamtime.selection, []).alt


def test_nothing_is_drawn_of_nothing(beamtime):
    nothing = without_hits(beamtime.selection)
    assert draw_sizes(nothing, WINDOW, TRIED) is None
    assert draw_scores(nothing, [0.5, 0.6]) is None
    assert draw_scores(nothing.isel(member=slice(0)), []) is None
    assert draw_powder({}) is None
    assert draw_powder({"selected": Powder(1, np.zeros((2, 2)), (0, 0))}) is None


def test_hit_rates(beamtime):
    picture = draw_hit_rates(count_reasons(beamtime.selection)["runs"])
    # 8 of 14 readable frames.
    assert picture.alt == "Hit rate of 2 runs, 57.1 % of all readable frames"
    dead = {"frames": 3, "unreadable": 3, "miss": 0, "selected": 0}
    assert draw_hit_rates({"r1": dead}) is None
    assert draw_hit_rates({"r1": dead, "r2": dead | {"unreadable": 1, "miss": 1}}) is not None


def test_a_thousand_runs_stay_small():
    run = {"frames": 1000, "unreadable": 0, "miss": 990, "selected": 1}
    picture = draw_hit_rates({f"r{number:04}": run for number in range(1000)})
    assert len(picture.source) < 1_000_000


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]])
def test_training(seeds):
    iteration = np.arange(1, 2001)
    f1 = np.where(iteration % 50 == 0, iteration / 4000, NAN)
    curves = {"iteration": iteration, "loss": 1 / iteration, "validation_f1": f1}
    metrics = pd.concat([pd.DataFrame(curves).assign(seed=seed) for seed in seeds])
    stages = [{"iteration": 1000, "seed": seeds[-1]}, {"iteration": 1050, "seed": seeds[-1]}]
    members = [Member(Compact(), Representation(), provenance=stage) for stage in [*stages, {}]]
    picture = draw_training(metrics, members)
    assert picture.alt.endswith("the best F1 is 0.500")
    assert len(svg(picture)) < 200_000


def test_curve_of_many_frames_stays_small():
    random = np.random.default_rng(0)
    single = random.random(100_000) < 0.1
    curve = precision_recall(random.random(100_000), single)
    metrics = {"manual": 10, "frames": 100, "recall": 0.5, "precision": 0.25}
    picture = draw_curve(curve, metrics, 0.1)
    assert "average precision 0.100" in picture.alt
    assert "recall 0.500 and precision 0.250" in picture.alt
    assert len(svg(picture)) < 60 * MOST_POINTS


def test_curve_of_an_empty_selection():
    curve = precision_recall(np.array([0.9, 0.1]), np.array([True, False]))
    metrics = {"manual": 1, "frames": 2, "recall": 0.0, "precision": NAN}
    assert draw_curve(curve, metrics, 1.0).alt.endswith("nothing is selected")


def test_powder():
    mean = np.array([[1.0, NAN], [0.0, 100.0]])
    picture = draw_powder(
        {"selected": Powder(3, mean, (2, 5)), "rejected": Powder(4, mean, (2, 5))}
    )
    assert picture.alt.startswith("Mean pattern of 3 selected and 4 rejected on a logarithmic")
    assert svg(picture).count("<image") >= 2
