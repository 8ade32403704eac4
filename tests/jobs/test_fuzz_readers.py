"""Damaged files of every format: each is refused clearly or read rightly, and a failure shows."""

import copy
import os
import re
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import h5py
import numcodecs
import numpy as np
import pytest
import zarr

JOBS = Path(__file__).parents[2] / "jobs"
CASES = 300


@pytest.fixture(scope="module")
def job():
    """The job as a module."""
    sys.path.insert(0, str(JOBS))
    try:
        import fuzz_readers
    finally:
        sys.path.remove(str(JOBS))
    return fuzz_readers


def test_damaged_files_are_refused_or_read_rightly():
    command = [sys.executable, str(JOBS / "fuzz_readers.py"), "--cases", str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    table = [line for line in done.stdout.splitlines() if re.search(r"\d$", line)]
    counts = {line[:28].strip(): [int(n) for n in line[28:].split()] for line in table}
    *rows, total = counts.values()
    assert len(rows) == 35
    assert np.sum(rows, axis=0).tolist() == total
    refused, before, changed, filled, unjudged, failed, every = total
    assert (every, failed) == (CASES, 0)
    # The damage must show, and in every way.
    assert refused > CASES / 4
    assert before + changed > CASES / 4
    assert filled > 0
    assert unjudged < CASES / 50
    assert f"{CASES} damaged files in" in done.stdout


def test_every_end_of_a_child_is_told(job, tmp_path, monkeypatch):
    children = sys.modules["fuzz.children"]
    monkeypatch.setattr(children, "MOST_MB", 1_000_000)  # other tests fill this process

    def end(work):
        def steps():
            yield "first"
            yield work()

        ended = job.run_in_child(steps, tmp_path / "log")
        assert ended.values[0] == "first"
        return ended

    done = end(lambda: [1, 2])
    assert (done.how, done.values[1], done.text) == ("done", [1, 2], "")
    raised = end(lambda: 1 / 0)
    assert raised.how == "exception"
    assert "ZeroDivisionError" in raised.text
    crashed = end(lambda: os.kill(os.getpid(), 11))
    assert crashed.how == "signal"
    assert crashed.text.startswith("SIGSEGV")
    monkeypatch.setattr(children, "MOST_MB", end(lambda: None).peak_mb + 40)
    assert end(lambda: len(np.ones(1_000_000))).how == "done"
    assert end(lambda: len(np.ones(10_000_000))).how == "memory"
    monkeypatch.setattr(children, "CPU_S", 1)
    assert end(_spin).how == "hang"
    monkeypatch.setattr(children, "WALL_S", 1.0)
    assert end(lambda: time.sleep(60)).how == "hang"


def _spin():
    while True:
        pass


@pytest.mark.parametrize("code", [0, 7, 13, 21, 22, 23])
def test_a_wrong_value_fails(job, tmp_path, monkeypatch, code):
    monkeypatch.setattr(job, "MOST_MB", 1_000_000)  # other tests fill this process
    form = job.FORMATS[code]
    form.prepare(tmp_path)
    seed = tmp_path / "seed"
    found = form.read(seed, tmp_path, 0)
    ended = job.Ended("done", [found], "", 0.0, 0.0)
    healthy = copy.deepcopy(found)

    def classify():
        ended.values[1:] = [form.judge(seed, found, healthy)]
        return job.classify(ended, healthy)[0]

    assert classify() == "as before"
    frame = found["frames"][3]
    frame += 1
    assert classify() == "FAILED"
    frame[...] = np.nan if frame.dtype.kind == "f" else np.iinfo(frame.dtype).max
    assert classify() == "FAILED"
    for text, outcome in (
        ("text\nin two lines", "FAILED"),
        ("", "FAILED"),
        ("is truncated, 5 of 9 bytes; transfer it again", "refused"),
    ):
        ended.values[:] = [{"refused": text, "others": healthy["others"]}]
        assert job.classify(ended, healthy)[0] == outcome
    ended.values[:] = [{"refused": text, "others": healthy["others"] + 1}]
    assert job.classify(ended, healthy)[0] == "FAILED"


def test_a_wrong_label_fails(job, tmp_path):
    form = next(form for form in job.FORMATS if form.name == "labels, CSV")
    form.prepare(tmp_path)
    found = form.read(tmp_path / "seed", tmp_path, 0)
    assert form.judge(tmp_path / "seed", found, found) == []
    found["values"][2][2] = "single"
    (wrong,) = form.judge(tmp_path / "seed", found, found)
    assert wrong.startswith("20 rows instead of 20, first")


def test_a_case_is_what_its_numbers_say(job, tmp_path):
    job.FORMATS[5].prepare(tmp_path / "home")
    written = []
    for name in "ab":
        subjects = job.copy_seed(tmp_path / "home" / "seed", tmp_path / name)
        damage = job.mutate(subjects, np.random.default_rng([7, 5]))
        written.append((damage, subjects[0].read_bytes()))
    assert written[0] == written[1]
    assert written[0][1] != (tmp_path / "home" / "seed" / "r1.h5").read_bytes()


def test_a_module_has_to_be_as_what_is_told_of_it(job, tmp_path):
    form = next(form for form in job.FORMATS if form.name == "European XFEL, corrected")
    form.prepare(tmp_path)
    seed = tmp_path / "seed"
    found = form.read(seed, tmp_path, 0)
    assert form.judge(seed, found, found) == []
    file = "CORR-R0238-AGIPD01-S00000.h5"
    # What is told as not read must not be there, and what is not there must be told.
    told = found | {"told": f"not read: {file} (it is damaged)"}
    assert [w for w in form.judge(seed, told, found) if w.startswith("module 1 of")]
    with h5py.File(seed / "r1" / file, "r+") as opened:
        image = opened["INSTRUMENT/SPB_DET_AGIPD1M-1/DET/1CH0:xtdf/image"]
        del image["mask"]
        image["mask"] = h5py.SoftLink(f"{image.name}/mask")
    again = form.read(seed, tmp_path, 0)
    assert form.judge(seed, again, found) == []
    (wrong,) = form.judge(seed, again | {"told": found["told"]}, found)
    assert wrong == "the mask of module 1 is not used, and nothing says so"


@pytest.mark.parametrize("options", [{}, {"compression": "gzip", "shuffle": True}])
def test_a_row_that_lies_in_memory_alone_cannot_be_read(job, tmp_path, options):
    with h5py.File(tmp_path / "r1.h5", "w") as file:
        file.create_dataset("data", data=np.ones((3, 4, 5), "u2"), chunks=(1, 4, 5), **options)
        if options:
            file["data"].id.write_direct_chunk((1, 0, 0), zlib.compress(bytes(8)))
    content = (tmp_path / "r1.h5").read_bytes()
    if not options:
        at = content.index(struct.pack("<IIQ", 40, 0, 1))
        (tmp_path / "r1.h5").write_bytes(content[:at] + b"\x08" + content[at + 1 :])
    frame = job.FORMATS[0].look(tmp_path / "r1.h5", "data", {})
    assert frame(0).tolist() == frame(2).tolist() == np.ones((4, 5)).tolist()
    with pytest.raises(AssertionError, match="8"):
        frame(1)


def test_chunks_of_blosc_that_are_cut_off_cannot_be_read(job, tmp_path):
    home, blosc = tmp_path / "r1.zarr", numcodecs.Blosc()
    layout = {"chunks": (1, 4, 5), "zarr_format": 2, "compressors": blosc}
    zarr.create_array(home, data=np.arange(60).reshape(3, 4, 5), **layout)
    frame = job.FORMATS[12].look(home, "", {})
    assert frame(1).tolist() == np.arange(20, 40).reshape(4, 5).tolist()
    os.truncate(home / "1.0.0", os.path.getsize(home / "1.0.0") - 1)
    assert frame(2)[0, 0] == 40
    with pytest.raises(AssertionError, match=r"1\.0\.0"):
        frame(1)


def test_ids_that_are_lost_are_not_replaced_by_places(job, tmp_path):
    form = next(form for form in job.FORMATS if form.name == "labels, CXI tags")
    form.prepare(tmp_path)
    assert form.look(tmp_path / "seed")[0][:2] == [7, 2]
    with h5py.File(tmp_path / "seed" / "r0007.cxi", "r+") as file:
        del file["entry_1/pulseId"]
        file["entry_1/pulseId"] = h5py.SoftLink("/gone")
    with pytest.raises(AssertionError, match="ids that are lost"):
        form.look(tmp_path / "seed")
