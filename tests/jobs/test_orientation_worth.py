"""The sets that are compared, and the table, without running Dragonfly."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jobs.orientation_worth import by_range, read_hits, thin
from spidask.config import parse_config
from spidask.errors import ConfigError

SELECTION = """run,index,selected,reason,score,diameter_nm
r1,0,0,miss,,
r1,1,1,,0.5,70
r1,2,1,,0.5,70
r2,0,1,,0.5,70
r2,1,0,not_single,-0.5,60
r2,2,0,size,0.5,90
r2,3,0,not_single,-0.2,83
r2,4,1,,0.1,70
"""
TRUTH = "run,index,label\nr2,0,single\nr2,1,multiple\nr2,2,single\nr2,3,single\nr1,2,single\n"


def config_of(folder: Path, **labels: str):
    return parse_config(
        {"runs": {"files": [str(folder / "r*.h5")]}, "output": str(folder), "labels": labels}
    )


def test_sets_hold_only_what_has_a_truth_and_was_not_trained_on(tmp_path):
    (tmp_path / "dragonfly").mkdir()
    (tmp_path / "members").mkdir()
    hits = pd.DataFrame({"run": ["r1"] * 2 + ["r2"] * 5, "index": [1, 2, 0, 1, 2, 3, 4]})
    hits.rename_axis("frame").to_csv(tmp_path / "dragonfly" / "index.csv")
    (tmp_path / "selection.csv").write_text(SELECTION)
    (tmp_path / "truth.csv").write_text(TRUTH)
    (tmp_path / "members" / "training.json").write_text(json.dumps({"frames": {"r1": [2]}}))
    found = read_hits(tmp_path, config_of(tmp_path, truth=str(tmp_path / "truth.csv")))
    # r1 2 was trained on; r1 1 and r2 4 have no truth; r2 2 is too large.
    expected = {
        "true single hits": [0, 0, 1, 0, 1, 1, 0],
        "our selection": [0, 0, 1, 0, 0, 0, 0],
        "size filter": [0, 0, 1, 1, 0, 1, 0],
    }
    for name, members in expected.items():
        assert found[name].astype(int).tolist() == members, name
    with pytest.raises(ConfigError, match=r"labels\.truth: not set"):
        read_hits(tmp_path, config_of(tmp_path))


def test_a_set_is_thinned_at_random_but_always_the_same():
    used = np.arange(100) % 2 == 0
    fewer = thin(used, 10)
    assert fewer.sum() == 10
    assert not fewer[~used].any()
    np.testing.assert_array_equal(fewer, thin(used, 10))
    np.testing.assert_array_equal(thin(used, None), used)


def test_means_of_ranges_of_shells():
    values = {"shells": [0.0, 0.2, 0.4, 0.6, 0.8, None]}
    meters = {"shells": [10, 15], "voxel": 0.01, "contrast": values, "symmetry": values}
    rows = by_range(meters | {"model": values})
    assert [round(row["q_from"], 3) for row in rows] == [0.1, 0.1, 0.12, 0.14]
    assert [round(row["q_to"], 3) for row in rows] == [0.15, 0.11, 0.13, 0.15]
    np.testing.assert_allclose([row["model"] for row in rows], [0.4, 0.1, 0.5, 0.8])
