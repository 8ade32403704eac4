import h5py
import numpy as np
import pytest

from spidask.config import Config
from spidask.handoff import export, needs_frames
from spidask.handoff.background import background_of_hits, draw_misses
from spidask.selection import select
from tests.handoff.conftest import HITS, SELECTED, X, Y, region_of

MISSES = [(run, index) for run in (0, 1) for index in (0, 3, 6)]


def with_handoff(config, **settings):
    return Config.model_validate(config.model_dump() | {"handoff": settings})


def missing_in(photons, masks, run, index):
    """Photons of a frame as float, NaN where its run's mask or saturation hides them."""
    frame = photons[run, index].astype(float)
    frame[(masks[run] == 0) | (frame >= 20)] = np.nan
    return frame[Y, X]


def test_the_mean_of_misses_by_run(selection, frames, config, photons, masks, tmp_path):
    export(selection, frames, with_handoff(config, intensity_bins=1), tmp_path)
    with h5py.File(tmp_path / "dragonfly" / "background.h5") as file:
        assert file["run"].asstr()[()].tolist() == ["r0001", "r0002"]
        assert file["frames"][()].tolist() == [[3], [3]]
        for run in (0, 1):
            whole = [missing_in(photons, masks, run, i) for i in (0, 3, 6)]
            np.testing.assert_allclose(file["mean"][run, 0], np.mean(whole, axis=0), rtol=1e-6)


def test_the_mean_of_misses_by_intensity(selection, frames, config, photons, masks, tmp_path):
    export(selection, frames, with_handoff(config, intensity_bins=2), tmp_path)
    whole = {place: missing_in(photons, masks, *place) for place in MISSES}
    counts = {place: np.nansum(whole[place]) for place in MISSES}
    middle = np.median(list(counts.values()))
    with h5py.File(tmp_path / "dragonfly" / "background.h5") as file:
        assert file.attrs["intensity"] == "photon_count"
        edges = [min(counts.values()), middle, max(counts.values())]
        np.testing.assert_allclose(file["edges"], edges)
        for run in (0, 1):
            for number, bright in enumerate((False, True)):
                here = [p for p in MISSES if p[0] == run and (counts[p] >= middle) == bright]
                assert file["frames"][run, number] == len(here)
                expected = np.mean([whole[p] for p in here], axis=0) if here else np.nan
                np.testing.assert_allclose(file["mean"][run, number], expected, rtol=1e-6)


def test_the_pulse_energy_goes_first(selection, frames, config, tmp_path):
    energy = np.where(selection["index"].values == 3, 2.0, 1.0)
    selection = selection.assign(pulse_energy=("frame", energy))
    export(selection, frames, with_handoff(config, intensity_bins=2), tmp_path)
    with h5py.File(tmp_path / "dragonfly" / "background.h5") as file:
        assert file.attrs["intensity"] == "pulse_energy"
        assert file["edges"][()].tolist() == [1, 2]
        assert file["edges"].attrs["units"] == "mJ"
        assert file["frames"][()].tolist() == [[3], [3]]
        assert file.attrs["without_intensity"] == 0
    unknown = np.where(selection["index"].values == 0, np.nan, energy)
    selection = selection.assign(pulse_energy=("frame", unknown))
    assert needs_frames(selection, with_handoff(config, intensity_bins=2), tmp_path)
    export(selection, frames, with_handoff(config, intensity_bins=2), tmp_path)
    with h5py.File(tmp_path / "dragonfly" / "background.h5") as file:
        assert file.attrs["without_intensity"] == 2
        assert file["frames"][()].sum() == 6


def test_powders(selection, frames, config, photons, tmp_path):
    export(selection, frames, config, tmp_path)
    with h5py.File(tmp_path / "dragonfly" / "background.h5") as file:
        for name, places in (("powder_hits", HITS), ("powder_selected", SELECTED)):
            assert file[name][()].tolist() == region_of(photons, places).sum(axis=0).tolist()
            assert file[name].attrs["frames"] == len(places)


def test_powders_follow_a_new_selection(selection, labels, frames, config, photons, tmp_path):
    export(selection, frames, config, tmp_path)
    path = tmp_path / "dragonfly" / "background.h5"
    wider = config.selection.model_copy(update={"size_window_nm": (55.0, 95.0)})
    again = select(labels, [0.5], wider)
    assert not needs_frames(again, config, tmp_path)
    export(again, None, config, tmp_path)
    with h5py.File(path) as file:
        assert file["powder_selected"][()].tolist() == region_of(photons, HITS).sum(0).tolist()
    fewer = select(labels.assign(hit=labels["hit"] & (labels["run"] == 0)), [0.5], wider)
    export(fewer, frames, config, tmp_path)
    with h5py.File(path) as file:
        assert file["powder_hits"].attrs["frames"] == 4


def test_a_stated_number_of_misses_is_drawn(selection, frames, config, photons, masks, tmp_path):
    config = with_handoff(config, misses=2, intensity_bins=1)
    drawn = draw_misses(selection, config)
    counts = export(selection, frames, config, tmp_path)
    assert (counts["misses"], counts["misses_in_background"]) == (6, 4)
    runs, indices = selection["run"].values[drawn], selection["index"].values[drawn]
    assert runs.tolist() == [0, 0, 1, 1]
    assert not selection["hit"].values[drawn].any()
    with h5py.File(tmp_path / "dragonfly" / "background.h5") as file:
        whole = [missing_in(photons, masks, 1, i) for i in indices[2:]]
        np.testing.assert_allclose(file["mean"][1, 0], np.mean(whole, axis=0), rtol=1e-6)
    others = {
        tuple(draw_misses(selection, with_handoff(config, misses=2, seed=s))) for s in "123456"
    }
    assert len(others) > 1


def test_what_a_run_draws_does_not_depend_on_other_runs(selection, config):
    config = with_handoff(config, misses=2)
    alone = selection.isel(frame=selection["run"].values == 1)
    drawn = selection["index"].values[draw_misses(selection, config)[2:]]
    assert alone["index"].values[draw_misses(alone, config)].tolist() == drawn.tolist()


@pytest.mark.parametrize(
    "changes", [{"misses": 1}, {"seed": 3, "misses": 1}, {"intensity_bins": 1}]
)
def test_another_background_is_written_anew(selection, frames, config, tmp_path, changes):
    export(selection, frames, config, tmp_path)
    other = with_handoff(config, **changes)
    assert needs_frames(selection, other, tmp_path)
    assert export(selection, frames, other, tmp_path)["photons_written"] == 0
    assert not needs_frames(selection, other, tmp_path)


def test_no_misses(labels, frames, config, tmp_path):
    everything = select(labels.assign(hit=labels["readable"]), [0.5], config.selection)
    counts = export(everything, frames, config, tmp_path)
    assert (counts["misses"], counts["misses_in_background"]) == (0, 0)
    with h5py.File(tmp_path / "dragonfly" / "background.h5") as file:
        assert np.isnan(file["mean"]).all()
    with h5py.File(tmp_path / "dragonfly" / "detector.h5") as file:
        assert "background" not in file


def test_the_background_of_the_hits_is_weighted_with_them(
    labels, frames, config, photons, masks, tmp_path
):
    # Four hits in the first run, one in the second.
    hit = labels["hit"].values & ((labels["run"].values == 0) | (labels["index"].values == 1))
    selection = select(labels.assign(hit=("frame", hit)), [0.5], config.selection)
    export(selection, frames, config, tmp_path)

    def mean(run, misses):
        frames = [missing_in(photons, masks, run, i) for i in misses]
        return np.nansum(frames, axis=0) / np.isfinite(frames).sum(axis=0).clip(1)

    means = mean(0, (0, 3, 6)), mean(1, (0, 2, 3, 4, 5, 6))
    expected = (4 * means[0] + means[1]) / 5
    found = background_of_hits(selection.isel(frame=hit), tmp_path / "dragonfly").reshape(
        expected.shape
    )
    seen = np.ones((5, 7), bool)
    seen[1, 2] = seen[4, 6] = False  # masked in one run
    np.testing.assert_allclose(found[seen], expected[seen], rtol=1e-5)
    with h5py.File(tmp_path / "dragonfly" / "detector.h5") as file:
        np.testing.assert_array_equal(file["background"][()].reshape(5, 7), found)


def test_the_background_does_not_depend_on_tasks(selection, frames, config, tmp_path, monkeypatch):
    export(selection, frames, config, tmp_path / "one")
    monkeypatch.setattr("spidask.handoff.background.FRAMES_PER_TASK", 2)
    export(selection, frames, config, tmp_path / "many")
    found = []
    for name in ("one", "many"):
        with h5py.File(tmp_path / name / "dragonfly" / "background.h5") as file:
            found.append(file["mean"][()])
    np.testing.assert_array_equal(*found)
