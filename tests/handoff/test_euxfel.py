import h5py
import numpy as np
import pytest

from spidask.config import Config
from spidask.handoff import export
from spidask.handoff.background import draw_misses

SOURCE = "SPB_DET_AGIPD1M-1/REDU/SPI_HITFINDER:output"


@pytest.fixture
def trains(selection):
    """Trains of three pulses that lie out of order; one frame has no pulseId."""
    order = np.tile([5, 0, 3, 1, 4, 2, 6], 2)
    ids = {
        "trainId": ("frame", 9000 + order // 3),
        "pulseId": ("frame", np.where(order == 4, -1, 8 * (order % 3))),
        "hit_score": ("frame", np.where(order == 1, np.nan, 10.7 * order).astype(np.float32)),
    }
    return selection.assign(ids)


def test_the_hits_of_each_train(trains, frames, config, tmp_path):
    config = Config.model_validate(config.model_dump() | {"handoff": {"misses": 1}})
    counts = export(trains, frames, config, tmp_path)
    assert (counts["listed"], counts["without_ids"]) == (12, 2)
    assert sorted(p.name for p in (tmp_path / "euxfel").iterdir()) == ["r0001", "r0002"]
    drawn = np.isin(np.arange(14), draw_misses(trains, config))
    with h5py.File(tmp_path / "euxfel" / "r0002" / "CORR-R0002-REDU00-S00000.h5") as file:
        assert file["INDEX/trainId"][()].tolist() == [9000, 9001, 9002]
        index = file[f"INDEX/{SOURCE}/data"]
        assert index["first"][()].tolist() == [0, 3, 5]
        assert index["count"][()].tolist() == [3, 2, 1]
        data = file[f"INSTRUMENT/{SOURCE}/data"]
        assert data["trainId"][()].tolist() == [9000, 9000, 9000, 9001, 9001, 9002]
        assert data["pulseId"][()].tolist() == [0, 8, 16, 0, 16, 0]
        rows = 7 + np.array([1, 3, 5, 2, 0, 6])
        assert data["hitFlag"][()].tolist() == trains["hit"].values[rows].tolist()
        assert data["selectedFlag"][()].tolist() == trains["selected"].values[rows].tolist()
        assert data["missFlag"][()].tolist() == drawn[rows].tolist()
        assert data["dataFlag"][()].tolist() == (trains["hit"].values | drawn)[rows].tolist()
        assert data["hitscore"][()].tolist() == [0, 0, 21, 32, 53, 64]
        assert {data[name].dtype for name in ("hitFlag", "selectedFlag")} == {np.dtype("u1")}


def test_extra_data_reads_the_lists(trains, frames, config, tmp_path):
    extra_data = pytest.importorskip("extra_data")
    export(trains, frames, config, tmp_path)
    run = extra_data.RunDirectory(tmp_path / "euxfel" / "r0001")
    assert run.train_ids == [9000, 9001, 9002]
    assert run.instrument_sources == {SOURCE}
    flags = run[SOURCE, "data.hitFlag"]
    assert flags.data_counts(labelled=False).tolist() == [3, 2, 1]
    hits = flags.ndarray().astype(bool)
    ids = [run[SOURCE, f"data.{name}"].ndarray()[hits] for name in ("trainId", "pulseId")]
    here = trains.isel(frame=slice(0, 7))
    here = here.isel(frame=here["hit"].values & (here["pulseId"].values >= 0))
    expected = np.stack([here["trainId"].values, here["pulseId"].values], 1).tolist()
    assert sorted(np.stack(ids, 1).tolist()) == sorted(expected)


def test_other_runs_have_no_such_lists(selection, trains, frames, config, tmp_path):
    export(trains, frames, config, tmp_path)
    counts = export(selection, frames, config, tmp_path)  # trainId alone
    assert "listed" not in counts
    assert not (tmp_path / "euxfel").exists()
