"""The beam is found from the powder of hits."""

import h5py
import numpy as np
import pytest

from spidask.centre import Centre, find_centre
from spidask.errors import DataError

TRUE = (-4.0, 61.5)


@pytest.fixture
def rings(tmp_path):
    """Two runs of 80 frames of 70 x 120 pixels; every fourth shows rings about the beam."""
    random = np.random.default_rng(5)
    y, x = np.mgrid[0:70, 0:120]
    r = np.hypot(y - TRUE[0], x - TRUE[1])
    bright = 30 / (1 + (r / 10) ** 4) * (1.2 + np.cos(r / 3))
    for run in ("r1", "r2"):
        means = [bright if i % 4 == 0 else 0.002 * np.ones_like(r) for i in range(80)]
        with h5py.File(tmp_path / f"{run}.h5", "w") as file:
            file["data"] = random.poisson(means).astype("u2")
    return tmp_path


def config(beamtime, rings, y, x, **sections):
    given = {
        "runs": {"files": [f"{rings}/r*.h5"]},
        "geometry": {"beam_centre_y_px": y, "beam_centre_x_px": x},
        "preprocessing": {"region": {"y": [0, 30], "x": [30, 90]}},
    }
    return beamtime.config(rings / "out", **(given | sections))


def test_the_beam_is_found_and_its_distance_told(beamtime, rings):
    found = find_centre(config(beamtime, rings, -1.0, 57.0))
    assert np.allclose(found.found, TRUE, atol=0.2)
    assert found.configured == (-1.0, 57.0)
    assert found.n_hits == 40
    assert found.distance == pytest.approx(np.hypot(3.0, 4.5), abs=0.3)
    warning = found.lines()[-1]
    assert warning.startswith("warning: geometry: the configured beam centre is 5.")
    assert "set geometry.beam_centre_y_px=-4." in warning
    assert not (rings / "out").exists()


def test_the_region_holds_the_signal(beamtime, rings):
    y0, y1, x0, x1 = find_centre(config(beamtime, rings, *TRUE)).region
    # Between bright rings the mean falls below 0.05 photons for the first time at r = 44 px.
    assert y0 == 0
    assert 38 <= y1 <= 44
    assert x1 - x0 == pytest.approx(2 * y1 + 8, abs=3)


def test_a_region_of_one_run_does_not_matter(beamtime, rings):
    region = {"region": {"y": [0, 30], "x": [30, 90]}}
    per_run = {"r*": {"preprocessing": region}}
    found = find_centre(config(beamtime, rings, *TRUE, per_run=per_run))
    assert np.allclose(found.found, TRUE, atol=0.2)


def test_without_hits_there_is_no_centre(beamtime, rings):
    with pytest.raises(DataError, match=r"no hits .* lower hits.n_sigma"):
        find_centre(config(beamtime, rings, *TRUE, hits={"threshold": 1800.0}))


def test_a_centre_that_is_right_has_no_warning():
    lines = Centre((1.0, 2.0), (0.1, 0.1), (1.0, 3.5), (0, 9, 0, 8), 7).lines()
    assert lines == [
        "beam centre    y 1.00 +- 0.10, x 2.00 +- 0.10 px, from the powder of 7 hits",
        "configured     y 1.00, x 3.50 px, 1.50 px away",
        "region         {y: [0, 9], x: [0, 8]}",
    ]
