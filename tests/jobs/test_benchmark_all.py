"""All benchmarks in one: rows gathered, judged by their aims, drawn."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parents[2] / "jobs"))
import benchmark_all
import benchmark_picture

ROWS = [
    {"what": "uncompressed", "x plain dask": 7.0, "x h5py": 2.0},
    {"what": "memory of a worker of 2 threads", "MB": 3000.0},
]


def test_a_number_is_judged_by_its_aim_and_a_limit_the_other_way_round():
    assert dict(benchmark_picture.judge(ROWS)) == {
        "uncompressed: 7 x plain dask (aim 3.5)": 2,
        "memory of a worker of 2 threads: 3e+03 MB (aim 1.5e+03)": 0.5,
    }


def test_benchmarks_are_gathered_into_one_table_one_json_and_a_picture(tmp_path, capfd):
    script = tmp_path / "script.py"
    script.write_text(
        "import json, pathlib, sys\n"
        "name, folder = sys.argv[1], pathlib.Path(sys.argv[2]) / sys.argv[1]\n"
        "folder.mkdir()\n"
        f"rows = {{'read': {ROWS[:1]}, 'pipeline': {ROWS[1:]}}}[name]\n"
        "(folder / f'{name}.json').write_text(json.dumps({'rows': rows}))\n"
    )
    benchmark_all.measure_all(["read", "pipeline"], script, tmp_path)
    found = json.loads((tmp_path / "benchmark.json").read_text())
    assert found["rows"] == {"read": ROWS[:1], "pipeline": ROWS[1:]}
    assert list(found["aims"].values()) == [2, 0.5]
    assert {"processor", "cores", "date", "torch", "spidask"} <= found["machine"].keys()
    assert "2.00  uncompressed: 7 x plain dask (aim 3.5)" in capfd.readouterr().out
    with Image.open(tmp_path / "benchmark.png") as picture:
        assert picture.width > 500


def test_rows_of_a_gpu_are_kept_apart(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, sys\n"
        "folder = pathlib.Path(sys.argv[2]) / sys.argv[1]\n"
        "folder.mkdir()\n"
        "(folder / 'pipeline-gpu.json').write_text('{\"rows\": []}' * (sys.argv[3] == '--gpu'))\n"
    )
    benchmark_all.measure_all(["pipeline"], script, tmp_path, gpu=True)
    assert {path.name for path in tmp_path.glob("benchmark*")} == {
        "benchmark-gpu.json",
        "benchmark-gpu.png",
    }


def test_a_benchmark_that_fails_ends_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('other values')")
    with pytest.raises(Exception, match="exit status 1"):
        benchmark_all.measure_all(["read"], script, tmp_path)
