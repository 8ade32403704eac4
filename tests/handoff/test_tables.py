import json

import numpy as np
import pytest
import xarray as xr

from spidask.config import Config
from spidask.handoff import export


@pytest.mark.parametrize("form", ["zarr", "netcdf"])
@pytest.mark.filterwarnings("error")
def test_the_selection_comes_back(selection, frames, config, tmp_path, form):
    config = Config.model_validate(config.model_dump() | {"handoff": {"tables": [form]}})
    export(selection, frames, config, tmp_path)
    if form == "zarr":
        again = xr.open_zarr(tmp_path / "selection.zarr", consolidated=False)
    else:
        again = xr.open_dataset(tmp_path / "selection.nc", engine="h5netcdf")
    again = again.load()
    xr.testing.assert_equal(again, selection)
    for name in selection.variables:
        if name not in ("run_name",):
            assert again[name].dtype == selection[name].dtype
    assert again["diameter"].attrs["units"] == "nm"
    assert again["score"].attrs["long_name"]
    assert Config.model_validate_json(again.attrs["settings"]) == config
    assert "xarray" in json.loads(again.attrs["versions"])
    other = {"zarr": "selection.nc", "netcdf": "selection.zarr"}[form]
    assert not (tmp_path / other).exists()


def test_no_hits_and_no_table_of_before(selection, frames, config, tmp_path):
    config = Config.model_validate(
        config.model_dump() | {"handoff": {"tables": ["zarr", "netcdf"]}}
    )
    empty = selection.isel(frame=slice(0))
    export(selection, frames, config, tmp_path)
    export(empty, frames, config, tmp_path)
    again = xr.open_zarr(tmp_path / "selection.zarr", consolidated=False).load()
    assert again.sizes["frame"] == 0
    config = Config.model_validate(config.model_dump() | {"handoff": {}})
    export(selection, frames, config, tmp_path)
    assert not (tmp_path / "selection.zarr").exists()
    assert not (tmp_path / "selection.nc").exists()
    np.testing.assert_array_equal(again["scores"].shape, (0, 1))
