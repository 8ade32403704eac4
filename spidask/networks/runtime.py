"""Networks as inference runs them: the same function, sooner."""

from __future__ import annotations

import importlib.util
import logging
import threading
import warnings
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from spidask.config import Precision, Representation, Runtime
from spidask.errors import ClusterError
from spidask.networks.classifier import Classifier, in_single_precision
from spidask.networks.device import in_precision
from spidask.networks.folding import fold_norms
from spidask.networks.fusing import can_fuse, fuse

log = logging.getLogger(__name__)
Forward = Callable[..., Any]

_building = threading.Lock()


class Ready(Classifier):
    """A trained network made ready for one precision; its weights no longer change.

    Parameters
    ----------
    network : Classifier
        In evaluation mode, on its device.
    precision : {"fp32", "bf16"}
        In which it multiplies.
    runtime : {"torch", "openvino"}
        What computes on the CPU.

    Raises
    ------
    ClusterError
        If the runtime is not installed.

    Notes
    -----
    What is given in the shapes of the first batch is computed as by that batch: shapes are looked
    at once, weights are laid out once.
    """

    def __init__(
        self, network: Classifier, precision: Precision = "fp32", runtime: Runtime = "torch"
    ) -> None:
        super().__init__()
        require(runtime)
        self.name, self.batch_on_cpu = network.name, network.batch_on_cpu  # type: ignore[misc]
        self.network, self.precision, self.runtime = network.eval(), precision, runtime
        self._made: dict[tuple[torch.Size, ...], Forward] = {}

    def settings(self) -> dict[str, Any]:
        """Arguments that build the same network.

        Returns
        -------
        dict
            Those of the network given.
        """
        return self.network.settings()

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
        return self.network.see(patterns, representation)

    def sight(self, representation: Representation) -> tuple[Hashable, ...]:
        """Tell networks apart that see patterns differently.

        Parameters
        ----------
        representation : Representation
            Scale, colours and size.

        Returns
        -------
        tuple
            That of the network given.
        """
        return self.network.sight(representation)

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
        return self.network.log_odds(outputs)

    def forward(self, *seen: torch.Tensor) -> Any:
        """Compute as the network does, but for rounding.

        Parameters
        ----------
        *seen
            What `see` gives.

        Returns
        -------
        torch.Tensor or list of torch.Tensor
            In float32.
        """
        shapes = tuple(part.shape for part in seen)
        with _building:  # threads of a worker share its networks
            if shapes not in self._made:
                self._made[shapes] = self._make(seen)
        return in_single_precision(self._made[shapes](*seen))

    def _make(self, seen: tuple[torch.Tensor, ...]) -> Forward:
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        if self.runtime == "openvino":
            return _with_openvino(fold_norms(self.network), seen, self.precision)
        if seen[0].device.type == "cpu":
            if can_fuse(dtype):
                return fuse(self.network, seen, dtype)
            log.info("this torch or processor lacks oneDNN's %s; slower without", self.precision)
        return self._folded

    @cached_property
    def _folded(self) -> Forward:
        network = fold_norms(self.network)
        device = next(network.parameters()).device.type

        def forward(*seen: torch.Tensor) -> Any:
            with in_precision(device, self.precision):
                return network(*seen)

        return forward


def require(runtime: Runtime) -> None:
    """Refuse a runtime that is not installed.

    Parameters
    ----------
    runtime : {"torch", "openvino"}
        As in `inference.runtime`.

    Raises
    ------
    ClusterError
        If it is missing here.
    """
    if runtime == "openvino" and importlib.util.find_spec("openvino") is None:
        raise ClusterError(
            "inference.runtime: the package openvino is not installed here; install "
            "spidask[openvino], or set torch"
        )


def _with_openvino(
    network: nn.Module, seen: tuple[torch.Tensor, ...], precision: Precision
) -> Forward:
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with torch.inference_mode():
        n_outputs = len(outputs) if isinstance(outputs := network(*seen), list) else 0
    with warnings.catch_warnings():
        # Shapes are fixed, so that what is decided by them may be.
        warnings.simplefilter("ignore")
        decoder = TorchScriptPythonDecoder(network, example_input=seen)
    # Not by openvino.convert_model, which tells its maker that it was called.
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    model.reshape({i: list(part.shape) for i, part in enumerate(seen)})
    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            # One thread, as torch has, and not always on the first core.
            "INFERENCE_NUM_THREADS": 1,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        },
    )
    own = threading.local()

    def forward(*given: torch.Tensor) -> Any:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        found = own.request.infer(
            [np.ascontiguousarray(part.numpy()) for part in given], share_inputs=True
        )
        outputs = [torch.from_numpy(found[i].copy()) for i in range(max(n_outputs, 1))]
        return outputs if n_outputs else outputs[0]

    return forward
