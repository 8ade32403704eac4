"""Checks of runs of the European XFEL, their geometry, and the config for them."""

import sys
from pathlib import Path

import numpy as np
import pytest
from extra_geom import AGIPD_1MGeometry, LPD_1MGeometry
from typer.testing import CliRunner

from spidask import assembly
from spidask.checks import check
from spidask.cli import app
from spidask.config import load_config
from spidask.errors import ConfigError
from spidask.io import euxfel
from spidask.io.runs import open_runs
from spidask.preprocessing import preprocess
from tests.io.test_euxfel import agipd, write_run

CONFIG = Path(__file__).parents[2] / "configs" / "euxfel_agipd.yaml"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The facility's folders, with one proposal of two runs, modules missing."""
    root = tmp_path_factory.mktemp("exfel")
    for number, version in ((1, "1.0"), (2, "1.3")):
        folder = root / "SPB" / "202601" / "p900777" / "proc" / f"r{number:04d}"
        write_run(folder, raw=False, modules=[3, 4, 8, 15], trains=2, version=version)
    AGIPD_1MGeometry.example().write_crystfel_geom(str(root / "agipd.geom"))
    LPD_1MGeometry.example().write_crystfel_geom(str(root / "lpd.geom"))
    return root


@pytest.fixture
def facility(root, monkeypatch):
    monkeypatch.setenv("EXTRA_DATA_DATA_ROOT", str(root))
    return root


def config(beamtime, root, *overrides):
    members = f"inference.members=[{beamtime.members[0]}]"
    given = ["euxfel.proposal=900777", "euxfel.runs=[1, 2]", "hits.threshold=1.0", members]
    geometry = f"preprocessing.assembly={root}/agipd.geom"
    return load_config(CONFIG, [*given, geometry, "labels.file=null", *overrides])


def told(beamtime, root, *overrides):
    problems = check(config(beamtime, root, *overrides))
    return [str(problem) for problem in problems if problem.severity == "error"]


def test_the_shipped_config_reads_runs_by_proposal_and_number(beamtime, facility):
    settings = config(beamtime, facility)
    folders = [facility / f"SPB/202601/p900777/proc/r000{n}" for n in (1, 2)]
    assert settings.runs.files == [str(folder) for folder in folders]
    assert check(settings)[0].severity == "warning"
    assert told(beamtime, facility) == []
    frames = open_runs(settings.runs.files, settings.runs.dataset)
    patterns = preprocess(frames, settings)
    assert patterns["run_name"].values.tolist() == ["r0001", "r0002"]
    data = [agipd(folder).masked_data().ndarray(module_gaps=True) for folder in folders]
    data = np.concatenate(data, axis=1).swapaxes(0, 1)
    data[:, [m for m in range(16) if m not in (3, 4, 8, 15)]] = np.nan
    theirs = AGIPD_1MGeometry.from_crystfel_geom(str(facility / "agipd.geom"))
    image, _ = theirs.position_modules(np.maximum(np.floor(data + np.float32(0.5)), 0))
    np.testing.assert_array_equal(patterns["patterns"], image[:, 633:756, 429:669])


def test_folders_go_first(beamtime, facility):
    folder = f"{facility}/SPB/202601/p900777/proc/r0002"
    settings = config(beamtime, facility, f"runs.files=[{folder}]")
    assert settings.runs.files == [folder]


def test_a_proposal_that_is_not_there(beamtime, facility):
    with pytest.raises(ConfigError, match=r"euxfel.proposal: 1234 is not found in .*exfel"):
        config(beamtime, facility, "euxfel.proposal=1234")
    with pytest.raises(ConfigError, match=r"euxfel.runs: give the proposal and its runs together"):
        config(beamtime, facility, "euxfel.runs=[]")
    (problem,) = told(beamtime, facility, "euxfel.runs=[7]", "labels.truth=null")
    assert "runs.files: " in problem
    assert "r0007' matches nothing; the nearest folder there is" in problem


def test_a_detector_that_is_not_there(beamtime, facility):
    problems = told(beamtime, facility, "euxfel.detector='*LPD*'")
    assert len(problems) == 2
    assert "holds no detector that '*LPD*' matches; there are SPB_DET_AGIPD1M-1" in problems[0]
    assert "set euxfel.detector" in problems[0]


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("preprocessing.assembly=none.geom", "assembly: none.geom: No such file"),
        ("preprocessing.assembly={root}/lpd.geom", "lpd.geom: is of another detector"),
        ("preprocessing.region.y=[0, 2000]", "[0, 2000] reaches beyond the assembled image"),
        ("preprocessing.bin=2", "give multiples of preprocessing.bin"),
    ],
)
def test_a_geometry_that_does_not_fit(beamtime, facility, override, text):
    problems = told(beamtime, facility, override.replace("{root}", str(facility)))
    assert problems
    assert all(problem.startswith("error: preprocessing.") for problem in problems)
    assert text in problems[0]


@pytest.mark.parametrize(
    ("module", "files", "place"),
    [
        ("extra_data", "[{root}/SPB/202601/p900777/proc/r0001]", "runs.files"),
        ("extra_data", None, "euxfel.proposal"),
        ("extra_geom", None, "preprocessing.assembly"),
    ],
)
def test_the_extra_is_named(beamtime, facility, monkeypatch, module, files, place):
    for name in [n for n in sys.modules if n.partition(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    assembly._read.cache_clear()
    euxfel._find_layout.cache_clear()
    overrides = [
        "euxfel.proposal=900777",
        "euxfel.runs=[1]",
        f"inference.members=[{beamtime.members[0]}]",
        f"preprocessing.assembly={facility}/agipd.geom",
        *([f"runs.files={files}".replace("{root}", str(facility))] if files else []),
    ]
    words = [word for override in overrides for word in ("--set", override)]
    result = CliRunner().invoke(app, ["check", str(CONFIG), *words])
    assert result.exit_code == 2
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert errors[0].startswith(f"error: {place}: ")
    assert "pip install 'spidask[euxfel]'" in errors[0]
