"""One YAML file a beamtime: its sections, how it is read, and what is refused."""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from spidask.errors import ConfigError

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of all sections: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


S = TypeVar("S", bound=Section)


class Runs(Section):
    """Where the raw frames are."""

    files: Annotated[list[str], Field(min_length=1)]
    """Paths or globs; a run's name is its file's or folder's stem."""
    dataset: str = "entry_1/data_1/data"
    """Path of the stack of frames inside each file."""
    pattern: str | None = None
    """Regular expression with a group ``run``, searched in the file's name; joins files."""
    mask: str | None = None
    """File or ``file:dataset``; ``{run}`` stands for the run's name."""
    mask_good: Literal["nonzero", "zero"] = "nonzero"
    """Which mask values are usable pixels; CXI bit masks use "zero"."""


class Labels(Section):
    """What people, or a simulation, say the frames are."""

    file: str | None = None
    """CSV of ``run,index,label`` for training and validation."""
    truth: str | None = None
    """CSV of the same form, or a glob of several; only report and compare read it."""


class Geometry(Section):
    """Where the detector stands; may differ by run."""

    photon_energy_ev: Positive = 1700.7
    detector_distance_m: Positive = 0.130
    pixel_size_um: Positive = 75.0
    beam_centre_y_px: float = -3.0
    """Row of the beam in the full frame; pixel centres are integers."""
    beam_centre_x_px: float = 511.5
    """Column of the beam in the full frame."""


class Region(Section):
    """Region of interest, rows and columns of the full frame."""

    y: tuple[int, int]
    """First row and the row after the last."""
    x: tuple[int, int]
    """First column and the column after the last."""

    @model_validator(mode="after")
    def _ordered(self) -> Region:
        for name, (start, stop) in (("y", self.y), ("x", self.x)):
            if not 0 <= start < stop:
                raise ValueError(
                    f"{name}: [{start}, {stop}] is no range; give [first, one after the last], "
                    "both counted from 0"
                )
        return self


class CommonMode(Section):
    """Subtraction of the median of each ASIC row's unlit pixels."""

    asic: tuple[Count, Count]
    """Rows and columns of pixels that share one offset."""
    max_adu: Positive
    """Pixels above this count as lit and stay out of the median."""


class Preprocessing(Section):
    """From ADU to photons; may differ by run."""

    region: Region | None = None
    """Nothing means the whole frame."""
    dark: str | None = None
    """``file:dataset`` of a map (y, x) or of a stack of dark frames, whose mean is taken."""
    gain: str | None = None
    """``file:dataset`` of a map (y, x) by which frames are divided."""
    common_mode: CommonMode | None = None
    adu_per_photon: Positive = 1.0
    photon_threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A pixel holds n photons from n - 1 + this many photons on."""
    saturation_adu: Positive | None = None
    """Raw values from here on are missing pixels."""


class Hits(Section):
    """Which frames are hits."""

    threshold: Annotated[float, Field(ge=0)] | Literal["adaptive", "none"] = "adaptive"
    """A hit score, ``adaptive``, or ``none`` for files that hold only hits."""
    lit_photons: Positive = 0.7
    """A pixel above this is lit."""
    n_sigma: Positive = 4.0
    """Adaptive: the threshold is median + n_sigma sigma of a window of frames."""
    window: Annotated[int, Field(ge=100)] = 128
    """Adaptive: frames in a window, counted from the run's first frame."""


class Sizing(Section):
    """Diameter from the sphere fit to the radial average."""

    particle: Literal["sphere", "icosahedron"] = "icosahedron"
    """Model whose offset turns the sphere fit into the volume-equivalent diameter."""
    range_nm: tuple[Positive, Positive] = (25.0, 150.0)
    """Diameters tried."""

    @model_validator(mode="after")
    def _ordered(self) -> Sizing:
        if self.range_nm[0] >= self.range_nm[1]:
            raise ValueError(f"range_nm: {list(self.range_nm)} is empty; give [low, high]")
        return self


class Representation(Section):
    """What a network sees of a pattern."""

    scale: Literal["logarithmic", "linear"] = "logarithmic"
    maximum: Positive = 30.0
    """Photons that map to 1; more are clipped only in the linear scale."""


class Ensemble(Section):
    """Which networks become members."""

    n_members: Annotated[int, Field(ge=1, le=50)] = 5
    kind: Literal["checkpoints", "seeds"] = "checkpoints"
    """Consecutive checkpoints around the best stage, or the best stage of several seeds."""
    spacing: Count = 1
    """Checkpoints from one member to the next."""


class Training(Section):
    """How the networks are trained."""

    runs: list[str] | None = None
    """Runs, or patterns of their names, whose labels train; nothing: drawn with the seed."""
    seed: int = 0
    initial: str = "shipped"
    """Starting weights: ``shipped`` with the package, ``random``, or a member's path."""
    iterations: Count = 600
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.02
    checkpoint_every: Count = 50
    """Iterations between checkpoints, each with its validation F1."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads of a rank; 0 takes every core of the machine."""
    representation: Representation = Representation()
    ensemble: Ensemble = Ensemble()


class Validation(Section):
    """On which labels the stage and the thresholds are chosen."""

    runs: list[str] | None = None
    """Runs, or patterns of their names; nothing: drawn with the seed."""
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the labels drawn where no runs are named."""


class Inference(Section):
    """How frames are classified."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: Count = 64
    """Patterns a network sees at once; the last batch is padded."""
    frames_per_shard: Count = 4096
    """Frames of one task and of one piece of the store."""
    frames_per_block: Annotated[int, Field(ge=0)] = 0
    """Frames read at once; 0 chooses about 100 MiB of raw data."""
    members: list[str] | None = None
    """Files of members to use; nothing: those that the stage `train` makes."""


class Selection(Section):
    """Which frames are selected from the stored labels."""

    size_window_nm: tuple[Positive, Positive] = (55.0, 84.0)
    expected_single_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of single hits among the hits to select from; nothing: as labelled."""

    @model_validator(mode="after")
    def _ordered(self) -> Selection:
        low, high = self.size_window_nm
        if low >= high:
            raise ValueError(f"size_window_nm: [{low:g}, {high:g}] is empty; give [low, high]")
        return self


class Handoff(Section):
    """What orientation determination gets."""

    num_div: Count = 10
    """Dragonfly's refinement of the rotation group."""
    bin: Count = 1
    """Pixels summed along each axis into one."""


class Cluster(Section):
    """Who does the work."""

    kind: Literal["local", "inline"] = "local"
    """Processes of this machine, or no Dask cluster at all."""
    workers: Annotated[int, Field(ge=0)] = 0
    """0: one for each visible GPU, or for every core without one."""


class HitMix(Section):
    """Shares of the classes among simulated hits; normalized to one."""

    single: Fraction = 0.05
    multiple: Fraction = 0.55
    contaminant: Fraction = 0.40

    @model_validator(mode="after")
    def _some(self) -> HitMix:
        if self.single + self.multiple + self.contaminant == 0:
            raise ValueError("all three shares are 0; give at least one of them a share")
        return self


class Sample(Section):
    """What is injected into the beam."""

    particle: str = "icosahedron"
    """``icosahedron`` is PR772; or the path of a PDB or mmCIF file or of an MRC/CCP4 map."""
    map_contour: float | None = None
    """Voxels of a map above this are protein; nothing: values are electrons per cubic angstrom."""
    diameter_nm: Positive = 68.0
    """Volume-equivalent diameter of the icosahedron."""
    diameter_spread_nm: Annotated[float, Field(ge=0)] = 3.5
    """Standard deviation of the diameters."""
    window_nm: tuple[Positive, Positive] = (55.0, 84.0)
    """Size window that contaminants are inside or outside of."""
    contaminants_in_window: Fraction = 0.8
    """Share of the contaminants whose diameter lies inside the window."""


class Beam(Section):
    """Pulses, focus and what they scatter besides the sample."""

    pulse_energy_mj: Positive = 2.0
    transmission: Annotated[float, Field(gt=0, le=1)] = 0.005
    """Share of the pulse that reaches the focus, attenuator included."""
    energy_jitter: Fraction = 0.15
    """Relative standard deviation of the pulse energy."""
    focus_nm: Positive = 1300.0
    """Full width at half maximum of the Gaussian focus."""
    beam_jitter_px: Annotated[float, Field(ge=0)] = 0.5
    """Standard deviation of the beam's position on the detector, along each axis."""
    hit_photons: Positive = 2500.0
    """Fewest photons on the panel that make a hit."""
    stray_photons: Annotated[float, Field(ge=0)] = 2000.0
    """Photons of stray light on the panel at the mean pulse energy."""


class Panel(Section):
    """Electronics of the detector panel."""

    adu_per_photon: Positive = 130.0
    gain_spread: Annotated[float, Field(ge=0, lt=0.3)] = 0.03
    """Relative standard deviation of the pixels' gains."""
    read_noise_adu: Annotated[float, Field(ge=0)] = 14.0
    common_mode_adu: Annotated[float, Field(ge=0)] = 20.0
    """Standard deviation of the offset that 128 columns of a row share in one frame."""
    dark_frames: Annotated[int, Field(ge=2)] = 64
    """Frames of a dark run."""


class Simulation(Section):
    """A beamtime to compute; `run` computes it where its folder is not there yet."""

    folder: str
    """Where the runs, the darks, the mask and the labels go; the truth goes into a subfolder."""
    runs: Count = 3
    frames: Count = 1000
    """Frames of a run."""
    seed: int = 0
    labelled_runs: Annotated[int, Field(ge=0)] = 2
    """The first so many runs are labelled."""
    hit_rate: Fraction = 0.016
    """Share of the frames that hold anything but background."""
    hit_mix: HitMix = HitMix()
    sample: Sample = Sample()
    beam: Beam = Beam()
    panel: Panel = Panel()


class PerRun(Section):
    """Settings that differ for some runs; anything left out is as in the main sections."""

    geometry: dict[str, Any] = {}
    preprocessing: dict[str, Any] = {}


class Config(Section):
    """A whole beamtime."""

    runs: Runs
    output: str
    """Folder for everything that is written."""
    labels: Labels = Labels()
    geometry: Geometry = Geometry()
    preprocessing: Preprocessing = Preprocessing()
    hits: Hits = Hits()
    sizing: Sizing = Sizing()
    training: Training = Training()
    validation: Validation = Validation()
    inference: Inference = Inference()
    selection: Selection = Selection()
    handoff: Handoff = Handoff()
    cluster: Cluster = Cluster()
    simulation: Simulation | None = None
    per_run: dict[str, PerRun] = {}
    """Run name, or a pattern of names, to the settings that differ there."""

    def geometry_of(self, run: str) -> Geometry:
        """Geometry of one run.

        Parameters
        ----------
        run : str
            The run's name.

        Returns
        -------
        Geometry
            The main section with what `per_run` changes for this run.
        """
        return self._merged(run, "geometry", self.geometry)

    def preprocessing_of(self, run: str) -> Preprocessing:
        """Calibration of one run.

        Parameters
        ----------
        run : str
            The run's name.

        Returns
        -------
        Preprocessing
            The main section with what `per_run` changes for this run.
        """
        return self._merged(run, "preprocessing", self.preprocessing)

    def _merged(self, run: str, name: str, main: S) -> S:
        values = main.model_dump()
        for pattern, changes in self.per_run.items():
            if fnmatchcase(run, pattern):
                values.update(getattr(changes, name))
        return type(main).model_validate(values)

    @model_validator(mode="after")
    def _per_run_is_valid(self) -> Config:
        for pattern, changes in self.per_run.items():
            for name in ("geometry", "preprocessing"):
                section = getattr(self, name)
                try:
                    type(section).model_validate({**section.model_dump(), **getattr(changes, name)})
                except ValidationError as error:
                    path = f"per_run.{pattern}.{name}"
                    raise ValueError(_explain(error, type(section), path)) from None
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a beamtime's YAML file.

    Parameters
    ----------
    path : str or pathlib.Path
        The YAML file. Relative paths in it are taken from the folder where the program runs.
    overrides : sequence of str
        Settings of the form ``section.key=value``, the value parsed as YAML.

    Returns
    -------
    Config
        The settings with every default filled in.

    Raises
    ------
    ConfigError
        If the file cannot be read or a setting is unknown or wrong; names the key's path.
    """
    return parse_config(read_settings(path, overrides))


def parse_config(values: dict[str, Any]) -> Config:
    """Check settings that were read before.

    Parameters
    ----------
    values : dict
        Nested sections as plain values.

    Returns
    -------
    Config
        The settings with every default filled in.

    Raises
    ------
    ConfigError
        If a setting is unknown or wrong; one line for each, with the key's path.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, Config)) from None


def read_settings(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file and put overrides into it, without checking names or types.

    Parameters
    ----------
    path : str or pathlib.Path
        The YAML file.
    overrides : sequence of str
        Settings of the form ``section.key=value``, the value parsed as YAML.

    Returns
    -------
    dict
        Nested sections as plain values.

    Raises
    ------
    ConfigError
        If the file cannot be read or parsed, or an override has another form.
    """
    try:
        values = yaml.load(Path(path).read_text(), _Loader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; check the path") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: is no YAML: {error.problem}; correct it") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no sections; expected at least 'runs:' and 'output:'")
    return put_settings(values, overrides)


def put_settings(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Put single settings into nested sections.

    Parameters
    ----------
    values : dict
        Nested sections as plain values; changed in place.
    overrides : sequence of str
        Settings of the form ``section.key=value``, the value parsed as YAML.

    Returns
    -------
    dict
        The same sections.

    Raises
    ------
    ConfigError
        If an override has another form.

    Examples
    --------
    >>> put_settings({}, ["selection.size_window_nm=[50, 90]"])
    {'selection': {'size_window_nm': [50, 90]}}
    """
    for override in overrides:
        _put(values, override)
    return values


def schema_json() -> str:
    """Describe the YAML file to an editor.

    Returns
    -------
    str
        A JSON schema.
    """
    return json.dumps(Config.model_json_schema(), indent=2)


class _Loader(yaml.SafeLoader):
    """Reads YAML, and refuses a key that stands twice: the first would be dropped in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                line = node.value[number][0].start_mark.line + 1
                raise ConfigError(f"{key}: stands twice, again in line {line}; keep one")
        return super().construct_mapping(node, deep)


def _put(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}: expected section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: '{text}' is no YAML value; quote it") from None
    *sections, last = key.strip().split(".")
    for name in sections:
        if values.get(name) is None:
            values[name] = {}
        values = values[name]
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: '{name}' is no section")
    values[last] = value


def _explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    told: dict[str, list[str]] = {}
    for one in error.errors():
        # pydantic adds the names of union branches to the path; only real keys mean something.
        location = [str(part) for part in one["loc"] if _is_key(part)]
        key, message = _explain_one(dict(one), model, location)
        told.setdefault(".".join(filter(None, [prefix, *location, key])), []).append(message)
    # Each branch of a union has its own message about the same value.
    lines = []
    for path, (first, *others) in told.items():
        text = " or ".join([first, *(other.partition(", expected ")[2] for other in others)])
        lines.append(f"{path}: {text}" if path else text)
    return "\n".join(lines)


def _explain_one(
    error: dict[str, Any], model: type[BaseModel], location: list[str]
) -> tuple[str, str]:
    """Give what the message adds to the key's path, and the rest of the message."""
    if error["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(known)}."
        return "", f"unknown key. {hint}"
    if error["type"] == "missing":
        path = ".".join(location)
        return "", f"missing. Give it in the YAML file or with --set {path}=..."
    value = json.dumps(error["input"], default=str)
    if error["type"] in ("model_type", "dict_type"):
        keys = ", ".join(_known_keys(model, location))
        return "", f"{value}, expected a section with any of the keys {keys}; or leave it out"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        # A validator of a section begins its message with the key.
        key, colon, rest = message.partition(": ")
        return (key, rest) if colon and " " not in key else ("", message)
    return "", f"{value}, expected {_say_expected(message)}"


def _say_expected(message: str) -> str:
    text = message.removeprefix("Input should be ").partition(", unable")[0]
    text = text.partition(" after validation")[0].replace("valid list", "list")
    text = re.sub("^(List|Tuple) should have", "a list of", text)
    return f"a number {text}" if text.startswith(("greater", "less")) else text


def _is_key(part: object) -> bool:
    text = str(part)
    return isinstance(part, int) or not (
        text.startswith(("literal[", "constrained", "function-")) or text in ("float", "int", "str")
    )


def _known_keys(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for name in path:
        # The next name is any run's name where a section stands for each run.
        field = model.model_fields.get(name)
        model = (_section_type(field.annotation) if field else None) or model
    return list(model.model_fields)


def _section_type(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in typing.get_args(annotation):
        found = _section_type(inner)
        if found is not None:
            return found
    return None
