"""The sections of the YAML file that say how frames become a selection."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from spidask.config.base import Count, Positive, Precision, Runtime, Section, Text


class Runs(Section):
    """Where the raw frames are."""

    files: Annotated[list[str], Field(min_length=1)]
    """Paths or globs; a run's name is its file's or folder's stem."""
    dataset: Text = "entry_1/data_1/data"
    """Path of the stack of frames inside each file; the default also finds those of other CXI
    entries, of psocake and of CXIDB 58."""
    shape: Annotated[list[Count], Field(min_length=2, max_length=2)] | Text | None = None
    """Rows and columns of frames in files of Dragonfly's photons, or their detector file."""
    identity: tuple[Text, Text] | None = None
    """Paths of two arrays inside each file of hits that name the original run and the index in
    it; nothing: a frame's run is its file's, its index counts from the run's first frame."""
    pattern: str | None = None
    """Regular expression with a group ``run``, searched in the file's name; joins files."""
    mask: str | None = None
    """File or ``file:dataset``; ``{run}`` stands for the run's name. ``:dataset`` is a mask
    inside the files of the frames, one for each file or for each frame."""
    mask_good: Literal["nonzero", "zero"] = "nonzero"
    """Which mask values are usable pixels; CXI bit masks use "zero"."""
    mask_bits: Annotated[int, Field(ge=0, le=0xFFFFFFFF)] = 0xFFFFFFFF
    """Bits by which the mask beside the frames of a detector of several modules makes a pixel
    missing; 0 leaves that mask alone."""


class EuXFEL(Section):
    """Runs of the European XFEL; `runs.files` and `runs.dataset` go first where they are given."""

    proposal: Count | Text | None = None
    """Number, or folder, of the proposal."""
    runs: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    """Numbers of the runs."""
    data: Literal["raw", "proc"] = "proc"
    """As recorded, or corrected."""
    detector: Text | None = None
    """Name, or pattern of names, such as ``*AGIPD1M*``; nothing: the only one there."""

    @model_validator(mode="after")
    def _some_runs(self) -> EuXFEL:
        if (self.proposal is None) != (not self.runs):
            raise ValueError("runs: give the proposal and its runs together, such as [1, 2]")
        return self


class Events(Section):
    """Small data of the facility, joined to the frames by their time stamps."""

    files: Annotated[list[Text], Field(min_length=1)]
    """Paths or globs of HDF5 files of LCLS-1 or LCLS-2."""
    timestamp: Text | None = None
    """Path of the time stamps; nothing: ``timestamp``, ``event_time`` or ``machineTime``."""
    photon_energy: Text | None = None
    """Path of the photon energies in eV; nothing: the usual names, such as
    ``ebeam/photon_energy``."""
    pulse_energy: Text | None = None
    """Path of the pulse energies in mJ; nothing: the usual names, such as
    ``gas_detector/f_11_ENRC``."""


Meaning = Literal["background", "single", "multiple", "contaminant"] | None


class Labels(Section):
    """What people, or a simulation, say the frames are."""

    file: str | None = None
    """Labels for training and validation: a CSV of ``run,index,label`` or of
    ``exp,run,event_num,label``, a text of one letter a frame (Dragonfly), a CXI file with tags,
    ``file.h5:dataset`` of codes beside event ids, or a selection (output folder or
    selection.csv)."""
    truth: str | None = None
    """Labels in any of these forms, or a glob of several; only report and compare read it."""
    letters: dict[Annotated[str, Field(min_length=1, max_length=1)], Meaning] = Field(
        default_factory=dict
    )
    """Class of each letter; null: no label."""
    codes: dict[int, Meaning] = Field(default_factory=dict)
    """Class of each number; null: no label."""
    tags: dict[Text, Meaning] = Field(default_factory=dict)
    """Class of each CXI tag whose name is no class; null: no label."""
    run: Text | None = None
    """Run of the letters, or of the frames of a CXI file; in a table of ``exp,run,event_num``
    ``{exp}`` and ``{run:04d}`` stand for its columns, and nothing means ``{exp}_{run:04d}``."""


class Geometry(Section):
    """Where the detector stands; may differ by run."""

    photon_energy_ev: Annotated[float, Field(ge=1, le=1e6)] = 1700.7
    detector_distance_m: Annotated[float, Field(ge=1e-3, le=1e3)] = 0.130
    pixel_size_um: Annotated[float, Field(ge=0.1, le=1e5)] = 75.0
    beam_centre_y_px: float = -3.0
    """Row of the beam in the full frame, or in the assembled image, before binning; pixel centres
    are integers. An assembled image's centre and pixel size come from its geometry file if they
    are not given."""
    beam_centre_x_px: float = 511.5
    """Column of the beam, in the same."""


class Region(Section):
    """Region of interest, rows and columns of the full frame or the assembled image."""

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

    assembly: str | None = None
    """CrystFEL geometry file by which an image is assembled from stacked modules."""
    bin: Annotated[int, Field(ge=1, le=1000)] = 1
    """Pixels of the frame, or of the assembled image, summed along each axis into one."""
    region: Region | None = None
    """Of the frame, or of the assembled image; nothing means the whole."""
    dark: str | None = None
    """``file:dataset`` of a map (y, x) or of a stack of dark frames, whose mean is taken."""
    gain: str | None = None
    """``file:dataset`` of a map (y, x) by which frames are divided."""
    common_mode: CommonMode | None = None
    adu_per_photon: Positive = 1.0
    """ADU of a photon of geometry.photon_energy_ev; scaled to each frame's photon energy where
    that is known. 1 says that frames are in photons, whatever their energy."""
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
        low, high = self.range_nm
        if low >= high:
            raise ValueError(f"range_nm: {list(self.range_nm)} is empty; give [low, high]")
        if low < 1 or high > 2000:
            raise ValueError(
                f"range_nm: {list(self.range_nm)} reaches beyond 1 to 2000 nm, for which the fit "
                "is meant; narrow it"
            )
        return self


class Validation(Section):
    """On which labels the stage and the thresholds are chosen."""

    runs: list[str] | None = None
    """Runs, or patterns of their names; nothing: drawn with the seed."""
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the labels drawn where no runs are named."""


class Inference(Section):
    """How frames are classified."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: Annotated[int, Field(ge=1, le=65_536)] | Literal["auto"] = "auto"
    """Patterns a network sees at once; the last batch is padded. ``auto``: as suits the device and
    the network."""
    precision: Precision = "fp32"
    """In which networks multiply."""
    runtime: Runtime = "torch"
    """What computes networks on the CPU; ``openvino`` needs spidask[openvino]."""
    frames_per_shard: Count = 4096
    """Frames of one task and of one piece of the store."""
    frames_per_block: Annotated[int, Field(ge=0)] = 0
    """Frames read at once; 0 chooses about 64 MiB of raw data."""
    members: list[str] | None = None
    """Files of members to use; nothing: those that the stage `train` makes."""
    ensemble: Literal["all", "early_exit"] = "all"
    """Members that see a hit: all, or each only while those before it accept the hit."""

    @model_validator(mode="after")
    def _computes_where_it_can(self) -> Inference:
        if self.runtime == "openvino" and self.device == "cuda":
            raise ValueError("runtime: openvino computes on the CPU, but device is cuda; set torch")
        return self


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
    photons: Literal["hdf5", "binary", "both"] = "hdf5"
    """Dragonfly's file that config.ini names: photons.h5, or photons.emc beside it; or both are
    written and photons.h5 is named."""
    blacklists: list[tuple[Positive, Positive]] = Field(default_factory=list)
    """Further size windows in nm, each with a blacklist of its own."""
    cxi: Literal["copy", "virtual", "none"] = "copy"
    """Selected patterns as photons, as raw frames that stay in the runs' HDF5 files, or not."""
    tables: list[Literal["zarr", "netcdf"]] = Field(default_factory=list)
    """Forms in which the selection with all its variables is written."""
    misses: Annotated[int, Field(ge=0)] = 500
    """Misses read of each run, drawn at random, whose mean is the background."""
    intensity_bins: Annotated[int, Field(ge=1, le=100)] = 4
    """Parts of equal size into which the misses are split by intensity."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Which misses are drawn."""
    detector: Text = "SPB_DET_AGIPD1M-1"
    """Name of the detector in the hit list for the European XFEL."""

    @field_validator("blacklists")
    @classmethod
    def _ordered(cls, windows: list[tuple[float, float]]) -> list[tuple[float, float]]:
        for low, high in windows:
            if low >= high:
                raise ValueError(f"[{low:g}, {high:g}] is empty; give [low, high]")
        return windows


class EM(Section):
    """How expectation maximization classifies hits, to compare the networks with."""

    n_classes: Annotated[int, Field(ge=1, le=1000)] = 10
    n_starts: Annotated[int, Field(ge=1, le=1000)] = 5
    """Random starts, of which the most likely counts."""
    n_steps: Annotated[int, Field(ge=1, le=10_000)] = 60
    """The first 28 are less sharp, so that chance decides less."""
    classes: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    """Classes of single hits; nothing: those that together have the largest F1 on the labelled
    hits."""

    @model_validator(mode="after")
    def _classes_exist(self) -> EM:
        for number in self.classes or ():
            if number >= self.n_classes:
                raise ValueError(
                    f"classes: there is no class {number} among {self.n_classes}; give numbers "
                    f"from 0 to {self.n_classes - 1}"
                )
        return self
