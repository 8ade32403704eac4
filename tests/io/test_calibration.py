import h5py
import numpy as np
import pytest

from spidask.config import parse_config
from spidask.errors import ConfigError, DataError
from spidask.io.calibration import check_calibration, load_calibration, recipe_of


@pytest.fixture
def folder(tmp_path):
    with h5py.File(tmp_path / "maps.h5", "w") as file:
        file["dark"] = np.full((3, 4, 6), 10.0)
        file["gain"] = np.full((4, 6), 2.0)
        file["gain"][0, 0] = 0
        file["gain"][0, 1] = np.nan
        file["mask_r1"] = np.ones((4, 6), "u1")
        file["mask_r1"][3, 5] = 0
        file["mask_r2"] = np.zeros((4, 6), "u1")
    return tmp_path


def config(folder, **preprocessing):
    settings = {
        "dark": f"{folder}/maps.h5:dark",
        "gain": f"{folder}/maps.h5:gain",
        "adu_per_photon": 50.0,
        **preprocessing,
    }
    runs = {"files": ["x.h5"], "mask": f"{folder}/maps.h5:mask_{{run}}"}
    changes = {"r9*": {"preprocessing": {"dark": f"{folder}/gone.h5:dark"}}}
    return parse_config(
        {"runs": runs, "output": "out", "preprocessing": settings, "per_run": changes}
    )


def test_maps_of_a_run_become_offset_and_divisor(folder):
    calibration = load_calibration(recipe_of(config(folder), "r1", (4, 6)))
    bad = np.zeros((4, 6), bool)
    bad[[0, 0, 3], [0, 1, 5]] = True
    np.testing.assert_array_equal(np.isnan(calibration.offset), bad)
    assert (calibration.offset[~bad] == 10).all()
    assert (calibration.divisor[~bad] == 100).all()
    assert calibration.offset.dtype == calibration.divisor.dtype == np.float32


def test_common_mode_reads_whole_asics(folder):
    settings = {"region": {"y": [1, 2], "x": [2, 5]}, "common_mode": {"asic": [1, 4], "max_adu": 9}}
    recipe = recipe_of(config(folder, **settings), "r1", (4, 6))
    assert (recipe.region, recipe.read) == ((1, 2, 2, 5), ((1, 2, 0, 6),))
    assert load_calibration(recipe).offset.shape == (1, 6)


def test_a_calibration_is_assembled_once(folder):
    recipe = recipe_of(config(folder), "r1", (4, 6))
    assert load_calibration(recipe) is load_calibration(recipe)


def test_a_region_beyond_the_frame_is_refused(folder):
    with pytest.raises(ConfigError, match=r"preprocessing.region.x: \[2, 7\] reaches beyond"):
        recipe_of(config(folder, region={"y": [0, 2], "x": [2, 7]}), "r1", (4, 6))


def test_a_region_without_a_usable_pixel_is_refused(folder):
    with pytest.raises(DataError, match=r"mask_r2: no usable pixel in rows 0 to 3 .*mask_good"):
        load_calibration(recipe_of(config(folder), "r2", (4, 6)))


def test_the_check_lists_every_problem(folder):
    assert list(check_calibration(recipe_of(config(folder), "r1", (4, 6)))) == []
    problems = list(check_calibration(recipe_of(config(folder), "r90", (4, 6))))
    assert len(problems) == 2
    assert "gone.h5: No such file" in problems[0]
    assert "has no dataset 'mask_r90'" in problems[1]
    assert len(list(check_calibration(recipe_of(config(folder), "r1", (5, 6))))) == 3
