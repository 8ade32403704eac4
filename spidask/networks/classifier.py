"""What all networks have in common: they see patterns, tell single hits from others, and learn."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from spidask.config import Representation
from spidask.networks.representation import represent
from spidask.schema import CLASSES

SINGLE = CLASSES.index("single")
SMOOTHING = 0.05
"""Share of a label spread over all classes (Szegedy et al. 2016, arXiv:1512.00567)."""


@dataclass(frozen=True)
class Batch:
    """Labelled patterns on the device.

    Attributes
    ----------
    patterns : torch.Tensor
        Shape (frame, y, x), float32, photons, NaN where missing.
    classes : torch.Tensor
        Codes into schema.CLASSES, shape (frame,), int64.
    boxes : torch.Tensor or None
        Around the signal, shape (frame, 4): centre x, centre y, width and height, relative to the
        pattern; networks that draw no boxes go without.
    """

    patterns: torch.Tensor
    classes: torch.Tensor
    boxes: torch.Tensor | None = None


class Classifier(nn.Module):
    """A network with one output for each class; others override what differs."""

    name: ClassVar[str]
    """As in `training.architecture`."""
    batch_on_cpu: ClassVar[int] = 1
    """Patterns at once; more gain little where each keeps the caches busy, and a hit in a block
    without others waits for all of them."""

    def settings(self) -> dict[str, Any]:
        """Arguments that build the same network.

        Returns
        -------
        dict
            Keyword arguments of the class; JSON can hold them.
        """
        raise NotImplementedError

    def see(
        self, patterns: torch.Tensor, representation: Representation
    ) -> tuple[torch.Tensor, ...]:
        """Turn patterns into what `forward` takes.

        Parameters
        ----------
        patterns
            Shape (frame, y, x), float32, photons, NaN where missing.
        representation : Representation
            Scale, colours and size.

        Returns
        -------
        tuple of torch.Tensor
            Arguments of `forward`.
        """
        return represent(patterns, representation)

    def sight(self, representation: Representation) -> tuple[Hashable, ...]:
        """Tell networks apart that see patterns differently.

        Parameters
        ----------
        representation : Representation
            Scale, colours and size.

        Returns
        -------
        tuple
            Equal for networks whose `see` gives the same of all patterns.
        """
        return type(self).see, representation

    def log_odds(self, outputs: Any) -> torch.Tensor:
        """Give the log odds of a single hit against all other classes.

        Parameters
        ----------
        outputs
            What `forward` gives.

        Returns
        -------
        torch.Tensor
            Shape (frame,).
        """
        return single_logit(outputs)

    def losses(
        self,
        outputs: Any,
        batch: Batch,
        representation: Representation,  # noqa: ARG002
        seen: int,  # noqa: ARG002
    ) -> dict[str, torch.Tensor]:
        """Compute the loss, term by term; it is their sum.

        Parameters
        ----------
        outputs
            What `forward` gives.
        batch : Batch
            What was seen, and what it is.
        representation : Representation
            How it was seen.
        seen : int
            Patterns that training had shown before.

        Returns
        -------
        dict
            Name to a mean over the patterns.
        """
        found = functional.cross_entropy(outputs, batch.classes, label_smoothing=SMOOTHING)
        return {"classification": found}


def in_single_precision(outputs: Any) -> Any:
    """Give outputs in float32.

    Parameters
    ----------
    outputs : torch.Tensor or list of torch.Tensor
        Of a network, in any precision.

    Returns
    -------
    torch.Tensor or list of torch.Tensor
        The same.
    """
    if isinstance(outputs, torch.Tensor):
        return outputs.float()
    return [output.float() for output in outputs]


def single_logit(outputs: torch.Tensor) -> torch.Tensor:
    """Log odds of a single hit against all other classes.

    Parameters
    ----------
    outputs : torch.Tensor
        Network outputs, shape (frame, class), in the order of schema.CLASSES.

    Returns
    -------
    torch.Tensor
        Shape (frame,).

    Examples
    --------
    >>> round(float(single_logit(torch.zeros(1, 4))), 4)  # log(1/3)
    -1.0986
    """
    others = [i for i in range(len(CLASSES)) if i != SINGLE]
    return outputs[:, SINGLE] - torch.logsumexp(outputs[:, others], 1)
