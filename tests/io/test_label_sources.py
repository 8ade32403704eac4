"""Labels of Dragonfly, CXI, speckleNN, small data and selections become one table."""

import h5py
import numpy as np
import pytest
import xarray as xr

from spidask.config import Labels
from spidask.errors import DataError
from spidask.io.labels import locate, read_labels
from spidask.schema import CLASSES, REASONS

DETECTOR = "entry_1/instrument_1/detector_1"


def rows(source, **settings):
    return read_labels(source, Labels(**settings)).values.tolist()


def frames_of(**ids):
    """A Dataset of one run r1 with these event ids, -1 where there is none."""
    n = len(next(iter(ids.values())))
    columns = {"run": np.zeros(n, np.int32), "index": np.arange(n)} | ids
    coords = {name: ("frame", np.asarray(values)) for name, values in columns.items()}
    return xr.Dataset(coords=coords | {"run_name": ("run_code", np.array(["amo_0090"], object))})


def test_letters_of_dragonfly_are_classes_of_a_run(tmp_path):
    path = tmp_path / "my_classes.dat"
    path.write_text("s\nm\n \n\ns\nz\nc\n")  # blank where nobody decided
    letters = {"s": "single", "m": "multiple", "c": "contaminant", "z": None}
    assert rows(path, letters=letters, run="photons") == [
        ["photons", 0, "single"],
        ["photons", 1, "multiple"],
        ["photons", 4, "single"],
        ["photons", 6, "contaminant"],
    ]
    with pytest.raises(DataError, match=r"not of which run; set labels\.run"):
        rows(path, letters=letters)
    with pytest.raises(DataError, match=r"dat, line 6: label 'z' is no class; .* labels\.letters"):
        rows(path, letters={"s": "single", "m": "multiple"}, run="photons")


def test_letters_of_what_we_handed_over_go_back_to_their_frames(tmp_path):
    path = tmp_path / "my_classes.dat"
    path.write_text("s\n\nm\n")
    (tmp_path / "index.csv").write_text("frame,run,index,timestamp\n0,7,40,1\n1,7,41,2\n2,9,3,3\n")
    letters = {"s": "single", "m": "multiple"}
    assert rows(path, letters=letters) == [["7", 40, "single"], ["9", 3, "multiple"]]
    assert rows(path, letters=letters, run="r1")[1] == ["r1", 2, "multiple"]
    path.write_text("s\nm\n")
    with pytest.raises(DataError, match=r"2 letters, but .*index\.csv names 3 frames"):
        rows(path, letters=letters)


def test_the_table_of_specklenn_names_events(tmp_path):
    path = tmp_path / "amo06516.label.csv"
    path.write_text("exp,run,event_num,label\namo,90,1203,1\namo,90,7,0\namo,91,5,2\namo,91,6,-1\n")
    codes = {0: "background", 1: "single", 2: "multiple", -1: None}
    expected = [
        ["amo_0090", 1203, "single"],
        ["amo_0090", 7, "background"],
        ["amo_0091", 5, "multiple"],
    ]
    labels = read_labels(path, Labels(codes=codes))
    assert labels.values.tolist() == expected
    assert list(labels) == ["run", "eventNumber", "label"]
    assert rows(path, codes=codes, run="r{run:04d}")[2] == ["r0091", 5, "multiple"]
    with pytest.raises(DataError, match=r"line 5: label '-1' is no class; .* labels\.codes"):
        rows(path, codes={0: "background", 1: "single", 2: "multiple"})
    with pytest.raises(DataError, match=r"labels\.run: 'r\{number\}' is no pattern"):
        rows(path, codes=codes, run="r{number}")
    path.write_text("exp,run,event_num,label\namo,x9,1,1\n")
    with pytest.raises(DataError, match="line 2: run 'x9' is no number"):
        rows(path, codes=codes)


def test_event_numbers_find_frames_by_their_id_else_by_index(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("exp,run,event_num,label\namo,90,6,1\namo,90,2,1\n")
    labels = read_labels(path, Labels(codes={1: "single"}))
    assert locate(labels, frames_of(eventNumber=[2, 4, 6])).tolist() == [2, 0]
    assert locate(labels, frames_of(cellId=np.arange(8))).tolist() == [6, 2]
    with pytest.raises(DataError, match="6 stands for several frames"):
        locate(labels, frames_of(eventNumber=[2, 6, 6]))


def write_tags(path, place, tags, headings, **ids):
    with h5py.File(path, "w") as file:
        data = file.create_dataset(f"{place}/tags", data=np.array(tags, np.int8))
        if headings is not None:
            data.attrs["headings"] = headings
        for name, values in ids.items():
            file[name.replace("__", "/")] = values
    return str(path)


@pytest.mark.parametrize("place", [DETECTOR, "entry_1/image_1", "entry_3/image_1"])
def test_cxi_tags_label_the_frames_of_their_file(tmp_path, place):
    tags = [[1, 0, 0, 0, -1], [0, 1, 0, 0, 0], [0, 0, 0, 1, 1]]  # -1 is not set
    path = write_tags(tmp_path / "r0007.cxi", place, tags, ["single", "two of them", "odd"])
    settings = {"tags": {"two of them": "multiple", "odd": None}}
    assert rows(path, **settings) == [["r0007", 0, "single"], ["r0007", 1, "multiple"]]
    assert rows(path, run="r9", **settings)[1] == ["r9", 1, "multiple"]
    with pytest.raises(DataError, match=r"tag 'odd' is no class; .*labels\.tags"):
        rows(path, tags={"two of them": "multiple"})


def test_tags_of_links_are_one_and_of_two_classes_an_error(tmp_path):
    path = write_tags(tmp_path / "r1.cxi", DETECTOR, [[1, 0], [0, 1]], ["single", "background"])
    with h5py.File(path, "a") as file:
        file["entry_1/image_1/tags"] = h5py.SoftLink(f"/{DETECTOR}/tags")
    assert rows(path) == [["r1", 0, "single"], ["r1", 1, "background"]]
    with h5py.File(path, "a") as file:
        file[f"{DETECTOR}/tags"][1, 0] = 1
    with pytest.raises(DataError, match=r"r1\.cxi, frame 0: is tagged single and background"):
        rows(path)
    with h5py.File(path, "a") as file:
        del file[f"{DETECTOR}/tags"].attrs["headings"]
    with pytest.raises(DataError, match=r"tag 'Tag 1' is no class"):
        rows(path)
    named = rows(path, tags={"Tag 1": "single", "Tag 2": None})
    assert named == [["r1", 0, "single"]]
    with h5py.File(path, "a") as file:
        del file[f"{DETECTOR}/tags"], file["entry_1/image_1/tags"]
    with pytest.raises(DataError, match="has no tags"):
        rows(path)


def test_tags_are_joined_by_what_names_their_frames(tmp_path):
    tags, headings = [[1, 0, 1]], ["single"]
    original = {"entry_1__run": np.array([182, 9, 9]), "entry_1__index": np.array([40, 3, 2])}
    path = write_tags(tmp_path / "a.cxi", DETECTOR, tags, headings, **original)
    assert rows(path) == [["r0182", 40, "single"], ["r0009", 2, "single"]]
    ids = {"LCLS__machineTime": [3, 4, 5], "LCLS__machineTimeNanoSeconds": [0, 1, 2]}
    path = write_tags(tmp_path / "b.cxi", DETECTOR, tags, headings, **ids)
    labels = read_labels(path)
    assert list(labels) == ["timestamp", "label"]
    assert labels["timestamp"].tolist() == [3 << 32, (5 << 32) + 2]
    ids |= {"LCLS__fiducial": [7, 8, 9]}
    path = write_tags(tmp_path / "c.cxi", DETECTOR, tags, headings, **ids)
    assert read_labels(path)["fiducial"].tolist() == [7, 9]
    ids = {"entry_1__trainId": [1, 1, 2], "entry_1__pulseId": [0, 4, 0]}
    path = write_tags(tmp_path / "d.cxi", DETECTOR, tags, headings, **ids)
    assert rows(path) == [[1, 0, "single"], [2, 0, "single"]]


@pytest.mark.parametrize("dtype", ["i4", ">f4"])
def test_codes_of_small_data_label_by_time_stamp(tmp_path, dtype):
    for name, first in (("smd1", 0), ("smd2", 100)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["timestamp"] = np.array([9, 4, 6, 1], np.uint64) + first
            file["hits/kind"] = np.array([1, 2, -99999, 0], dtype)
    codes = {0: None, 1: "single", 2: "multiple"}
    assert rows(f"{tmp_path}/smd*.h5:hits/kind", codes=codes) == [
        [9, "single"],
        [4, "multiple"],
        [109, "single"],
        [104, "multiple"],
    ]
    source = f"{tmp_path}/smd1.h5:hits/kind"
    with pytest.raises(DataError, match=r"smd1\.h5, frame 1: label '2' is no class"):
        rows(source, codes={0: None, 1: "single"})
    with pytest.raises(DataError, match="has no list of codes or tags 'hits/no'"):
        rows(f"{tmp_path}/smd1.h5:hits/no", codes=codes)
    frames = frames_of(timestamp=[1, 4, 9, 2])
    assert locate(read_labels(source, Labels(codes=codes)), frames).tolist() == [2, 1]


@pytest.mark.parametrize(
    ("values", "codes"),
    [
        (np.array([20260101, 0, 20260101]), {20260101: "single", 0: None}),
        (np.array([True, False, True]), {1: "single", 0: None}),
        (np.array([b"single", b"", b"single"]), {}),
        (np.array(["single", "", "single"], h5py.string_dtype()), {}),
    ],
)
def test_codes_of_many_digits_flags_and_texts(tmp_path, values, codes):
    with h5py.File(tmp_path / "r1.h5", "w") as file:
        file["kind"] = values
    source = f"{tmp_path}/r1.h5:kind"
    assert rows(source, codes=codes) == [["r1", 0, "single"], ["r1", 2, "single"]]


def test_a_selection_labels_single_hits_and_others(tmp_path):
    text = ["run,index,selected,reason,score,diameter_nm"]
    for index, reason in enumerate([*REASONS, ""]):
        text.append(f"r1,{index},{int(not reason)},{reason},0.5,60")
    (tmp_path / "selection.csv").write_text("\n".join(text) + "\n")
    expected = [["r1", 0, "single"], ["r1", 3, "multiple"], ["r1", 5, "single"]]
    assert REASONS[3] == "not_single"
    assert rows(tmp_path) == rows(tmp_path / "selection.csv") == expected
    with open(tmp_path / "selection.csv", "a") as file:
        file.write("r1,5,1,,0.1,60\n")
    with pytest.raises(DataError, match=r", line 8: run r1 index 5 .* first in .*, line 7"):
        rows(tmp_path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("exp,run,event_num,lab\na,9,1,1\n", "columns exp, run, event_num, lab; expected"),
        ("exp,event_num,label\na,1,1\n", "columns exp, event_num, label; expected"),
        ("run,index,label\nr1,0,single,1\n", "a row has more fields than the header"),
        ("run,index,label\nr1,0,single\nr1,1,single,1\n", "is no CSV table: .* line 3"),
    ],
)
def test_tables_of_another_form_are_refused(tmp_path, text, why):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=why):
        rows(tmp_path / "labels.csv", codes={1: "single"})


def test_codes_work_in_plain_tables_and_lines_are_told(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("run,index,label\nr1,0,single\n\nr1,1,7\nr1,0,single\n")
    with pytest.raises(DataError, match=r"line 4: label '7' is no class; known: background"):
        rows(path)
    with pytest.raises(DataError, match=r"line 5: run r1 index 0 is labelled a second .*, line 2"):
        rows(path, codes={7: "multiple"})
    assert set(Labels(codes=dict(enumerate(CLASSES))).codes.values()) == set(CLASSES)


@pytest.mark.parametrize("code", [np.inf, -np.inf])
def test_an_infinite_code_is_no_class(tmp_path, code):
    with h5py.File(tmp_path / "r1.h5", "w") as file:
        file["kind"] = np.array([1, np.nan, code, -99999], "f4")
    with pytest.raises(DataError, match=rf"r1\.h5, frame 2: label '{code}' is no class"):
        rows(f"{tmp_path}/r1.h5:kind", codes={1: "single"})


def test_ids_beside_the_tags_come_first(tmp_path):
    ids = {f"entry_{n}__{name}": [n, n, n + 1] for n in (1, 2) for name in ("trainId", "pulseId")}
    path = write_tags(tmp_path / "r1.cxi", "entry_2/image_1", [[1, 0, 1]], ["single"], **ids)
    assert rows(path) == [[2, 2, "single"], [3, 3, "single"]]


@pytest.mark.parametrize("name", ["entry_1/trainId", "LCLS/timestamp", "entry_1/run"])
def test_names_that_cannot_be_opened_are_not_replaced_by_places(tmp_path, name):
    ids = {name.replace("/", "__"): [7, 8, 9]}
    path = write_tags(tmp_path / "r1.cxi", DETECTOR, [[1, 0, 1]], ["single"], **ids)
    with h5py.File(path) as file:
        address = h5py.h5o.get_info(file[name].id).addr
    with open(path, "r+b") as file:
        file.seek(address)
        file.write(b"\xff")
    with pytest.raises(
        DataError, match=rf"'{name}', which names the frames, cannot be opened; .*run"
    ):
        rows(path)
    assert rows(path, run="r9") == [["r9", 0, "single"], ["r9", 2, "single"]]
