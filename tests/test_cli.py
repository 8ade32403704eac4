"""Whatever goes wrong in a command is one line and exit code 2."""

import errno
import hashlib

import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from typer.testing import CliRunner

from spidask.cli import app


def fail(*words):
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    (line,) = result.output.splitlines()
    return line


@pytest.mark.parametrize("section", ["5", "off", "[1]", "text"])
def test_simulate_refuses_what_is_no_section(tmp_path, section):
    config = tmp_path / "config.yaml"
    config.write_text(f"runs: {{files: [x.h5]}}\noutput: out\nsimulation: {section}\n")
    line = fail("simulate", tmp_path / "beamtime", "--config", config)
    assert line.startswith("error: simulation: ")
    assert "expected a section" in line
    assert not (tmp_path / "beamtime").exists()


def test_simulate_into_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    line = fail("simulate", tmp_path / "file" / "beamtime", "--frames", 1, "--runs", 1)
    assert line.startswith(f"error: {tmp_path}/file/beamtime")
    assert "Not a directory; check paths" in line


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "o/x"), "o/x: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (
            OSError("Can't write data\n  (file write failed)"),
            "Can't write data (file write failed)",
        ),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_trouble_of_the_system(monkeypatch, error, text):
    def raise_it(_):
        raise error

    monkeypatch.setattr("spidask.cli.measure_status", raise_it)
    told = "; check paths, permissions and free space, then run the command again"
    assert fail("status", "out") == f"error: {text}{told}"


def write_selection(folder, *selected):
    folder.mkdir(parents=True)
    rows = [f"r1,{i},{int(i in selected)},,{i / 10},{50 + 10 * i}" for i in range(4)]
    header = "run,index,selected,reason,score,diameter_nm"
    (folder / "selection.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def test_compare_prints_and_writes_one_table(tmp_path):
    out = write_selection(tmp_path / "out", 1, 2)
    em = write_selection(out / "em", 2, 3)
    truth = tmp_path / "truth.csv"
    truth.write_text("run,index,label\nr1,1,multiple\nr1,2,single\nr1,3,single\n")
    words = ["compare", out, em, "--truth", truth, "--within", 55, 75, "--paper", "--save"]
    words += ["--csv", tmp_path / "table.csv"]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].startswith("2 frames, 1 of them single hits; ")
    assert lines[1].split()[:2] == ["selected", "in"]
    # Of 60 and 70 nm, the second is a single hit: 2 and 1 are selected.
    assert " ".join(lines[2].split()) == f"{out} 2 1 0.500 0.500 0.500 1.000 0.667 1.000 1.000"
    assert " ".join(lines[3].split()) == f"{em} 1 1 1.000 1.000 1.000 1.000 1.000 1.000 0.500"
    assert lines[4].startswith("reject everything")
    assert lines[5].startswith("published by Ignatenko et al. 2021, on other frames")
    assert lines[6].split()[:5] == ["YOLOv2", "colour", "linear", "1185", "597"]
    assert "device" not in lines[1]
    written = pd.read_csv(out / "comparison.csv")
    assert written["name"].tolist()[:3] == [str(out), str(em), "reject everything"]
    pd.testing.assert_frame_equal(written, pd.read_csv(tmp_path / "table.csv"))


def test_compare_what_is_not_there(tmp_path):
    line = fail("compare", tmp_path / "gone")
    assert (
        line
        == f"error: {tmp_path}/gone: no such selection; give an output folder or its selection.csv"
    )


@pytest.fixture
def run_file(tmp_path):
    with h5py.File(tmp_path / "r0001.h5", "w") as file:
        file["data"] = np.arange(60, dtype=np.uint16).reshape(3, 4, 5)
        file["scan/raw"] = np.zeros((2, 2, 2))
    return tmp_path / "r0001.h5"


@pytest.mark.parametrize("workers", ["0", "1"])
def test_convert(tmp_path, run_file, workers):
    words = ["convert", run_file, tmp_path / "o.zarr", "--dataset", "data", "--workers", workers]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{tmp_path}/o.zarr: 3 frames of 4 x 5 uint16, 0.0 MB as ")
    frames = np.arange(60, dtype="<u2").reshape(3, 20)
    digests = [hashlib.sha256(frame.tobytes()).digest() for frame in frames]
    checksum = hashlib.sha256(b"".join(digests)).hexdigest()
    assert lines[1] == f"sha256 {checksum}, read back and equal"
    assert lines[2] == "left out: scan/raw"
    assert zarr.open_group(tmp_path / "o.zarr", mode="r")["data"][2, 3, 4] == 59


def test_convert_refuses_to_overwrite(run_file):
    line = fail("convert", run_file, run_file)
    assert line == f"error: {run_file}: is there already; remove it or name another"


def test_convert_tells_what_is_there(run_file):
    line = fail("convert", run_file, run_file.with_suffix(".zarr"), "--dataset", "frames")
    assert line.endswith("it holds data, scan/raw; give --dataset")
