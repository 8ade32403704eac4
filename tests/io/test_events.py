"""Small data of LCLS-1 and LCLS-2, rows in any order, joined to frames by time stamp."""

import h5py
import numpy as np
import pytest

from spidask.config import Events, Labels, parse_config
from spidask.errors import ConfigError, DataError
from spidask.io.beamtime import judge_ids, open_configured
from spidask.io.labels import read_labels
from spidask.io.runs import open_runs, select_run, take_frames

SECONDS = 1_500_000_000


def stamp(n):
    """Time stamp of event number n, at 120 Hz."""
    return ((SECONDS + n // 120) << 32) | (n % 120 * 8_333_333)


def write_frames(path, events, fiducials=None, energy=None):
    with h5py.File(path, "w") as file:
        file["entry_1/data_1/data"] = np.zeros((len(events), 2, 3), "u2")
        stamps = np.array([stamp(n) for n in events], np.int64)
        file["LCLS/machineTime"], file["LCLS/machineTimeNanoSeconds"] = (
            (stamps >> 32).astype("u4"),
            (stamps & 0xFFFFFFFF).astype("u4"),
        )
        if fiducials is not None:
            file["LCLS/fiducial"] = np.array(fiducials)
        if energy is not None:
            file["LCLS/photon_energy_eV"] = np.array(energy, float)
    return str(path)


def write_lcls1(path, events, energy, pulse):
    with h5py.File(path, "w") as file:
        file["event_time"] = np.array([stamp(n) for n in events], np.int64)
        file["fiducials"] = np.array(events) * 3
        file["ebeam/photon_energy"] = np.array(energy, "f4")
        file["gas_detector/f_11_ENRC"] = np.array(pulse, "f4")


def write_lcls2(path, events, energy, pulse):
    with h5py.File(path, "w") as file:
        file["timestamp"] = np.array([stamp(n) for n in events], np.uint64)
        file["ebeam/ebeamPhotonEnergy"] = np.array(energy)
        file["gmd/milliJoulesPerPulse"] = np.array(pulse)


@pytest.mark.parametrize("write", [write_lcls1, write_lcls2])
def test_rows_in_any_order_of_several_files_find_their_frames(tmp_path, write):
    rng = np.random.default_rng(1)
    frames = rng.permutation(500)[:60]
    path = write_frames(tmp_path / "r1.cxi", frames)
    events = rng.permutation(480)  # the last 20 events are in no file
    energy, pulse = 1700 + events / 100, events / 1000 + 0.5
    write(tmp_path / "smd1.h5", events[:300], energy[:300], pulse[:300])
    write(tmp_path / "smd2.h5", events[300:], energy[300:], pulse[300:])
    ds = open_runs(path, events=Events(files=[str(tmp_path / "smd*.h5")]), frames_per_block=7)
    known = frames < 480
    expected = np.where(known, np.float32(1700 + frames / 100), np.nan)
    tolerance = 1e-12 if write is write_lcls1 else 1e-7
    np.testing.assert_allclose(ds["photon_energy"].values, expected, rtol=tolerance)
    expected = np.where(known, frames / 1000 + 0.5, np.nan)
    np.testing.assert_allclose(ds["pulse_energy"].values, expected, rtol=1e-7)
    assert ds["n_events"].values.tolist() == known.astype(int).tolist()
    fiducials = frames * 3 if write is write_lcls1 else np.full(60, -1)
    assert ds["fiducial"].values.tolist() == np.where(known, fiducials, -1).tolist()
    part = take_frames(select_run(ds, "r1", slice(10, 40)), [20, 3])
    assert part["n_events"].values.tolist() == known[[30, 13]].astype(int).tolist()


def test_what_is_missing_comes_from_the_frames_own_file_or_is_nan(tmp_path):
    path = write_frames(tmp_path / "r1.cxi", range(6), energy=[1650, 1651, 1652, np.nan, 1654, 0])
    energy = [1700, np.nan, -99999, -99999, np.inf, 0]
    write_lcls2(tmp_path / "smd.h5", range(6), energy, np.array([-99999, 0, 1, 2, 3, 4]))
    ds = open_runs(path, events=Events(files=[str(tmp_path / "smd.h5")]))
    found = ds["photon_energy"].values
    np.testing.assert_array_equal(found, [1700, 1651, 1652, np.nan, 1654, np.nan])
    np.testing.assert_array_equal(ds["pulse_energy"].values, [np.nan, np.nan, 1, 2, 3, 4])
    assert ds["n_events"].values.tolist() == [1] * 6


def test_fiducials_tell_events_of_one_time_stamp_apart(tmp_path):
    path = write_frames(tmp_path / "r1.cxi", [5, 6, 7, 8], fiducials=[15, 18, 99, -1])
    write_lcls1(tmp_path / "a.h5", [6, 5, 7], [1701, 1702, 1703], [1, 2, 3])
    with h5py.File(tmp_path / "b.h5", "w") as file:  # the same instants, other fiducials
        file["event_time"] = np.array([stamp(5), stamp(8), stamp(8)])
        file["fiducials"] = [14, 1, 2]
        file["ebeam/photon_energy"] = [1801.0, 1802.0, 1803.0]
    ds = open_runs(path, events=Events(files=[f"{tmp_path}/[ab].h5"]))
    np.testing.assert_array_equal(ds["photon_energy"].values, [1702, 1701, np.nan, np.nan])
    assert ds["n_events"].values.tolist() == [1, 1, 0, 2]


def test_names_that_the_user_gives(tmp_path):
    path = write_frames(tmp_path / "r1.cxi", [1, 2])
    with h5py.File(tmp_path / "smd.h5", "w") as file:
        file["evr/when"] = np.array([stamp(2), stamp(1)])
        file["mono/ev"], file["joulemeter/mj"] = [1702.0, 1701.0], [0.2, 0.1]
    names = {"photon_energy": "mono/ev", "pulse_energy": "joulemeter/mj"}
    files = [str(tmp_path / "smd.h5")]
    ds = open_runs(path, events=Events(files=files, timestamp="evr/when", **names))
    assert ds["photon_energy"].values.tolist() == [1701, 1702]
    assert ds["pulse_energy"].values.tolist() == [0.1, 0.2]
    for settings, why in {
        (
            ("timestamp", "evr/no"),
        ): r"has no time stamps, evr/no; it holds evr, .*events\.timestamp",
        (): r"has no time stamps, timestamp, event_time or machineTime",
        (("timestamp", "evr/when"), ("pulse_energy", "no")): r"has no 'no' .*events\.pulse_energy",
    }.items():
        ds = open_runs(path, events=Events(files=files, **dict(settings)))
        with pytest.raises(DataError, match=why):
            ds["photon_energy"].values  # noqa: B018


def test_events_that_cannot_be_joined_are_refused(tmp_path):
    with h5py.File(tmp_path / "r1.cxi", "w") as file:
        file["entry_1/data_1/data"] = np.zeros((2, 2, 3))
    with pytest.raises(ConfigError, match="the frames have no time stamps to join by"):
        open_runs(str(tmp_path / "r1.cxi"), events=Events(files=["smd.h5"]))
    path = write_frames(tmp_path / "r2.cxi", [1])
    with pytest.raises(ConfigError, match=r"events\.files: '.*none\.h5' matches nothing"):
        open_runs(path, events=Events(files=[f"{tmp_path}/none.h5"]))
    (tmp_path / "smd.h5").write_bytes(b"no HDF5")
    ds = open_runs(path, events=Events(files=[f"{tmp_path}/smd.h5"]))
    with pytest.raises(DataError, match="holds no small data"):
        ds["n_events"].values  # noqa: B018


def test_absurd_lengths_are_refused_before_anything_is_read(tmp_path):
    path = write_frames(tmp_path / "r1.cxi", [1])
    with h5py.File(tmp_path / "smd.h5", "w") as file:
        file.create_dataset("timestamp", (10**12,), "i8", chunks=(1000,))
        file.create_dataset("kind", (10**12,), "i8", chunks=(1000,))
    ds = open_runs(path, events=Events(files=[f"{tmp_path}/smd.h5"]))
    with pytest.raises(DataError, match=r"smd\.h5: /timestamp claims the shape"):
        ds["n_events"].values  # noqa: B018
    with pytest.raises(DataError, match=r"smd\.h5: /kind claims the shape"):
        read_labels(f"{tmp_path}/smd.h5:kind", Labels(codes={0: "single"}))


def test_oddities_are_counted_and_cost_no_frame(tmp_path):
    write_frames(tmp_path / "r1.cxi", [1, 2, 2, 5, 4, 3])
    write_frames(tmp_path / "r2.cxi", [10, 11, 12, 13])
    write_lcls2(
        tmp_path / "smd.h5",
        [1, 2, 3, 4, 10, 11, 11, 12, 13],
        [1700, 1701, 1702, np.nan, 2500, 1700, 1700, 1710, 1300],
        np.ones(9),
    )
    values = {
        "runs": {"files": [f"{tmp_path}/r*.cxi"]},
        "events": {"files": [f"{tmp_path}/smd.h5"]},
        "output": str(tmp_path / "out"),
    }
    config = parse_config(values)
    ds = open_configured(config)
    assert ds.sizes["frame"] == 10
    assert judge_ids(ds, config) == {
        "repeated_ids": 2,
        "unordered_ids": 2,
        "without_event": 1,
        "with_several_events": 1,
        "without_photon_energy": 3,
        "implausible_photon_energy": 2,
    }
    # Where a run is meant to have another energy, it is not implausible.
    per_run = {"r2": {"geometry": {"photon_energy_ev": 1450}}}
    assert (
        judge_ids(ds, parse_config({**values, "per_run": per_run}))["implausible_photon_energy"]
        == 1
    )
