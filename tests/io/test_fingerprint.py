"""Stale labels are named by what changed."""

import numpy as np
import pytest
import xarray as xr

from spidask.errors import StoreError
from spidask.io.fingerprint import check_fingerprint, read_fingerprint, write_fingerprint
from spidask.io.store import create_run

SETTINGS = {"hits.n_sigma": 4.0, "preprocessing.region.y": (0, 123), "members.0": "ab12"}


@pytest.fixture
def stored(tmp_path):
    """A store with two runs and the settings above, read back."""
    template = xr.Dataset({"index": ("frame", np.zeros(0, int))})
    write_fingerprint(tmp_path, SETTINGS)
    for name in ("r1", "r2"):
        create_run(tmp_path, name, template, 9, 4, [[f"{name}.h5", 100, 5, 9]])
    return read_fingerprint(tmp_path)


def present(**changes):
    files = {f"files.{r}": [[f"{r}.h5", 100, 5, 9]] for r in ("r1", "r2")}
    return {**SETTINGS, **files} | {key.replace("__", "."): v for key, v in changes.items()}


def test_the_same_settings_and_new_runs_are_accepted(stored, tmp_path):
    check_fingerprint(stored, present())
    check_fingerprint(stored, present(files__r3=[["r3.h5", 1, 2, 3]]))
    assert read_fingerprint(tmp_path / "other") == {}
    check_fingerprint({}, present())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"hits__n_sigma": 5.0}, r"hits\.n_sigma was 4\.0, is 5\.0\. Set it back, or choose"),
        ({"preprocessing__region__y": (0, 99)}, r"region\.y was \[0, 123\], is \[0, 99\]"),
        ({"sizing__particle": "sphere"}, r"sizing\.particle was null, is \"sphere\""),
        ({"files__r2": [["r2.h5", 130, 6, 12]]}, r"file r2\.h5 had 9 frames, has 12"),
        ({"files__r2": [["r2.h5", 100, 6, 9]]}, r"file r2\.h5 was changed"),
        (
            {"files__r2": [["r2.h5", 100, 5, 9], ["r2b.h5", 1, 1, 1]]},
            r"file r2b\.h5 came",
        ),
    ],
)
def test_what_changed_is_named(stored, changes, why):
    with pytest.raises(StoreError, match=f"stored labels are stale: .*{why}") as error:
        check_fingerprint(stored, present(**changes))
    assert list(error.value.changed) == [key.replace("__", ".") for key in changes]


def test_every_change_is_named_and_a_run_that_went(stored):
    now = present(hits__n_sigma=5, members__0="cd34")
    del now["files.r1"]
    with pytest.raises(StoreError) as error:
        check_fingerprint(stored, now)
    assert list(error.value.changed) == ["files.r1", "hits.n_sigma", "members.0"]
    assert "run 'r1' is no longer among runs.files" in str(error.value)
