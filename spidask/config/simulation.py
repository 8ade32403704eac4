"""The section of the YAML file that says what beamtime to simulate."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from spidask.config.base import Count, Fraction, Positive, Section, Text


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

    folder: Text
    """Where the runs, the darks, the mask and the labels go; the truth goes into a subfolder."""
    runs: Count = 3
    frames: Count = 1000
    """Frames of a run."""
    seed: Annotated[int, Field(ge=0)] = 0
    labelled_runs: Annotated[int, Field(ge=0)] = 2
    """The first so many runs are labelled."""
    hit_rate: Fraction = 0.016
    """Share of the frames that hold anything but background."""
    hit_mix: HitMix = HitMix()
    sample: Sample = Sample()
    beam: Beam = Beam()
    panel: Panel = Panel()
