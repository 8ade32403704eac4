"""Each broken config gets one line: the key's path and the remedy; exit code 2, no traceback."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from spidask.cli import app


def spoil_yaml(folder: Path) -> None:
    config = folder / "config.yaml"
    config.write_text(config.read_text() + "runs: [unclosed\n")


def repeat_section(folder: Path) -> None:
    config = folder / "config.yaml"
    config.write_text(config.read_text() + "\nhits: {n_sigma: 5}\n")


def replace_yaml(text: str):
    return lambda folder: (folder / "config.yaml").write_text(text)


def drop(section: str, key: str | None = None):
    def spoil(folder: Path) -> None:
        values = yaml.safe_load((folder / "config.yaml").read_text())
        del (values if key is None else values[section])[key or section]
        (folder / "config.yaml").write_text(yaml.safe_dump(values))

    return spoil


def write_labels(text: str):
    return lambda folder: (folder / "wrong.csv").write_text(text)


def write_mask(shape: tuple[int, ...], value: int = 1):
    return lambda folder: np.save(folder / "wrong.npy", np.full(shape, value))


def write_garbage(folder: Path) -> None:
    (folder / "garbage.h5").write_bytes(b"this is no HDF5 file")


def copy_run(folder: Path) -> None:
    (folder / "again").mkdir()
    shutil.copy(folder / "r0001.h5", folder / "again" / "r0001.h5")


ONE_CLASS = "run,index,label\n" + "".join(f"r000{r},{i},single\n" for r in (1, 2) for i in range(9))

PICTURES = ("training.architecture=yolov2", "training.representation.colours=jet")

# Name: --set values, what to do with the folder before, the key's path, a word of the remedy.
BROKEN = {
    "unknown section": (["trainig={}"], None, "trainig", "Did you mean 'training'"),
    "unknown key": (["training.batchsize=8"], None, "training.batchsize", "'batch_size'"),
    "unknown key two deep": (
        ["training.ensemble.members=3"],
        None,
        "training.ensemble.members",
        "'n_members'",
    ),
    "unlike any key": (["hits.zzz=1"], None, "hits.zzz", "Known: threshold, lit_photons"),
    "wrong type": (["training.iterations=many"], None, "training.iterations", "integer"),
    "section is a number": (["training=5"], None, "training", "leave it out"),
    "section is empty": (["hits="], None, "hits", "leave it out"),
    "files are no list": (["runs.files=r1.h5"], None, "runs.files", "list"),
    "files are an empty list": (["runs.files=[]"], None, "runs.files", "at least 1"),
    "no runs": ([], drop("runs"), "runs", "--set runs"),
    "no files": ([], drop("runs", "files"), "runs.files", "--set runs.files"),
    "no output": ([], drop("output"), "output", "--set output"),
    "region reversed": (["preprocessing.region.y=[30, 10]"], None, "preprocessing.region", "first"),
    "region negative": (["preprocessing.region.x=[-5, 10]"], None, "preprocessing.region", "first"),
    "region of three": (["preprocessing.region.x=[1, 2, 3]"], None, "preprocessing.region.x", "2"),
    "region outside": (
        ["preprocessing.region.y=[0, 100]"],
        None,
        "preprocessing.region.y",
        "has 40 pixels along y",
    ),
    "region too small": (
        ["preprocessing.region.y=[0, 1]", "hits.threshold=0.1"],
        None,
        "preprocessing.region",
        "at least 8",
    ),
    "region masked": (
        ["runs.mask={folder}/wrong.npy"],
        write_mask((40, 48), 0),
        "runs.mask",
        "runs.mask_good",
    ),
    "photon threshold": (
        ["preprocessing.photon_threshold=1.5"],
        None,
        "preprocessing.photon_threshold",
        "less than or equal to 1",
    ),
    "fraction": (
        ["selection.expected_single_fraction=2"],
        None,
        "selection.expected_single_fraction",
        "less than 1",
    ),
    "hit threshold negative": (["hits.threshold=-5"], None, "hits.threshold", "or equal to 0"),
    "hit threshold a word": (["hits.threshold=often"], None, "hits.threshold", "'adaptive'"),
    "hit threshold too high": (["hits.threshold=1440"], None, "hits.threshold", "adaptive"),
    "hit threshold a boolean": (["hits.threshold=off"], None, "hits.threshold", "quote a word"),
    "hit threshold infinite": (["hits.threshold=.inf"], None, "hits.threshold", "'adaptive'"),
    "whole number a boolean": (["training.iterations=on"], None, "training.iterations", "number"),
    "pair with a boolean": (["sizing.range_nm=[yes, 9]"], None, "sizing.range_nm", "no boolean"),
    "section is a boolean": (["hits=off"], None, "hits", "leave it out"),
    "too many": (["training.iterations=99999999999999999"], None, "training.iterations", "less"),
    "batch too large": (["inference.batch_size=1000000000"], None, "inference.batch_size", "less"),
    "tiny pixels": (["geometry.pixel_size_um=1e-300"], None, "geometry.pixel_size_um", "greater"),
    "sizes of no fit": (["sizing.range_nm=[0.001, 1e6]"], None, "sizing.range_nm", "narrow it"),
    "class beyond the last": (["em.classes=[2, 10]"], None, "em.classes", "from 0 to 9"),
    "classes of nothing": (["em.classes=[]"], None, "em.classes", "at least 1"),
    "window a number": (["selection.size_window_nm=60"], None, "selection.size_window_nm", "list"),
    "bin beyond the region": (["handoff.bin=500"], None, "handoff.bin", "lower it"),
    "weights of photographs for another network": (
        ["training.initial=imagenet"],
        None,
        "training.initial",
        "set it to random",
    ),
    "pieces of one pattern": (
        ["training.subdivisions=16"],
        None,
        "training.batch_size",
        "lower ranks or subdivisions",
    ),
    "a setting that a network does not know": (
        [*PICTURES, "training.first_filter=3"],
        None,
        "training.first_filter",
        "no effect on yolov2",
    ),
    "a maximum below the logarithmic scale": (
        [*PICTURES, "training.representation.maximum=1"],
        None,
        "training.representation.maximum",
        "or own",
    ),
    "photons of another form": (["handoff.photons=text"], None, "handoff.photons", "'binary'"),
    "blacklist of nothing": (
        ["handoff.blacklists=[[84, 55]]"],
        None,
        "handoff.blacklists",
        "give [low, high]",
    ),
    "background in no bins": (
        ["handoff.intensity_bins=0"],
        None,
        "handoff.intensity_bins",
        "greater than or equal to 1",
    ),
    "table of another form": (["handoff.tables=[csv]"], None, "handoff.tables", "'netcdf'"),
    "scale of other weights": (
        ["training.representation.scale=linear", "training.initial=shipped"],
        None,
        "training.representation",
        "training.initial to random",
    ),
    "output empty": (["output="], None, "output", "string"),
    "output an empty text": (["output=''"], None, "output", "at least 1"),
    "dataset empty": (["runs.dataset=''"], None, "runs.dataset", "at least 1"),
    "frames of one edge": (["runs.shape=[5]"], None, "runs.shape", "a list of at least 2"),
    "frames of no detector": (
        ["runs.shape={folder}/garbage.h5"],
        write_garbage,
        "runs.shape",
        "is no detector file of Dragonfly",
    ),
    "identity of one": (["runs.identity=[run]"], None, "runs.identity.1", "missing"),
    "letter of no class": (["labels.letters={a: virus}"], None, "labels.letters.a", "'single'"),
    "letters of two": (["labels.letters={ab: single}"], None, "labels.letters", "1 character"),
    "code that is a word": (["labels.codes={one: single}"], None, "labels.codes", "integer"),
    "events of nothing": (["events.files=[]"], None, "events.files", "at least 1"),
    "events without time stamps": (
        ["events.files=[{folder}/r0001.h5]"],
        None,
        "events.files",
        "leave the section out",
    ),
    "key without a section": ([".a=1"], None, "--set .a=1", "expected section.key=value"),
    "region of a run without x": (
        ["per_run={r0001: {preprocessing: {region: {y: [0, 5]}}}}"],
        None,
        "per_run.r0001.preprocessing.region.x",
        "--set per_run.r0001.preprocessing.region.x=...",
    ),
    "mask a folder": (["runs.mask={folder}"], None, "runs.mask", "file.h5:dataset"),
    "seed negative": (["training.seed=-1"], None, "training.seed", "or equal to 0"),
    "seed of the simulation": (
        ["simulation={folder: x, seed: -1}"],
        None,
        "simulation.seed",
        "or equal to 0",
    ),
    "no number": (
        ["geometry.beam_centre_y_px=.nan"],
        None,
        "geometry.beam_centre_y_px",
        "NaN, expected a finite number",
    ),
    "no number in a run": (
        ["per_run={r0001: {geometry: {beam_centre_y_px: .nan}}}"],
        None,
        "per_run.r0001.geometry.beam_centre_y_px",
        "a finite number",
    ),
    "size window reversed": (
        ["selection.size_window_nm=[84, 55]"],
        None,
        "selection.size_window_nm",
        "[low, high]",
    ),
    "size window negative": (
        ["selection.size_window_nm=[-10, 55]"],
        None,
        "selection.size_window_nm",
        "greater than 0",
    ),
    "size window never reached": (
        ["selection.size_window_nm=[200, 300]"],
        None,
        "selection.size_window_nm",
        "sizing.range_nm",
    ),
    "device": (["inference.device=gpu"], None, "inference.device", "'cpu'"),
    "openvino on a GPU": (
        ["inference.device=cuda", "inference.runtime=openvino"],
        None,
        "inference.runtime",
        "computes on the CPU",
    ),
    "batch of nothing": (["inference.batch_size=0"], None, "inference.batch_size", "equal to 1"),
    "distance": (
        ["geometry.detector_distance_m=-0.13"],
        None,
        "geometry.detector_distance_m",
        "greater than or equal to 0.001",
    ),
    "no YAML": ([], spoil_yaml, "config.yaml", "line"),
    "section twice": ([], repeat_section, "hits", "twice"),
    "a list": ([], replace_yaml("- runs\n- output\n"), "config.yaml", "'runs:'"),
    "an empty file": ([], replace_yaml(""), "config.yaml", "'runs:'"),
    "no config": ([], lambda folder: (folder / "config.yaml").unlink(), "config.yaml", "No such"),
    "override without =": (["hits.n_sigma"], None, "--set hits.n_sigma", "section.key=value"),
    "override into a value": (["output.folder=x"], None, "--set output.folder=x", "no section"),
    "override is no YAML": (["output=[a"], None, "--set output=[a", "quote it"),
    "pattern without group": (
        ["runs.pattern=r[0-9]+"],
        None,
        "runs.pattern",
        "(?P<run>...)",
    ),
    "pattern is no expression": (["runs.pattern='(?P<run>r'"], None, "runs.pattern", "regular"),
    "no runs of a proposal": (["euxfel.proposal=1"], None, "euxfel.runs", "[1, 2]"),
    "data of the facility": (["euxfel.data=corrected"], None, "euxfel.data", "'proc'"),
    "geometry file missing": (
        ["preprocessing.assembly=none.geom"],
        None,
        "preprocessing.assembly",
        "correct the path",
    ),
    "bin": (["preprocessing.bin=0"], None, "preprocessing.bin", "greater than"),
    "region cuts bins": (["preprocessing.bin=5"], None, "preprocessing.region", "multiples"),
    "mask bits": (["runs.mask_bits=-1"], None, "runs.mask_bits", "greater than"),
    "nothing matches": (["runs.files=[{folder}/x*.h5]"], None, "runs.files", "matches nothing"),
    "runs of one name": (
        ["runs.files=[{folder}/r0001.h5, {folder}/again/r0001.h5]"],
        copy_run,
        "runs.files",
        "runs.pattern",
    ),
    "dataset": (["runs.dataset=wrong"], None, "r0001.h5", "it holds data; set runs.dataset"),
    "mask missing": (["runs.mask={folder}/none.npy"], None, "runs.mask", "correct the path"),
    "mask unreadable": (["runs.mask={folder}/garbage.h5:m"], write_garbage, "runs.mask", "HDF5"),
    "mask of another shape": (
        ["runs.mask={folder}/wrong.npy"],
        write_mask((20, 48)),
        "runs.mask",
        "expected (40, 48)",
    ),
    "gain of another shape": (
        ["preprocessing.gain={folder}/wrong.npy"],
        write_mask((48, 40)),
        "preprocessing.gain",
        "expected (40, 48)",
    ),
    "dark without dataset": (
        ["preprocessing.dark={folder}/r0001.h5:dark"],
        None,
        "preprocessing.dark",
        "it holds data",
    ),
    "per_run unknown key": (
        ["per_run={r0001: {geometry: {distance: 1}}}"],
        None,
        "per_run.r0001.geometry.distance",
        "'detector_distance_m'",
    ),
    "per_run unknown section": (
        ["per_run={r0001: {hits: {n_sigma: 3}}}"],
        None,
        "per_run.r0001.hits",
        "Known: geometry, preprocessing",
    ),
    "per_run region": (
        ["per_run={r0002: {preprocessing: {region: {y: [0, 20], x: [4, 44]}}}}"],
        None,
        "per_run",
        "must share one",
    ),
    "no labels": (["labels.file="], None, "labels.file", "run,index,label"),
    "labels missing": (["labels.file={folder}/none.csv"], None, "labels.file", "give a path"),
    "labels of an unknown class": (
        ["labels.file={folder}/wrong.csv"],
        write_labels("run,index,label\nr0001,0,singel\n"),
        "labels.file",
        "known: background, single",
    ),
    "labels without a column": (
        ["labels.file={folder}/wrong.csv"],
        write_labels("run,label\nr0001,single\n"),
        "labels.file",
        "expected run,index,label",
    ),
    "labels of frames that are not there": (
        ["labels.file={folder}/wrong.csv"],
        write_labels("run,index,label\nr0001,0,single\nr0001,9999,single\n"),
        "labels.file",
        "r0001 9999",
    ),
    "labels of one class": (
        ["labels.file={folder}/wrong.csv"],
        write_labels(ONE_CLASS),
        "training.runs",
        "both are needed",
    ),
    "truth missing": (["labels.truth={folder}/none.csv"], None, "labels.truth", "give a path"),
    "truth by event ids": (
        ["labels.truth={folder}/wrong.csv"],
        write_labels("timestamp,label\n5,single\n"),
        "labels.truth",
        "give a table of run,index,label",
    ),
    "runs that match nothing": (
        ["training.runs=[r9*]"],
        None,
        "training.runs",
        "those are r0001, r0002",
    ),
    "runs on both sides": (["validation.runs=[r*]"], None, "training.runs", "validation.runs"),
    "ensemble": (
        ["training.ensemble.n_members=9"],
        None,
        "training.ensemble",
        "lower training.checkpoint_every",
    ),
    "start missing": (["training.initial=none"], None, "training.initial", "random, or shipped"),
    "members missing": (
        ["inference.members=[none.safetensors]"],
        None,
        "inference.members",
        "the path of a member",
    ),
    "members damaged": (
        ["inference.members=[{folder}/garbage.h5]"],
        write_garbage,
        "inference.members",
        "the path of a member",
    ),
    "no CUDA": (["inference.device=cuda"], None, "inference.device", "use auto or cpu"),
    "output is a file": (["output={folder}/r0001.h5"], None, "output", "choose another output"),
    "nothing to simulate": (
        ["simulation={folder: x, hit_mix: {single: 0, multiple: 0, contaminant: 0}}"],
        None,
        "simulation.hit_mix",
        "give at least one",
    ),
    "particle missing": (
        ["simulation={folder: x, sample: {particle: none.pdb}}"],
        None,
        "simulation.sample.particle",
        "give icosahedron",
    ),
}


@pytest.fixture
def folder(beamtime, tmp_path):
    """A folder with a config of the shared beamtime that `check` is content with."""
    for path in beamtime.folder.glob("r*.h5"):
        (tmp_path / path.name).symlink_to(path)
    config = beamtime.config(tmp_path / "out", runs={"files": [f"{tmp_path}/r*.h5"]})
    values = config.model_dump(mode="json", exclude_none=True)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


def call(command, folder, overrides=()):
    words = [
        word for text in overrides for word in ("--set", text.replace("{folder}", f"{folder}"))
    ]
    return CliRunner().invoke(app, [command, str(folder / "config.yaml"), *words])


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_config_gets_one_line(name, command, folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    overrides, spoil, key, remedy = BROKEN[name]
    if spoil:
        spoil(folder)
    result = call(command, folder, overrides)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    lines = result.output.splitlines()
    found = [line for line in lines if line.startswith("error: ")]
    assert len(found) == 1 or name == "dataset", result.output
    assert key in found[0].split(": ", 1)[1].partition(": ")[0]
    assert remedy in found[0]
    assert "Traceback" not in result.output
    assert not (folder / "out").exists()


def test_the_config_is_sound_before_it_is_broken(folder):
    result = call("check", folder)
    assert result.exit_code == 0
    assert result.output == "no problems\n"


def test_all_problems_come_at_once(folder):
    result = call("check", folder, ["training.ensemble.n_members=9", "labels.truth=none.csv"])
    places = [line.split(": ")[:2] for line in result.output.splitlines()]
    assert places == [["error", "labels.truth"], ["error", "training.ensemble"]]


def test_all_wrong_settings_come_at_once(folder):
    result = call("check", folder, ["hits.window=1", "training.seeds=1"])
    assert result.output.count("\n") == 2
    assert "hits.window" in result.output
    assert "training.seeds" in result.output
