"""The section of the YAML file that says how networks are trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from spidask.config.base import Count, Positive, Precision, Section

PictureSize = Annotated[int, Field(ge=32, le=4096, multiple_of=32)]
PICTURES = ("efficientnet", "yolov2", "yolov3")
"""Architectures that are shown pictures; the others see photons."""
DRAW_BOXES = ("yolov2", "yolov3")
"""Architectures that learn where on the picture a single hit is."""
UNUSED = {"efficientnet": ("width", "first_filter")} | dict.fromkeys(DRAW_BOXES, ("first_filter",))
"""Settings that an architecture does not know."""


class Representation(Section):
    """What a network sees of a pattern."""

    scale: Literal["logarithmic", "linear"] = "logarithmic"
    maximum: Positive | Literal["own"] = 30.0
    """Photons that map to 1; more are clipped in the linear scale and in pictures. ``own``:
    each pattern's largest number, in pictures."""
    colours: Literal["none", "jet", "grey"] = "none"
    """Colour map of a picture; ``none``: numbers, and a mask of the pixels that are there."""
    size: tuple[PictureSize, PictureSize] = (416, 416)
    """Rows and columns of a picture."""

    @model_validator(mode="after")
    def _possible_maximum(self) -> Representation:
        is_picture = self.colours != "none"
        if self.maximum == "own" and not is_picture:
            raise ValueError("maximum: own is for pictures; give photons, or colours jet or grey")
        is_logarithmic = is_picture and self.scale == "logarithmic"
        if is_logarithmic and self.maximum != "own" and self.maximum <= 1:
            raise ValueError(
                f"maximum: {self.maximum:g}, but the logarithmic scale of pictures begins at 1 "
                "photon; give more, or own"
            )
        return self


class Ensemble(Section):
    """Which networks become members."""

    n_members: Annotated[int, Field(ge=1, le=50)] = 5
    kind: Literal["checkpoints", "seeds"] = "checkpoints"
    """Consecutive checkpoints around the best stage, or the best stage of several seeds."""
    spacing: Count = 1
    """Checkpoints from one member to the next."""
    stages: Annotated[list[Count], Field(min_length=1, max_length=50)] | None = None
    """Iterations whose checkpoints are the members, whatever their F1; nothing: around the best."""

    @property
    def n_trained(self) -> int:
        """Number of networks that are trained."""
        return self.n_members if self.kind == "seeds" else 1

    @property
    def size(self) -> int:
        """Number of members: the stages named, of every network."""
        return self.n_trained * len(self.stages) if self.stages else self.n_members


class Training(Section):
    """How the networks are trained."""

    runs: list[str] | None = None
    """Runs, or patterns of their names, whose labels train; nothing: drawn with the seed."""
    architecture: Literal["compact", "resnet18", "efficientnet", "yolov2", "yolov3"] = "compact"
    width: Annotated[float, Field(ge=1 / 16, le=4)] = 1.0
    """Share of the filters of each layer, but for ``efficientnet``."""
    first_filter: Annotated[int, Field(ge=1, le=31)] = 7
    """Edge of the first filter of ``compact`` and ``resnet18`` in pixels, odd."""
    seed: Annotated[int, Field(ge=0)] = 0
    initial: str = "shipped"
    """Starting weights: ``shipped`` with the package (compact), ``random``, ``imagenet``
    (efficientnet), a member's path, or a file of Darknet's (yolov2, yolov3)."""
    iterations: Count = 300
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 64
    subdivisions: Count = 1
    """Pieces of a rank's share of a batch that go through the network one after another."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """``adamw``: the rate rises for a tenth of the iterations and falls as a cosine; ``sgd``:
    momentum 0.9, the rate rises for `burn_in` iterations and falls tenfold at each of `steps`."""
    learning_rate: Positive = 2e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.02
    burn_in: Annotated[int, Field(ge=0)] = 1000
    """Iterations in which the rate of ``sgd`` rises with the fourth power."""
    steps: tuple[Count, ...] = (40_000, 60_000)
    """Iterations at which the rate of ``sgd`` falls."""
    precision: Precision = "fp32"
    """In which the network multiplies; weights and losses stay in single precision."""
    checkpoint_every: Count = 25
    """Iterations between checkpoints, each with its validation F1."""
    ranks: Count = 1
    """Workers that train one network together; each takes its share of every batch."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads of a rank; 0 shares the machine's cores among the ranks on it."""
    timeout_s: Positive = 600.0
    """A rank that shows no progress for so long counts as hung."""
    representation: Representation = Representation()
    ensemble: Ensemble = Ensemble()

    @model_validator(mode="after")
    def _equal_pieces(self) -> Training:
        n_pieces = self.ranks * self.subdivisions
        if self.batch_size % n_pieces:
            raise ValueError(
                f"batch_size: {self.batch_size} patterns cannot be cut into {n_pieces} equal "
                "pieces; give a multiple of ranks times subdivisions"
            )
        if self.batch_size == n_pieces:
            raise ValueError(
                f"batch_size: {self.batch_size} in {n_pieces} pieces of one pattern, which cannot "
                "be normalized by itself; lower ranks or subdivisions"
            )
        return self

    @model_validator(mode="after")
    def _fitting_architecture(self) -> Training:
        is_picture = self.representation.colours != "none"
        if is_picture != (self.architecture in PICTURES):
            wanted = "none" if is_picture else "jet or grey"
            raise ValueError(
                f"representation.colours: {self.representation.colours}, but {self.architecture} "
                f"sees {'numbers' if is_picture else 'pictures'}; set it to {wanted}"
            )
        if self.first_filter % 2 == 0:
            raise ValueError(f"first_filter: {self.first_filter} is even; give an odd number")
        if self.initial == "imagenet" and self.architecture != "efficientnet":
            raise ValueError(
                f"initial: imagenet, but {self.architecture} has no such weights; efficientnet "
                "has, or set it to random"
            )
        for name in UNUSED.get(self.architecture, ()):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name}: {getattr(self, name):g} has no effect on {self.architecture}; "
                    "leave it out"
                )
        if self.ensemble.stages:
            self._refuse_missing_stages(self.ensemble.stages)
        return self

    def _refuse_missing_stages(self, stages: list[int]) -> None:
        every = self.checkpoint_every
        for stage in stages:
            if stage > self.iterations or (stage % every and stage != self.iterations):
                raise ValueError(
                    f"ensemble.stages: {stage} is no checkpoint; there is one after every {every} "
                    f"of {self.iterations} iterations"
                )
