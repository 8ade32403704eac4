"""The networks that can be members, by name, and how each begins."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spidask.config import DRAW_BOXES, Training
from spidask.errors import DataError
from spidask.networks import compact
from spidask.networks.classifier import Classifier
from spidask.networks.compact import Compact
from spidask.networks.darknet import read_weights
from spidask.networks.efficientnet import EfficientNet
from spidask.networks.representation import stretch_of
from spidask.networks.resnet import ResNet18
from spidask.networks.yolo import CELL, Yolo, YoloV2, YoloV3, choose_anchors

log = logging.getLogger(__name__)
ARCHITECTURES: dict[str, type[Classifier]] = {
    network.name: network for network in (Compact, ResNet18, EfficientNet, YoloV2, YoloV3)
}


def rebuild(name: str, settings: dict[str, Any]) -> Classifier:
    """Build a network again, without its weights.

    Parameters
    ----------
    name : str
        As of `Classifier.name`.
    settings : dict
        As of `Classifier.settings`.

    Returns
    -------
    Classifier
        The network.

    Raises
    ------
    DataError
        If there is no such network.
    """
    if name not in ARCHITECTURES:
        raise DataError(f"architecture '{name}' is not known; known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name](**settings)


def new_network(
    settings: Training, boxes: npt.NDArray[np.float32] | None, shape: tuple[int, int]
) -> Classifier:
    """Build the network that a config asks for, from random numbers or published weights.

    Parameters
    ----------
    settings : Training
        Architecture, width, representation and, for published weights, `initial`.
    boxes : numpy.ndarray or None
        Of the single hits that train, for the anchors of YOLO, shape (box, 4), relative to the
        pattern.
    shape : tuple of int
        Rows and columns of a pattern.

    Returns
    -------
    Classifier
        In training mode.

    Raises
    ------
    DataError
        If a file of weights does not fit.
    """
    wide, representation = settings.width, settings.representation
    match settings.architecture:
        case "compact":
            return Compact(
                _scale(compact.WIDTHS, wide),
                _scale(compact.AUTOCORRELATION_WIDTHS, wide),
                kernel=settings.first_filter,
                hidden=_scale([compact.HIDDEN], wide)[0],
                stretch=stretch_of(representation),
            )
        case "resnet18":
            return ResNet18(wide, settings.first_filter)
        case "efficientnet":
            return EfficientNet(pretrained=settings.initial == "imagenet")
    assert boxes is not None
    kind = YoloV2 if settings.architecture == "yolov2" else YoloV3
    anchors = choose_anchors(boxes, shape, representation, kind.n_anchors)
    network: Yolo = kind(wide, (anchors / CELL if kind is YoloV2 else anchors).tolist())
    if is_darknet(settings):
        n_filled = read_weights(network.darknet, settings.initial, prefix=True)
        n_all = len(list(network.darknet.convolutions()))
        log.info("%s fills %d of %d convolutions", settings.initial, n_filled, n_all)
    return network


def is_darknet(settings: Training) -> bool:
    """Tell whether a network begins with a file of Darknet's.

    Parameters
    ----------
    settings : Training
        Architecture and starting weights.

    Returns
    -------
    bool
        True for YOLO networks whose `initial` names a file that is no member's.
    """
    is_file = settings.initial not in ("random", "shipped", "imagenet")
    is_member = Path(settings.initial).suffix == ".safetensors"
    return settings.architecture in DRAW_BOXES and is_file and not is_member


def _scale(filters: Sequence[int], width: float) -> list[int]:
    return [max(2, round(n * width)) for n in filters]
