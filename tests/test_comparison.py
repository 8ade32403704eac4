"""One table for all selections, with numbers that a person can count."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from spidask.comparison import compare, judge_selections
from spidask.comparison.table import NO_F1, PUBLISHED, UNRANKED
from spidask.config import Representation
from spidask.errors import ConfigError, DataError
from spidask.frames.sizing import sphere_amplitude
from spidask.io import dragonfly, emc
from spidask.networks.compact import Compact
from spidask.networks.member import Member, save_member
from tests.test_metrics import PAPER

HEADER = "run,index,selected,reason,score,diameter_nm"


def write_selection(folder, rows, trained=None):
    (folder / "members").mkdir(parents=True)
    lines = [",".join(map(str, row if len(row) == 6 else (*row, 70.0))) for row in rows]
    (folder / "selection.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    if trained:
        (folder / "members" / "training.json").write_text(json.dumps({"frames": trained}))
    return folder


def write_truth(folder, *rows):
    path = folder / "truth.csv"
    path.write_text("run,index,label\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture
def two_selections(tmp_path):
    a = [
        ("r1", 0, 1, "", 0.4),
        ("r1", 1, 1, "", 0.3),
        ("r1", 2, 0, "not_single", -0.1),
        ("r2", 0, 0, "miss", ""),
        ("r2", 1, 1, "", 0.2),
    ]
    b = [
        ("r1", 0, 1, "", 0.1),
        ("r1", 1, 0, "not_single", -0.2),
        ("r1", 2, 0, "not_single", -0.1),
        ("r2", 0, 0, "miss", ""),
        ("r2", 1, 1, "", 0.2),
    ]
    return (
        write_selection(tmp_path / "a", a, trained={"r2": [1]}),
        write_selection(tmp_path / "b", b[::-1]),
    )


def test_selections_without_the_frames_of_training(two_selections):
    table = compare(*two_selections)
    assert table["frames"].tolist() == [4, 4]
    assert table["selected"].tolist() == [2, 1]
    assert table["in_first"].tolist() == [2, 1]
    assert table["iou_with_first"].tolist() == [1.0, 0.5]
    assert table["manual"].isna().all()
    assert table.index.tolist() == [str(folder) for folder in two_selections]
    assert table.attrs == {"frames_trained_on": 1, "truth_left_out": 0}


def test_one_selection_has_no_overlap(two_selections):
    table = compare(two_selections[1])
    assert table["selected"].tolist() == [2]
    assert table["iou_with_first"].isna().all()


def test_frames_that_one_selection_lacks_are_judged_in_none(two_selections, tmp_path):
    third = write_selection(tmp_path / "c", [("r1", 1, 1, "", 0.1), ("r1", 0, 0, "miss", "")])
    table = compare(*two_selections, third)
    assert table["frames"].tolist() == [2, 2, 2]
    assert table["selected"].tolist() == [2, 1, 1]
    # Of the first's r1,0 and r1,1 the second has one, the third the other.
    assert table["iou_with_first"].tolist() == [1.0, 0.5, 0.5]


def test_selections_on_one_truth(two_selections, tmp_path):
    rows = ["r1,0,single", "r1,1,multiple", "r1,2,background", "r2,0,single", "r2,1,single"]
    table = compare(*two_selections, truth=write_truth(tmp_path, *rows, "r9,0,single"))
    # r2,1 was trained on by a, r9 was never classified: four frames, two of them single hits.
    assert table.attrs == {"frames_trained_on": 1, "truth_left_out": 2}
    assert table["frames"].tolist() == [4, 4, 4]
    assert table["precision"].tolist()[:2] == [0.5, 1.0]
    assert table["recall"].tolist() == [0.5, 0.5, 0.0]
    assert table["accuracy"].tolist() == [0.5, 0.75, 0.5]
    # The missed single hit has no score and ranks last: 1/2 * 1 + 1/2 * 2/4.
    assert table["average_precision"].tolist() == [0.75, 0.75, 0.5]
    assert table.index.tolist()[2] == "reject everything"


def test_diameters_of_the_first_selection_choose_the_frames(tmp_path):
    sizes = [54.9, 55, 84, 84.1, ""]
    first = [("r1", i, 1, "", 0.5, size) for i, size in enumerate(sizes)]
    first = write_selection(tmp_path / "first", first)
    other = [("r1", i, i % 2, "", 0.5, 70) for i in range(5)]
    other = write_selection(tmp_path / "other", other)
    truth = write_truth(tmp_path, *(f"r1,{i},single" for i in range(5)))
    table = compare(first, other, truth=truth, within=(55, 84))
    assert table["frames"].tolist() == [2, 2, 2]
    assert table["recall"].tolist() == [1.0, 0.5, 0.0]
    assert table.attrs["truth_left_out"] == 3
    with pytest.raises(DataError, match=r"none of its 5 frames .* with 1 to 2 nm; label others"):
        compare(first, truth=truth, within=(1, 2))
    with pytest.raises(DataError, match="no frame was classified by all selections"):
        compare(first, within=(1, 2))
    with pytest.raises(ConfigError, match="within: 84 to 55 nm is no range"):
        compare(first, within=(84, 55))


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_counts_give_the_paper_s_row(tmp_path, name):
    selected, common = PAPER[name][:2]
    chosen = np.zeros(17932, int)
    chosen[:common] = 1
    chosen[995 : 995 + selected - common] = 1
    rows = [(f"r{i % 3}", i, n, "" if n else "size", n) for i, n in enumerate(chosen)]
    out = write_selection(tmp_path / "out", rows)
    labels = [f"r{i % 3},{i},{'single' if i < 995 else 'multiple'}" for i in range(17932)]
    table = compare(out, truth=write_truth(tmp_path, *labels), paper=True)
    measured, published = table.loc[str(out)], table.loc[name]
    assert (measured["source"], published["source"]) == ("measured", "published")
    for column in ("frames", "manual", "selected", "intersection"):
        assert measured[column] == published[column], column
    # Whole per cent, rounded either way; accuracy and one recall of the paper are off by one.
    for column, most in (("iou", 0.0055), ("precision", 0.0055), ("accuracy", 0.0105)):
        assert measured[column] == pytest.approx(published[column], abs=most), column
    recall_most = 0.0111 if name == "YOLOv2 grey log" else 0.0055
    assert measured["recall"] == pytest.approx(published["recall"], abs=recall_most)
    assert (
        measured["f1"]
        == pytest.approx(published["f1"])
        == pytest.approx(PAPER[name][-1] / 100, abs=6e-4)
    )


def test_published_rows_follow_and_the_one_of_em_has_no_f1(two_selections):
    table = compare(two_selections[0], paper=True)
    assert table.index[1:].tolist() == list(PUBLISHED)
    assert table["source"].tolist() == ["measured"] + ["published"] * 7
    em = table.loc["EM based"]
    assert (em["selected"], em["intersection"], em["note"]) == (1085, 574, NO_F1)
    assert pd.isna(em["f1"])
    assert pd.isna(em["manual"])
    assert table.loc["YOLOv2 colour linear", "f1"] == 2 * 597 / (1185 + 995)


def test_a_folder_tells_of_its_classifier(two_selections):
    one, other = two_selections
    row = {
        "name": "forest",
        "n_parameters": 12,
        "patterns_per_second": 1500.5,
        "device": "2 cores",
    }
    (other / "row.json").write_text(json.dumps(row))
    network = Compact()
    for number in range(2):
        save_member(Member(network, Representation()), one / "members" / f"m{number}.safetensors")
    table = compare(one, other)
    assert table.index.tolist() == [str(one), "forest"]
    assert table["n_parameters"].tolist() == [2 * sum(p.numel() for p in network.parameters()), 12]
    assert table["patterns_per_second"].tolist()[1] == 1500.5
    assert np.isnan(table["patterns_per_second"].iloc[0])
    assert table["device"].tolist() == ["", "2 cores"]
    # Two of one name are told apart by their folders, and a table itself names its folder.
    (one / "row.json").write_text(json.dumps({"name": "forest", "n_parameters": None}))
    table = compare(one, other / "selection.csv")
    assert table.index.tolist() == [f"forest ({one})", f"forest ({other / 'selection.csv'})"]
    (one / "row.json").write_text(json.dumps({"patterns_per_second": "fast"}))
    with pytest.raises(DataError, match=r"row.json: patterns_per_second is 'fast'; expected float"):
        compare(one)


def test_scores_that_do_not_rank_have_no_average_precision(two_selections, tmp_path):
    one, other = two_selections
    truth = write_truth(tmp_path, "r1,0,single", "r1,1,multiple", "r1,2,single")
    assert compare(one, truth=truth)["average_precision"].notna().all()
    manifest = {"config": {"inference": {"ensemble": "early_exit"}}}
    (one / "manifest.json").write_text(json.dumps(manifest))
    rule = write_selection(tmp_path / "rule", [("r1", i, int(i != 1), "", "") for i in range(3)])
    table = compare(one, other, rule, truth=truth)
    assert table["average_precision"].isna().tolist() == [True, False, True, False]
    assert table["note"].tolist() == [UNRANKED, "", "", ""]
    assert table["recall"].tolist() == [0.5, 0.5, 1.0, 0.0]
    judged = judge_selections(one, truth=truth)
    assert judged["average_precision"].isna().tolist() == [True, False]


SHAPE, BEAM, DISTANCE, WAVELENGTH = (50, 80), (-3.0, 39.5), 1733.0, 0.729e-9


def simulate(diameters, random):
    """Patterns of spheres, 4000 photons to 40 000 each, and q of each pixel in pixels."""
    y, x = np.indices(SHAPE) - np.array(BEAM)[:, None, None]
    hidden = np.zeros(SHAPE, bool)
    hidden[:, 60:63] = True
    detector = dragonfly.make_detector(y, x, DISTANCE, hidden)
    q = np.sqrt(detector.qx**2 + detector.qy**2 + detector.qz**2)
    unit = 2 * np.pi / WAVELENGTH / DISTANCE
    means = np.stack([sphere_amplitude(q * unit, d) ** 2 * detector.corr for d in diameters])
    bright = np.geomspace(4e3, 4e4, len(diameters))
    means *= (bright / means.sum(axis=1))[:, None]
    photons = random.poisson(means).astype(np.int32)
    photons[:, detector.mask == 2] = 0
    return photons, detector, q


@pytest.fixture
def with_photons(tmp_path):
    """Hits 0 to 7 of one size, 8 to 15 of many; the last frame has no pattern."""
    random = np.random.default_rng(3)
    diameters = np.append(np.full(8, 150.0), np.linspace(135, 170, 8))
    photons, detector, q = simulate(diameters, random)
    photons[2, : photons.shape[1] // 3] = emc.MISSING
    photons[2, detector.mask == 2] = 0
    out, folder = tmp_path / "out", tmp_path / "out" / "dragonfly"
    rows = [("r1", i, int(i < 8), "" if i < 8 else "not_single", 0.0) for i in range(17)]
    write_selection(out, rows)
    everything = [("r1", i, 1, "", 0.0) for i in range(17)]
    write_selection(out / "all", everything)
    write_selection(out / "none", [("r1", i, 0, "miss", "") for i in range(17)])
    folder.mkdir()
    order = random.permutation(16)  # photons.h5 has an order of its own
    emc.write_photons(folder / "photons.h5", [sp.csr_array(photons[order])], 16, photons.shape[1])
    dragonfly.write_detector(folder / "detector.h5", detector)
    index = pd.DataFrame({"run": "r1", "index": order})
    index.rename_axis("frame").to_csv(folder / "index.csv")
    return out, photons, detector, q


def dense_profile(photons, detector, q):
    """The mean profile, computed over again from dense patterns."""
    patterns = np.where((photons < 0) | (detector.mask == 2), np.nan, photons)
    ring = q.astype(int)
    total = np.nansum(patterns, axis=1, keepdims=True)
    exposure = np.where(
        np.isnan(patterns), 0, detector.corr / detector.corr[detector.mask < 2].max()
    )
    summed = [
        np.bincount(ring, v) for v in (np.nan_to_num(patterns / total).sum(0), exposure.sum(0))
    ]
    with np.errstate(invalid="ignore"):
        return summed[0] / summed[1]


def test_contrast_falls_with_the_spread_of_sizes(with_photons, monkeypatch):
    out, photons, detector, q = with_photons
    table = compare(out, out / "all", out / "none")
    assert table["note"].tolist()[1] == "1 of the selected frames lack a pattern for the contrast"
    assert np.isnan(table["contrast"].iloc[2])
    assert table["fringes"].tolist()[:2] == [1, 1]
    # A sphere's first minimum is at q d / 2 = 4.49, its next maximum at 5.76.
    t = (np.arange(int(q.max()) + 1) + 0.5) * 2 * np.pi / WAVELENGTH / DISTANCE * 75e-9
    first, between = (t > 3.5) & (t < 5.2), (t > 5.2) & (t < 7)
    for place, n in enumerate((8, 16)):
        profile = dense_profile(photons[:n], detector, q)
        low, high = profile[first].min(), profile[between].max()
        assert table["contrast"].iloc[place] == pytest.approx((high - low) / (high + low))
    assert table["contrast"].iloc[0] > 0.85 > 0.65 > table["contrast"].iloc[1]
    # Blocks of few patterns change nothing.
    monkeypatch.setattr("spidask.comparison.table.PIXELS_PER_BLOCK", 3 * len(q))
    pd.testing.assert_frame_equal(compare(out, out / "all", out / "none"), table)


def test_without_patterns_there_is_no_contrast(two_selections):
    table = compare(*two_selections)
    assert table["contrast"].isna().all()
    assert table["fringes"].isna().all()


def test_nothing_to_compare():
    with pytest.raises(ConfigError, match="give one or more output folders"):
        compare()


def test_a_truth_without_single_hits_has_no_average_precision(two_selections, tmp_path):
    truth = write_truth(tmp_path, "r1,0,multiple", "r1,2,background")
    table = compare(*two_selections, truth=truth)
    assert table["average_precision"].isna().all()
    assert table["accuracy"].tolist() == [0.5, 0.5, 1.0]
    assert table["precision"].tolist()[:2] == [0.0, 0.0]
    assert table["recall"].isna().all()


def test_a_truth_of_other_frames_is_refused(two_selections, tmp_path):
    truth = write_truth(tmp_path, "r2,1,single", "r9,0,single")
    with pytest.raises(DataError, match="none of its 2 frames was classified") as caught:
        compare(*two_selections, truth=truth)
    assert caught.value.truth_left_out == 2


def test_truth_by_event_ids_cannot_be_compared(two_selections, tmp_path):
    (tmp_path / "truth.csv").write_text("timestamp,label\n5,single\n")
    with pytest.raises(DataError, match="names frames by timestamp"):
        compare(*two_selections, truth=tmp_path / "truth.csv")
