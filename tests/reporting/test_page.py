import html
import json
import re

import numpy as np
import pandas as pd
import pytest

from spidask.comparison import compare
from spidask.config import Representation, parse_config
from spidask.errors import DataError
from spidask.io.tables import write_comparison_csv, write_selection_csv
from spidask.networks.compact import Compact
from spidask.networks.member import Member, save_member
from spidask.reporting import write_report
from spidask.schema import REASONS
from spidask.selection import select

NAN = np.nan


def report(beamtime, **changes):
    """The page as text, without the tags around numbers and with ordinary spaces."""
    given = {"selection": beamtime.selection, "config": beamtime.config} | changes
    path = write_report(given["selection"], beamtime.frames, given["config"], beamtime.output)
    assert path == beamtime.output / "report.html"
    return path.read_text(encoding="utf-8")


def words(page):
    text = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(text))


def train(beamtime):
    """What the stage `train` leaves behind."""
    for number, threshold in enumerate(beamtime.thresholds):
        provenance = {"iteration": 50 * (number + 1), "seed": 0}
        provenance |= {"validation_f1": 0.75, "validation_f1_together": 0.625}
        member = Member(Compact(), Representation(), threshold, provenance=provenance)
        save_member(member, beamtime.output / "members" / f"member{number}.safetensors")
    metrics = {"iteration": [50, 100], "loss": [0.5, 0.25], "validation_f1": [0.75, 0.8], "seed": 0}
    pd.DataFrame(metrics).to_csv(beamtime.output / "metrics.csv", index=False)


def test_numbers_of_the_small_beamtime(beamtime):
    train(beamtime)
    page = report(beamtime)
    text = words(page)
    assert "16 frames = 4 selected + 2 unreadable + 6 miss + 3 not_single + 1 size" in text
    assert "1 file cannot be opened" in text
    assert "r0003.h5" in text
    assert "1 of the frames, used in training or validation" in text
    assert "hit rate 57.1 %" in text
    assert "Purity 66.7 % (95 %: 9.43 % to 99.2 %, Clopper\u2013Pearson), counted" in text
    assert "2 of 3 selected frames" in text
    assert (
        "7 frames of the truth. Left out: 1 that had been trained on. Not in these runs: 1." in text
    )
    assert "Average precision 0.917" in text
    assert "F1 0.667 0.000" in text
    assert "accuracy 0.714 0.571" in text
    assert "single 3 2 0 0 0 1" in text
    assert "r0001 8 2 1 3 1 1" in text
    assert "0 0 50 0.750 0.625 0.500" in text
    assert "size_window_nm" in text
    assert "members were trained elsewhere" not in text


def test_one_file_with_every_image_in_it(beamtime):
    train(beamtime)
    page = report(beamtime)
    # 4 selected, 3 not single twice, 1 of another size, 6 misses; six diagrams.
    assert page.count("data:image/png;base64,") == 4 + 3 + 3 + 1 + 6
    assert page.count("data:image/svg+xml;base64,") == 6
    sources = re.findall(r'<img src="([^"]*)" alt="([^"]+)"', page)
    assert len(sources) == page.count("<img ")
    assert all(source.startswith("data:") for source, _ in sources)
    for outside in ("http:", "https:", "<script", "<link", "url(", "@import", 'src="/'):
        assert outside not in page
    assert not list(beamtime.output.glob("*.part"))


def test_same_input_same_numbers(beamtime):
    assert words(report(beamtime)) == words(report(beamtime))


def test_purity_without_truth_says_where_it_comes_from(beamtime):
    config = parse_config(beamtime.config.model_dump() | {"labels": {}})
    text = words(report(beamtime, config=config))
    assert "Purity 81.7 % (95 %: 33.3 % to 100.0 %), estimated without truth" in text
    assert "from calibrated probabilities" in text
    assert "There are no labels of frames that were not trained on" in text


def test_labels_out_of_training_judge_without_truth(beamtime, tmp_path):
    labels = {"file": str(tmp_path / "truth.csv")}
    config = parse_config(beamtime.config.model_dump() | {"labels": labels})
    text = words(report(beamtime, config=config))
    assert "7 frames of the labels that were kept out of training" in text
    assert "estimated without truth" in text


def test_an_early_exit_has_no_average_precision(beamtime):
    told = words(report(beamtime))
    assert "scores do not rank" not in told
    changes = beamtime.config.model_dump()
    changes["inference"] |= {"ensemble": "early_exit"}
    text = words(report(beamtime, config=parse_config(changes)))
    assert re.search(r"Average precision \S early exit: scores do not rank", text)
    # What does not hang on an order stays.
    f1 = re.search(r"F1 (\d\.\d+) precision", told)
    assert f1[0] in text


def relabelled(beamtime, **columns):
    """The selection of the same frames with other labels."""
    labels = beamtime.selection.drop_vars(["score", "selected", "reason", "trained_on"])
    for name, value in columns.items():
        labels[name] = (labels[name].dims, np.full_like(labels[name].values, value))
    return select(labels, beamtime.thresholds, beamtime.config.selection)


def test_nothing_selected(beamtime):
    text = words(report(beamtime, selection=relabelled(beamtime, diameter=20.0)))
    assert "16 frames = 0 selected + 2 unreadable + 6 miss + 3 not_single + 5 size" in text
    assert "Purity cannot be estimated" in text
    assert "No frame is selected." in text
    assert "Mean of 0 selected and of 8 rejected hits" in text


def test_no_scores(beamtime):
    text = words(report(beamtime, selection=relabelled(beamtime, scores=NAN)))
    assert "16 frames = 0 selected + 2 unreadable + 6 miss + 8 not_single + 0 size" in text
    assert "No hit has a score." in text


def test_no_hits(beamtime):
    nothing = relabelled(beamtime, hit=False, scores=NAN, diameter=NAN)
    text = words(report(beamtime, selection=nothing))
    assert "16 frames = 0 selected + 2 unreadable + 14 miss + 0 not_single + 0 size" in text
    for missing in ("No hit has a diameter.", "No hit has a score.", "There is no hit to sum."):
        assert missing in text
    assert "members were trained elsewhere" in text


def test_nothing_readable(beamtime):
    nothing = relabelled(beamtime, readable=False, hit=False, scores=NAN, diameter=NAN)
    assert set(nothing["reason"].values) == {REASONS.index("unreadable")}
    text = words(report(beamtime, selection=nothing))
    assert "16 frames = 0 selected + 16 unreadable" in text


def test_one_run(beamtime):
    one = beamtime.selection.isel(frame=slice(8), run_code=slice(1))
    text = words(report(beamtime, selection=one))
    assert "8 frames of 1 run, spidask" in text


def test_manifest_is_shown_where_there_is_one(beamtime):
    manifest = {"versions": {"spidask": "9.8.7"}, "counts": {"export": {"hits": 4321}}}
    (beamtime.output / "manifest.json").write_text(json.dumps(manifest))
    text = words(report(beamtime))
    assert "spidask 9.8.7" in text
    assert "hits: 4321" in text


def test_names_are_escaped(beamtime):
    names = np.array(["<b>r2</b>", "r0001"], object)
    odd = beamtime.selection.assign_coords(run_name=("run_code", names))
    beamtime.frames["run_name"] = ("run_code", np.array(["r0001", "<b>r2</b>"], object))
    assert "<b>r2" not in report(beamtime, selection=odd)


def test_a_selection_that_lacks_a_variable(beamtime):
    with pytest.raises(DataError, match="reason"):
        report(beamtime, selection=beamtime.selection.drop_vars("reason"))


def compare_with_all(beamtime):
    """A comparison with a classifier that takes every hit, and with the paper."""
    write_selection_csv(beamtime.selection, beamtime.output / "selection.csv")
    other = beamtime.output / "every hit"
    other.mkdir()
    everything = beamtime.selection.assign(
        selected=beamtime.selection["hit"] & beamtime.selection["readable"]
    )
    write_selection_csv(everything, other / "selection.csv")
    row = {"name": "<every> hit", "patterns_per_second": 12345.6, "device": "one core"}
    (other / "row.json").write_text(json.dumps(row))
    truth = beamtime.config.labels.truth
    return compare(beamtime.output, other, truth=truth, paper=True)


def test_a_comparison_is_a_section(beamtime):
    before = words(report(beamtime))
    assert "Comparison" not in before
    write_comparison_csv(compare_with_all(beamtime), beamtime.output / "comparison.csv")
    page = report(beamtime)
    text = words(page)
    assert "Purity Comparison Sizes" in text
    # Without a folder of members nothing counts as trained on: 8 frames of the truth are here.
    assert "judged on the same 8 frames" in text
    # 4 single hits; r0001 4 and 5, r0002 4 and 7 are selected, r0001 7 is missed.
    assert f"{beamtime.output} 4 4 3 0.600 0.750 0.750 0.750 0.750" in text
    # Every hit is 7 of the 8, all of the single ones.
    assert "<every> hit 4 7 4 0.571 0.625 0.571 1.000 0.727" in text
    assert "12 346 one core" in text
    assert "<every>" not in page
    assert "reject everything 4 0 0 0.000 0.500 \u2013 0.000 0.000 0.500" in text
    measured, published = text.split("published by Ignatenko and colleagues")
    assert "YOLOv2" not in measured
    assert "YOLOv2 colour linear 995 1 185 597 0.380 0.950 0.500 0.600 0.548" in published
    assert "EM based: the published counts do not fit 995 single hits" in published
    # No number of any row: no columns of contrast and parameters.
    table = re.search(r'<table id="compared">.*?</thead>', page, re.DOTALL).group()
    assert "contrast" not in table
    assert "parameters" not in table
    assert "innermost" not in text
    for outside in ("http:", "https:", "<script", "<link"):
        assert outside not in page


def test_fringes_of_the_contrast_are_counted(beamtime):
    table = compare_with_all(beamtime).assign(contrast=0.5)
    for fringes, told in ((1, "the innermost fringe."), (3, "the 3 innermost fringes.")):
        write_comparison_csv(table.assign(fringes=fringes), beamtime.output / "comparison.csv")
        assert f"over {told}" in words(report(beamtime))


def write_meters(beamtime, **changes):
    """What orientation determination leaves behind."""
    folder = beamtime.output / "orientation"
    folder.mkdir(exist_ok=True)
    values = {"mean": 0.75, "shells": [1.0, 0.5, None]}
    meters = {
        "made": "2026-11-25 18:00",
        "frames": 1234,
        "iterations": 24,
        "rms_change": [4.0, 8.0, 0.5],
        "voxel": 0.015,
        "shells": [13, 15],
        "weights": "each shell counts the same",
        "contrast": values | {"mean": 0.31},
        "symmetry": values | {"mean": 0.875},
        "model": None,
        "halves": None,
    }
    (folder / "meters.json").write_text(json.dumps(meters | changes))
    cut = np.exp(-np.hypot(*np.mgrid[-5:6, -5:6]))
    cut[0, 0] = NAN
    slices = {"recovered": cut} | ({"model": cut} if "model" in changes else {})
    np.savez_compressed(folder / "slices.npz", **slices)
    return values


def test_meters_of_orientation_determination_are_a_section(beamtime):
    assert "Orientation" not in words(report(beamtime))
    write_meters(beamtime)
    page = report(beamtime)
    text = words(page)
    assert "Purity Orientation Sizes" in text
    assert "3D intensity from 1 234 frames in 24 iterations" in text
    assert "changed it by 6.25 % of the largest change" in text
    assert "from 0.195 to 0.225 / nm" in text
    assert "correlation with itself, rotated as an icosahedron 0.875" in text
    assert "mean of a shell 0.310" in text
    assert "each shell counts the same" in text
    assert "with the model" not in text
    assert "between the two halves" not in text
    assert "not the frames that are selected now" in text
    assert 'alt="Cuts of the recovered intensity; with itself' in page


def test_a_model_and_halves_are_shown_where_there_are_any(beamtime):
    values = write_meters(beamtime, model={"mean": 0.625, "shells": [0.5, 0.75, 0.625]})
    write_meters(beamtime, model=values, halves=values | {"mean": 0.5})
    for folder in ("orientation", "dragonfly"):
        (beamtime.output / folder).mkdir(exist_ok=True)
        (beamtime.output / folder / "blacklist.txt").write_text("0\n1\n")
    page = report(beamtime)
    text = words(page)
    assert "correlation with the model 0.750" in text
    assert "correlation between the two halves 0.500" in text
    assert "not the frames" not in text
    assert 'alt="Cuts of the recovered and the model intensity; with the model 0.750' in page
