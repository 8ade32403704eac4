import json

import h5py
import numpy as np
import pytest
import zarr

from spidask.config import Config
from spidask.errors import ConfigError, DataError
from spidask.handoff import export, needs_frames
from spidask.io.beamtime import open_configured
from spidask.io.cxi import read_cxi
from spidask.io.runs import open_runs
from spidask.records import write_json
from tests.handoff.conftest import SELECTED

DETECTOR = "entry_1/instrument_1/detector_1"


def with_cxi(config, form, **changes):
    return Config.model_validate(config.model_dump() | {"handoff": {"cxi": form}} | changes)


def test_raw_frames_stay_where_they_are(selection, frames, config, photons, masks, tmp_path):
    config = with_cxi(config, "virtual")
    export(selection, frames, config, tmp_path)
    with h5py.File(tmp_path / "selection.cxi") as file:
        data = file[f"{DETECTOR}/data"]
        assert data.is_virtual
        assert data.dtype == np.uint16
        assert data[()].tolist() == [photons[place].tolist() for place in SELECTED]
        assert data[3].tolist() == photons[SELECTED[3]].tolist()
        assert data.attrs["units"] == "ADU"
        assert file["entry_1/data_1/data"][1].tolist() == photons[SELECTED[1]].tolist()
        bad = np.where((masks[0] == 0) | (masks[1] == 0), 0x80, 0)
        assert file[f"{DETECTOR}/mask"][()].tolist() == bad.tolist()
        assert file["entry_1/image_1/image_center"][()].tolist() == [3.5, -1.0, 0.0]
        names = file["entry_1/experiment_identifier"].asstr()[()]
        assert names.tolist() == [f"r000{run + 1}:{i}" for run, i in SELECTED]
        calibration = json.loads(file["entry_1/process_1/calibration"].asstr()[()])
        assert calibration["r0002"]["saturation_adu"] == 20
        assert calibration["r0001"]["mask"] == config.runs.mask
    assert (tmp_path / "selection.cxi").stat().st_size < 100_000
    patterns = read_cxi(tmp_path / "selection.cxi")
    assert patterns["trainId"].values.tolist() == [1000 * run + i for run, i in SELECTED]
    assert np.isnan(patterns["patterns"].values[:, 2, 2]).all()


def test_the_virtual_file_is_a_run_like_any_other(selection, frames, config, photons, tmp_path):
    export(selection, frames, with_cxi(config, "virtual"), tmp_path)
    again = open_runs(str(tmp_path / "selection.cxi"))
    assert again["frames"].values.tolist() == [photons[place].tolist() for place in SELECTED]
    assert again["trainId"].values.tolist() == [1000 * run + i for run, i in SELECTED]


@pytest.mark.parametrize("each", [True, False])
def test_masks_inside_the_files_are_led_to(selection, config, photons, tmp_path, each):
    bits = np.random.default_rng(5).choice([0, 0, 0, 2**31, 4], (2, *photons.shape[1:]))
    bits = bits.astype(np.uint32) if each else bits[:, 0].astype(np.uint32)
    for code in range(2):
        (tmp_path / f"r000{code + 1}.h5").unlink()  # which this process has open
        with h5py.File(tmp_path / f"r000{code + 1}.h5", "w") as file:
            file["data"], file["scan/mask"] = photons[code], bits[code]
    runs = config.runs.model_dump() | {"mask": ":scan/mask", "mask_good": "zero"}
    settings = with_cxi(config, "virtual", runs=runs)
    frames = open_configured(settings)
    export(selection, frames, settings, tmp_path)
    with h5py.File(tmp_path / "selection.cxi") as file:
        mask = file[f"{DETECTOR}/mask"]
        if each:
            assert mask.is_virtual
            assert mask[()].tolist() == [bits[place].tolist() for place in SELECTED]
        else:
            assert (mask[()] == np.where(bits.any(axis=0), 0x80, 0)).all()
    if each:
        runs["mask_good"] = "nonzero"
        with pytest.raises(ConfigError, match=r"virtual leads to masks .* scan/mask.* set it to"):
            export(selection, frames, with_cxi(config, "virtual", runs=runs), tmp_path)


@pytest.mark.parametrize("form", ["copy", "virtual"])
def test_energies_of_each_frame_go_along(selection, frames, config, tmp_path, form):
    energies = 1700.0 + np.arange(selection.sizes["frame"])
    selection["photon_energy"] = ("frame", np.where(energies == 1702, np.nan, energies))
    selection["pulse_energy"] = ("frame", energies / 1000)
    export(selection, frames, with_cxi(config, form), tmp_path)
    again = open_runs(str(tmp_path / "selection.cxi"))
    chosen = selection["selected"].values
    for name in ("photon_energy", "pulse_energy"):
        np.testing.assert_array_equal(again[name], selection[name].values[chosen])


def test_a_file_that_is_gone_gives_unreadable_frames(selection, frames, config, tmp_path):
    export(selection, frames, with_cxi(config, "virtual"), tmp_path)
    (tmp_path / "r0001.h5").unlink()
    with h5py.File(tmp_path / "selection.cxi") as file:
        data = file[f"{DETECTOR}/data"][()]
    assert [bool((frame == 65535).all()) for frame in data] == [run == 0 for run, _ in SELECTED]


def test_a_virtual_file_needs_to_know_where_the_frames_are(selection, frames, config, tmp_path):
    config = with_cxi(config, "virtual")
    export(selection, frames, config, tmp_path)
    assert needs_frames(selection, config, tmp_path)
    with pytest.raises(DataError, match="a virtual dataset needs the runs"):
        export(selection, None, config, tmp_path)


def test_zarr_cannot_be_linked_to(selection, config, photons, tmp_path):
    for code, run in enumerate(("r0001", "r0002")):
        group = zarr.open_group(tmp_path / "runs" / run, mode="w")
        group.create_array("data", data=photons[code], chunks=(1, 6, 8))
    frames = open_runs(str(tmp_path / "runs" / "r*"), "data")
    export(selection, frames, with_cxi(config, "copy"), tmp_path)
    with pytest.raises(
        ConfigError, match=r"virtual is for frames .* in HDF5 files .*r0001 holds none of 6 x 8"
    ):
        export(selection, frames, with_cxi(config, "virtual"), tmp_path)


def test_modules_and_assembled_images_cannot_be_linked_to(
    selection, frames, config, photons, tmp_path
):
    virtual = with_cxi(config, "virtual")
    binned = {"preprocessing": {"bin": 2, "saturation_adu": 20}}
    with pytest.raises(ConfigError, match=r"handoff.cxi: virtual is of raw frames, and .* set it"):
        export(selection, frames, with_cxi(config, "virtual", **binned), tmp_path)
    (tmp_path / "modules").mkdir()
    for code, run in enumerate(("r0001", "r0002")):
        with h5py.File(tmp_path / "modules" / f"{run}.h5", "w") as file:
            file["data"] = photons[code].reshape(-1, 2, 3, 8)
    frames = open_runs(str(tmp_path / "modules" / "r*"), "data")
    export(selection, frames, with_cxi(config, "copy"), tmp_path)
    with pytest.raises(ConfigError, match=r"handoff.cxi: virtual .*r0001.h5 holds none of 6 x 8"):
        export(selection, frames, virtual, tmp_path)


def test_no_cxi(selection, frames, config, tmp_path):
    export(selection, frames, config, tmp_path)
    export(selection, frames, with_cxi(config, "none"), tmp_path)
    assert not (tmp_path / "selection.cxi").exists()


def test_provenance_and_labels_of_each_pattern(selection, frames, config, tmp_path):
    counts = {"read": {"frames": 14}, "classify": {"hits": 8}, "select": {"selected": 1}}
    write_json(tmp_path / "manifest.json", {"counts": counts})
    fluence = np.linspace(1, 2, 14, dtype=np.float32)
    selection = selection.assign(fluence=("frame", fluence))
    export(selection, frames, config, tmp_path)
    patterns = read_cxi(tmp_path / "selection.cxi")
    chosen = selection.isel(frame=selection["selected"].values)
    for name in ("fluence", "photon_count", "diameter"):
        assert patterns[name].values.tolist() == chosen[name].values.tolist()
    told = patterns.attrs["provenance"]
    assert json.loads(told["counts"]) == {k: counts[k] for k in ("read", "classify")}
    assert {"spidask", "h5py", "zarr"} <= json.loads(told["versions"]).keys()
