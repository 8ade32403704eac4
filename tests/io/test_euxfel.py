"""Runs as extra-data's own examples write them, against what extra-data itself reads."""

import re
import shutil
import warnings

import h5py
import numpy as np
import pytest
from extra_data import RunDirectory, stack_detector_data
from extra_data.components import AGIPD1M, JUNGFRAU, LPD1M
from extra_data.tests.make_examples import write_file
from extra_data.tests.mockdata.detectors import AGIPDModule, DSSCModule, LPDModule
from extra_data.tests.mockdata.jungfrau import JUNGFRAUModule

from spidask.errors import DataError
from spidask.io import files
from spidask.io.euxfel import scan_run_folder
from spidask.io.files import find_runs
from spidask.io.layout import FileLayout
from spidask.io.runs import open_runs, select_run, take_frames

DETECTOR = "SPB_DET_AGIPD1M-1"
PER_TRAIN = 4


def write_run(folder, *, raw=True, version="1.0", modules=range(16), trains=3, kind=AGIPDModule):
    """A run with a different value in every pixel that tests look at."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "RAW" if raw else "CORR"
    for module in modules:
        path = folder / f"{prefix}-R0238-AGIPD{module:02}-S00000.h5"
        source = kind(f"{DETECTOR}/DET/{module}CH0", frames_per_train=PER_TRAIN, raw=raw)
        write_file(str(path), [source], ntrains=trains, chunksize=32, format_version=version)
        fill(path, module, raw)
    return folder


def fill(path, module, raw):
    random = np.random.default_rng(module)
    with h5py.File(path, "r+") as file:
        image = next(iter(file["INSTRUMENT"][DETECTOR]["DET"].values()))["image"]
        shape = image["data"].shape
        values = random.integers(0, 60000, shape) if raw else random.normal(0, 5, shape)
        image["data"][:] = values
        if not raw:
            image["mask"][:] = random.integers(0, 3, shape) * (random.random(shape) < 0.1)


def image_of(path):
    """The group of images in a module's file."""
    file = h5py.File(path, "r+")
    return file, next(iter(file["INSTRUMENT"][DETECTOR]["DET"].values()))["image"]


def index_of(file):
    return next(iter(file["INDEX"][DETECTOR]["DET"].values()))["image"]


def agipd(folder, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AGIPD1M(RunDirectory(str(folder), parallelize=False), **options)


def whole(ds):
    """All frames in memory, modules apart."""
    n, rows, columns = ds["frames"].shape
    return ds["frames"].values.reshape(n, -1, 512, columns) if rows == 8192 else ds["frames"].values


@pytest.mark.parametrize("version", ["0.5", "1.0", "1.1", "1.3"])
def test_raw_frames_equal_those_of_extra_data(tmp_path, version):
    folder = write_run(tmp_path / "r0238", version=version)
    ds = open_runs(str(folder))
    assert ds["frames"].shape == (12, 8192, 128)
    assert ds["frames"].dtype == np.uint16
    theirs = agipd(folder, raw=True).get_dask_array("image.data")
    np.testing.assert_array_equal(whole(ds), theirs.values[:, :, 0].swapaxes(0, 1))
    for name in ("trainId", "pulseId"):
        np.testing.assert_array_equal(
            ds[name], theirs.indexes["train_pulse"].get_level_values(name)
        )
    np.testing.assert_array_equal(ds["cellId"], np.tile(np.arange(PER_TRAIN), 3))
    assert ds["run_name"].values.tolist() == ["r0238"]


def test_corrected_frames_and_masks_equal_those_of_extra_data(tmp_path):
    folder = write_run(tmp_path / "r0001", raw=False)
    data = agipd(folder)
    plain = data.get_dask_array("image.data").values.swapaxes(0, 1)
    np.testing.assert_array_equal(
        whole(open_runs(str(folder), layout=FileLayout(mask_bits=0))), plain
    )
    for bits in (1, 2, 3):
        theirs = data.masked_data(mask_bits=bits).ndarray().swapaxes(0, 1)
        np.testing.assert_array_equal(
            whole(open_runs(str(folder), layout=FileLayout(mask_bits=bits))), theirs
        )
        assert np.isnan(theirs).any()
    everything = data.masked_data().ndarray().swapaxes(0, 1)
    np.testing.assert_array_equal(whole(open_runs(str(folder))), everything)


def test_new_corrected_sources_come_before_the_links_of_their_old_names(tmp_path):
    for module in (0, 9):
        path = tmp_path / "r0142" / f"CORR-R0142-AGIPD{module:02}-S00000.h5"
        path.parent.mkdir(exist_ok=True)
        source = AGIPDModule(
            f"{DETECTOR}/CORR/{module}CH0",
            channel_name="output",
            raw=False,
            frames_per_train=PER_TRAIN,
            legacy_name=f"{DETECTOR}/DET/{module}CH0",
        )
        write_file(str(path), [source], ntrains=3, chunksize=32, format_version="1.2")
        with h5py.File(path, "r+") as file:
            data = file[f"INSTRUMENT/{DETECTOR}/CORR/{module}CH0:output/image/data"]
            data[:] = np.random.default_rng(module).random(data.shape)
    ds = open_runs(str(tmp_path / "r0142"), "*AGIPD1M*")
    theirs = agipd(tmp_path / "r0142").get_array("image.data", unstack_pulses=False)
    np.testing.assert_array_equal(whole(ds)[:, [0, 9]], theirs.values.swapaxes(0, 1))
    assert np.isnan(whole(ds)[:, 1]).all()


@pytest.mark.parametrize(("raw", "missing"), [(True, 65535), (False, np.nan)])
def test_missing_modules_and_trains_are_filled_and_counted(tmp_path, raw, missing):
    folder = write_run(tmp_path / "r0001", raw=raw, modules=[0, 1, 7])
    path = next(folder.glob("*AGIPD07*"))
    with h5py.File(path, "r+") as file:  # as if the module had missed train 10001
        file["INDEX/trainId"][:3] = [10000, 10002, 10003]
    ds = open_runs(str(folder), layout=FileLayout(mask_bits=0))
    data = RunDirectory(str(folder), parallelize=False)
    frames, train = whole(ds), ds["trainId"].values
    assert train.tolist() == np.repeat([10000, 10001, 10002, 10003], PER_TRAIN).tolist()
    for number in range(4):
        _, values = data.train_from_index(number)
        values = {s: v for s, v in values.items() if "image.data" in v}
        theirs = stack_detector_data(values, "image.data", modules=16, fillvalue=missing)
        theirs = theirs[:, 0] if raw else theirs  # the image; the gain is behind it
        np.testing.assert_array_equal(frames[train == 10000 + number], theirs)
    assert ds.attrs["faults"] == {
        str(folder): {
            "missing_modules": [2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15],
            "incomplete_frames": 8,
        }
    }
    told = "modules 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15 are missing; 8 frames lack further"
    assert ds.attrs["odd_files"] == [[str(folder), f"{told} modules"]]


def test_trains_out_of_order_twice_and_suspect_are_kept_and_counted(tmp_path):
    folder = write_run(tmp_path / "r0001", modules=[0, 1], trains=4)
    for module, trains in ((0, [10002, 10001, 10003, 10001]), (1, [10001, 10002, 10003, 10004])):
        path = next(folder.glob(f"*AGIPD{module:02}*"))
        with h5py.File(path, "r+") as file:
            file["INDEX/trainId"][:4] = trains
            file["INDEX/flag"][:4] = [1, 1, 1, module]
    ds = open_runs(str(folder))
    # The second 10001 of module 0 stands behind the first.
    expected = np.repeat([10001, 10001, 10002, 10003, 10004], PER_TRAIN)
    assert ds["trainId"].values.tolist() == expected.tolist()
    assert ds["pulseId"].values.tolist() == [0, 1, 2, 3] * 5
    faults = ds.attrs["faults"][str(folder)]
    assert faults["duplicate_frames"] == faults["suspect_frames"] == PER_TRAIN
    assert faults["unordered_trains"] == 2
    assert faults["incomplete_frames"] == 2 * PER_TRAIN
    file, image = image_of(next(folder.glob("*AGIPD00*")))
    raw = image["data"][:, 0].reshape(4, PER_TRAIN, 512, 128)
    file.close()
    frames = whole(ds).reshape(5, PER_TRAIN, 16, 512, 128)
    np.testing.assert_array_equal(frames[[2, 0, 3, 1], :, 0], raw)
    assert (frames[1, :, 1] == 65535).all()
    assert (frames[4, :, 0] == 65535).all()


def test_pulses_are_matched_by_their_ids(tmp_path):
    folder = write_run(tmp_path / "r0001", modules=[0, 1], trains=2)
    file, image = image_of(next(folder.glob("*AGIPD01*")))
    image["pulseId"][:, 0] = [2, 0, 5, 1, 0, 1, 2, 3]
    image["cellId"][:, 0] = [2, 0, 5, 1, 0, 1, 2, 9]
    second = image["data"][:, 0]
    file.close()
    ds = open_runs(str(folder))
    assert ds["pulseId"].values.tolist() == [0, 1, 2, 3, 5, 0, 1, 2, 3]
    assert ds["cellId"].values.tolist() == [0, 1, 2, 3, 5, 0, 1, 2, 3]
    frames = whole(ds)
    np.testing.assert_array_equal(frames[[2, 0, 4, 1, 5, 6, 7, 8], 1], second)
    assert (frames[3, 1] == 65535).all()
    assert ds.attrs["faults"][str(folder)]["other_cells"] == 1


def test_a_file_of_a_module_that_cannot_be_read_costs_that_module_only(tmp_path):
    folder = write_run(tmp_path / "r0001", modules=[0, 1])
    path = next(folder.glob("*AGIPD01*"))
    path.write_bytes(path.read_bytes()[:5000])
    ds = open_runs(str(folder))
    faults = ds.attrs["faults"][str(folder)]
    assert re.match(
        r"RAW-R0238-AGIPD01-S00000.h5 \(.*transfer it again\)", faults["unreadable_files"][0]
    )
    assert 1 in faults["missing_modules"]
    assert (whole(ds)[:, 0] < 60000).all()


def test_rows_that_the_data_has_not_are_counted(tmp_path):
    folder = write_run(tmp_path / "r0001", modules=[0, 1])
    with h5py.File(next(folder.glob("*AGIPD01*")), "r+") as file:
        index_of(file)["count"][2] = 400
    ds = open_runs(str(folder))
    assert ds.sizes["frame"] == 12
    assert ds.attrs["faults"][str(folder)]["lost_rows"] == 396


def test_runs_lie_in_several_files_of_a_module(tmp_path):
    folder = tmp_path / "r0001"
    folder.mkdir()
    for module in (0, 3):
        for sequence in range(2):
            path = folder / f"RAW-R0163-AGIPD{module:02}-S{sequence:05}.h5"
            source = AGIPDModule(f"{DETECTOR}/DET/{module}CH0", frames_per_train=PER_TRAIN)
            first = 10000 + 3 * sequence
            write_file(str(path), [source], ntrains=3, firsttrain=first, chunksize=32)
            fill(path, 10 * sequence + module, True)
    ds = open_runs(str(folder), frames_per_block=5)
    theirs = agipd(folder, raw=True).get_array("image.data", unstack_pulses=False).values
    np.testing.assert_array_equal(whole(ds)[:, [0, 3]], theirs[:, :, 0].swapaxes(0, 1))
    part = select_run(ds, "r0001", slice(10, 15))
    np.testing.assert_array_equal(part["frames"][:, 1536:1600].values, theirs[1, 10:15, 0, :64])
    some = take_frames(ds, [20, 3, 11])
    np.testing.assert_array_equal(some["frames"][:, :512].values, theirs[0, [20, 3, 11], 0])
    assert some["trainId"].values.tolist() == [10005, 10000, 10002]


def test_other_detectors_and_choice_among_several(tmp_path):
    folder = write_run(tmp_path / "r0001", modules=[0, 1])
    for module in range(2):
        path = folder / f"RAW-R0238-LPD{module:02}-S00000.h5"
        source = LPDModule(f"FXE_DET_LPD1M-1/DET/{module}CH0", frames_per_train=2)
        write_file(str(path), [source], ntrains=3, chunksize=32)
        with h5py.File(path, "r+") as file:
            data = file[f"INSTRUMENT/FXE_DET_LPD1M-1/DET/{module}CH0:xtdf/image/data"]
            data[:] = np.random.default_rng(module).integers(0, 4000, data.shape)
    with pytest.raises(
        DataError, match=r"2 detectors that '\*' .* FXE_DET_LPD1M-1, SPB_DET_AGIPD1M-1"
    ):
        scan_run_folder(str(folder), "*")
    with pytest.raises(
        DataError, match=r"no detector that '\*DSSC\*' matches; there are FXE_DET_LPD1M"
    ):
        scan_run_folder(str(folder), "*DSSC*")
    ds = open_runs(str(folder), "*LPD*")
    theirs = LPD1M(RunDirectory(str(folder), parallelize=False), raw=True)
    array = theirs.get_array("image.data", unstack_pulses=False).values
    np.testing.assert_array_equal(
        ds["frames"][:, :512].values.reshape(6, 2, 256, 256), array.swapaxes(0, 1)
    )


def test_dssc_modules_lie_on_their_side(tmp_path):
    source = DSSCModule("SCS_DET_DSSC1M-1/DET/4CH0", frames_per_train=2)
    write_file(str(tmp_path / "RAW-R0163-DSSC04-S00000.h5"), [source], ntrains=2, chunksize=32)
    assert open_runs(str(tmp_path))["frames"].shape == (4, 16 * 128, 512)


@pytest.mark.parametrize("raw", [True, False])
def test_virtual_cxi_equals_the_run(tmp_path, raw):
    folder = write_run(tmp_path / "r0001", raw=raw, modules=[0, 1, 7])
    with h5py.File(next(folder.glob("*AGIPD07*")), "r+") as file:
        file["INDEX/trainId"][:3] = [10000, 10002, 10003]
    path = tmp_path / "virtual.cxi"
    agipd(folder, raw=raw).write_virtual_cxi(str(path))
    one, other = open_runs(str(folder)), open_runs(str(path))
    np.testing.assert_array_equal(other["frames"].values, one["frames"].values)
    for name in ("trainId", "pulseId", "cellId"):
        np.testing.assert_array_equal(other[name], one[name])
    faults = other.attrs["faults"][str(path)]
    assert faults == one.attrs["faults"][str(folder)]
    cut = take_frames(other, slice(3, 9))["frames"][:, 500:1100, 3:70]
    np.testing.assert_array_equal(cut.values, one["frames"].values[3:9, 500:1100, 3:70])


def test_a_virtual_file_whose_source_is_gone_lacks_a_module(tmp_path):
    folder = write_run(tmp_path / "r0001", modules=[0, 1])
    path = tmp_path / "virtual.cxi"
    agipd(folder, raw=True).write_virtual_cxi(str(path))
    next(folder.glob("*AGIPD01*")).unlink()
    ds = open_runs(str(path))
    assert 1 in ds.attrs["faults"][str(path)]["missing_modules"]
    assert "AGIPD01-S00000.h5 is gone" in ds.attrs["odd_files"][0][1]
    assert (whole(ds)[:, 1] == 65535).all()


def test_a_folder_of_runs_and_their_index(tmp_path):
    for number in (1, 2):
        write_run(tmp_path / "proc" / f"r000{number}", modules=[0], trains=number)
    assert list(find_runs(str(tmp_path / "proc" / "r*"))) == ["r0001", "r0002"]
    cache = tmp_path / "index.json"
    first = open_runs(str(tmp_path / "proc" / "r*"), cache=cache)
    again = open_runs(str(tmp_path / "proc" / "r*"), cache=cache)
    assert again.attrs == first.attrs
    assert again.sizes["frame"] == 3 * PER_TRAIN
    shutil.copy(
        next((tmp_path / "proc/r0001").glob("*00-S*")),
        tmp_path / "proc/r0001/RAW-R0238-OVERVIEW.h5",
    )
    assert open_runs(str(tmp_path / "proc" / "r0001"))["frames"].shape[0] == PER_TRAIN


def test_a_run_that_is_written_to_is_not_whole(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "r0001", modules=[0], trains=1)
    (tmp_path / "r0002").mkdir()  # holds nothing yet
    looks = iter(range(4))

    def look_again(_seconds):
        match next(looks):
            case 1:
                write_run(folder, modules=[1], trains=1)
            case 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(files.time, "sleep", look_again)
    settled = [sizes[str(folder)] for sizes in files.follow_files([f"{tmp_path}/r*"])]
    assert len(settled) == 3
    assert settled[0] == settled[1] != settled[2]


@pytest.mark.parametrize(
    "spoil", ["rows twice", "few ids", "text", "huge", "of itself", "led to it"]
)
def test_an_absurd_file_costs_its_module_only(tmp_path, spoil):
    folder = write_run(tmp_path / "r0001", modules=[0, 1])
    file, image = image_of(next(folder.glob("*AGIPD01*")))
    if spoil == "rows twice":
        index_of(file)["first"][:3] = 0
        index_of(file)["count"][:3] = 12
    elif spoil == "huge":
        index_of(file)["first"][:3] = 0
        index_of(file)["count"][:3] = 2**62
        image["data"].resize(10**11, 0)
    elif spoil == "of itself":  # HDF5 does not survive to read it
        del image["cellId"]
        layout = h5py.VirtualLayout((12, 1), "u2")
        layout[...] = h5py.VirtualSource(".", f"{image.name}/cellId", (12, 1))
        image.create_virtual_dataset("cellId", layout)
    elif spoil == "led to it":
        layout = h5py.VirtualLayout((3,), "u8")
        layout[...] = h5py.VirtualSource(".", "again", (3,))
        file.create_virtual_dataset("again", layout)
        del file["INDEX/trainId"]
        file["INDEX/trainId"] = h5py.SoftLink("/again")
    else:
        name = "pulseId" if spoil == "few ids" else "data"
        del image[name]
        image[name] = np.arange(3) if spoil == "few ids" else np.full((12, 512, 128), b"x")
    file.close()
    ds = open_runs(str(folder))
    assert ds.sizes["frame"] == 12
    faults = ds.attrs["faults"][str(folder)]
    assert faults["missing_modules"] == list(range(1, 16))
    assert "AGIPD01-S00000.h5 (" in faults["unreadable_files"][0]


@pytest.mark.parametrize("virtual", [False, True])
def test_a_mask_that_leads_nowhere_is_told(tmp_path, virtual):
    folder = write_run(tmp_path / "r0001", raw=False, modules=[0, 1])
    path, place = next(folder.glob("*AGIPD01*")), None
    if virtual:
        path = tmp_path / "virtual.cxi"
        agipd(folder, raw=False).write_virtual_cxi(str(path))
    with h5py.File(path, "r+") as file:
        names = []
        file.visit(names.append)
        place = next(name for name in names if name.endswith("/mask"))
        del file[place]
        file[place] = h5py.SoftLink(f"/{place}")
    source = str(path if virtual else folder)
    ds = open_runs(source)
    assert ds.attrs["faults"][source]["odd_masks"] == 1
    assert "1 masks are not used: they lead nowhere" in ds.attrs["odd_files"][0][1]
    with h5py.File(next(folder.glob("*AGIPD01*"))) as file:
        image = next(iter(file["INSTRUMENT"][DETECTOR]["DET"].values()))["image/data"][5]
    np.testing.assert_array_equal(whole(ds)[5, 1], image)


def test_colour_images_are_no_modules(tmp_path):
    with h5py.File(tmp_path / "colour.h5", "w") as file:
        file["data"] = np.zeros((2, 200, 300, 3), np.uint8)
        file["modules"] = np.arange(2 * 4 * 6 * 5, dtype=np.int16).reshape(2, 4, 6, 5)
    with pytest.raises(DataError, match=r"has 4 dimensions \(2, 200, 300, 3\), expected"):
        open_runs(str(tmp_path / "colour.h5"), "data")
    ds = open_runs(str(tmp_path / "colour.h5"), "modules")
    np.testing.assert_array_equal(ds["frames"], np.arange(240).reshape(2, 24, 5))
    assert ds.attrs["faults"] == {}


def test_a_mask_or_identity_inside_is_refused(tmp_path):
    folder = str(write_run(tmp_path / "r0001", modules=[0], trains=1))
    with pytest.raises(DataError, match=r"has no mask 'entry_1/mask', expected .*; set runs.mask"):
        open_runs(folder, layout=FileLayout(mask="entry_1/mask"))
    with pytest.raises(DataError, match=r"has no array 'run', expected .*; set runs.identity"):
        open_runs(folder, layout=FileLayout(identity=("run", "index")))


CELLS = 16


def write_jungfrau(folder, modules, *, detector="SPB_IRDA_JF4M", raw=True, trains=3):
    """A run of JUNGFRAU, whose modules are numbered from 1."""
    folder.mkdir(parents=True)
    for number in modules:
        path = folder / f"RAW-R0012-JNGFR{number:02}-S00000.h5"
        source = f"{detector}/DET/JNGFR{number:02}"
        write_file(str(path), [JUNGFRAUModule(source, raw=raw)], ntrains=trains, chunksize=1)
        with h5py.File(path, "r+") as file:
            data = file[f"INSTRUMENT/{source}:daqOutput/data"]
            random = np.random.default_rng(number)
            data["adc"][:, :, ::64, ::64] = random.integers(1, 9999, (trains, CELLS, 8, 16))
            data["memoryCell"][:] = np.arange(CELLS)
            if not raw:
                data["mask"][0, 3, :64, :128] = 2
    return folder


@pytest.mark.parametrize("raw", [True, False])
def test_cells_of_jungfrau_are_frames(tmp_path, raw):
    folder = write_jungfrau(tmp_path / "r0012", [1, 3], raw=raw)
    with h5py.File(next(folder.glob("*JNGFR03*")), "r+") as file:
        file["INDEX/trainId"][:3] = [10000, 10002, 10003]
    data = JUNGFRAU(RunDirectory(str(folder), parallelize=False), raw=raw)
    theirs = (data.masked_data() if not raw else data["data.adc"]).xarray().values
    theirs = theirs.reshape(2, 4, CELLS, 512, 1024)
    ds = open_runs(str(folder))
    assert ds["frames"].shape == (4 * CELLS, 8 * 512, 1024)
    assert ds["trainId"].values.tolist() == np.repeat([10000, 10001, 10002, 10003], CELLS).tolist()
    assert ds["pulseId"].values.tolist() == ds["cellId"].values.tolist() == [*range(CELLS)] * 4
    for module, there, expected in ((0, [0, 1, 2], theirs[0]), (2, [0, 2, 3], theirs[1])):
        rows = slice(module * 512, module * 512 + 512)
        frames = ds["frames"][:, rows].values.reshape(4, CELLS, 512, 1024)
        np.testing.assert_array_equal(frames[there], expected[there])
        absent = frames[({0, 1, 2, 3} - set(there)).pop()]
        assert (absent == 65535).all() if raw else np.isnan(absent).all()
    faults = ds.attrs["faults"][str(folder)]
    assert faults == {"missing_modules": [1, 3, 4, 5, 6, 7], "incomplete_frames": 2 * CELLS}
    # A part that begins and ends within trains.
    part = take_frames(ds, slice(10, 37))["frames"][:, 1000:1100, 60:200].values
    np.testing.assert_array_equal(part, ds["frames"][10:37, 1000:1100, 60:200].values)
    path = tmp_path / "virtual.cxi"
    data.write_virtual_cxi(str(path))
    other = open_runs(str(path))
    np.testing.assert_array_equal(other["frames"][:, :512].values, ds["frames"][:, :512].values)
    for name in ("trainId", "pulseId", "cellId"):
        np.testing.assert_array_equal(other[name], ds[name])


def test_a_single_module_of_jungfrau(tmp_path):
    folder = write_jungfrau(tmp_path / "r0052", [3], detector="FXE_XAD_JF500K", trains=1)
    ds = open_runs(str(folder))
    assert ds["frames"].shape == (CELLS, 512, 1024)
    theirs = JUNGFRAU(RunDirectory(str(folder), parallelize=False), first_modno=3, raw=True)
    np.testing.assert_array_equal(ds["frames"], theirs.get_array("data.adc").values[0, 0])
