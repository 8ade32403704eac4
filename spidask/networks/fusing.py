"""Networks on the CPU, each convolution and what follows it done in one pass."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from spidask.frames.convolution import GROUP, KERNEL, MARGIN, convolve_partially
from spidask.networks.picture import PictureConv, fold_channels

ALIGNED = 16
"""Numbers of float32 in the longest vector of a processor."""

Norm = nn.BatchNorm2d
Outputs = Any


def can_fuse(dtype: torch.dtype) -> bool:
    """Tell whether this machine's torch can do it.

    Parameters
    ----------
    dtype : torch.dtype
        In which convolutions multiply.

    Returns
    -------
    bool
        True if it has oneDNN and, for bfloat16, the processor the instructions.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    is_able: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or is_able


def fuse(
    network: nn.Module, seen: tuple[torch.Tensor, ...], dtype: torch.dtype
) -> Callable[..., Outputs]:
    """Join each convolution with the norm, the sum and the activation that follow it.

    Parameters
    ----------
    network : torch.nn.Module
        In evaluation mode, on the CPU; it is left as it is.
    seen : tuple of torch.Tensor
        What it is given, for the shapes.
    dtype : torch.dtype
        In which convolutions multiply, and what they give: float32 or bfloat16. Linear layers
        stay in float32.

    Returns
    -------
    callable
        The same function but for rounding, for arguments of these shapes.

    Notes
    -----
    Norms are multiplied into the weights, which are laid out for oneDNN once; sums and activations
    are done while a convolution's result is still in registers. torch.compile does the same, where
    there is a C++ compiler and half a minute.
    """
    tracer = _Tracer()
    graph = tracer.trace(network)
    traced = fx.GraphModule(tracer.root, graph)
    with torch.inference_mode():
        ShapeProp(traced).propagate(*seen)
    convolutions = [node for node in graph.nodes if _is_convolution(node)]
    sizes = {node: node.args[0].meta["tensor_meta"].shape for node in convolutions}
    for node in list(graph.nodes):
        if node in sizes:
            _fuse_one(traced, node, sizes[node], dtype)
        elif _is_module(node, nn.Linear):
            traced.add_submodule(f"fused_{node.name}", _Linear(_module(node)))
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.call_module(f"fused_{node.name}", node.args))
    graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    # While it traces, torch.fx sends it what modules of all threads do.
    def call_module(self, m: nn.Module, forward: Outputs, args: Any, kwargs: Any) -> Outputs:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, PictureConv) or super().is_leaf_module(module, name)


Geometry = tuple[list[int], list[int], list[int], int]
"""Padding, stride, dilation and groups."""


class _Convolution(nn.Module):
    """A convolution, maybe a sum, maybe an activation."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        geometry: Geometry,
        size: torch.Size,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.dtype, self.bias = dtype, None if bias is None else bias.to(dtype)
        self.geometry = geometry
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight.to(dtype).contiguous(memory_format=torch.channels_last), *geometry, list(size)
        )
        self.activation: tuple[str, list[float]] = ("none", [])

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        x = x.to(self.dtype, memory_format=torch.channels_last)
        name, settings = self.activation
        if other is None:
            out: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, *self.geometry, name, settings, ""
            )
            return out
        summed: torch.Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
            x, other, self.weight, self.bias, *self.geometry, "add", 1.0, name, settings, ""
        )
        return summed


class _Linear(nn.Module):
    """A linear layer that gives a row the same digits wherever it stands in the batch."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        # Rows that begin between vectors are multiplied in another order.
        self.filling = (0, -layer.in_features % ALIGNED)
        self.weight, self.bias = functional.pad(layer.weight, self.filling), layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(functional.pad(x.float(), self.filling), self.weight, self.bias)


class _Rescaled(nn.Module):
    """A partial convolution's scale, its norm and maybe the activation, instead of its result."""

    def __init__(self, shift: torch.Tensor, dtype: torch.dtype, *, is_rectified: bool) -> None:
        super().__init__()
        self.shift = shift.to(dtype)[None, :, None, None]
        self.is_rectified = is_rectified

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        is_one_mask = torch.equal(scale, scale[:1].expand_as(scale))
        scale = scale[:1] if is_one_mask else scale
        # Spread over channels first: the innermost of an operand must not stand still.
        size = (len(scale), *x.shape[1:])
        factors, shift = (
            part.to(x.dtype).expand(n, *size[1:]).contiguous(memory_format=torch.channels_last)
            for part, n in ((scale, len(scale)), (self.shift, 1))
        )
        # In place: nobody else has the convolution's result, and fresh memory costs more than this.
        torch.addcmul(shift, x, factors, out=x)
        return x.relu_() if self.is_rectified else x


class _Partial(nn.Module):
    """A partial convolution of one channel with its scale, its norm and its activation."""

    def __init__(self, weight: torch.Tensor, shift: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.weight, self.shift = weight.detach()[:, 0].numpy(), shift.detach().numpy()

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        out = torch.empty((len(x), *scale.shape[2:], len(self.weight)), dtype=self.dtype)
        bits = out if self.dtype == torch.float32 else out.view(torch.uint16)
        given = x[:, 0].numpy(), self.weight, scale[:, 0].numpy(), self.shift
        convolve_partially(*given, bits.numpy())
        return out.permute(0, 3, 1, 2)


def _fuse_one(traced: fx.GraphModule, node: fx.Node, size: torch.Size, dtype: torch.dtype) -> None:
    weight, bias, geometry = _describe(node, size)
    if bias is None and (found := _scaled_norm(node)):
        _fuse_partial(traced, node, *found, weight, geometry, size, dtype)
        return
    last, args = node, [node.args[0]]
    following = _follower(last)
    if following is not None and _is_module(following, Norm):
        weight, bias = _fold(following, weight, bias)
        last = following
    layer = _Convolution(weight, bias, geometry, size, dtype)
    following = _follower(last)
    if following is not None and _is_call(following, operator.add, torch.add):
        others = [a for a in following.args if isinstance(a, fx.Node) and a is not last]
        after = _follower(following)
        if len(others) == 1 and after is not None and _activation(after):
            last, following = following, after
            args.append(others[0])
    if following is not None and (activation := _activation(following)):
        layer.activation, last = activation, following
    last.replace_all_uses_with(_insert(traced, last, f"fused_{node.name}", layer, *args))


def _fuse_partial(
    traced: fx.GraphModule,
    node: fx.Node,
    scale: Any,
    norm: fx.Node,
    weight: torch.Tensor,
    geometry: Geometry,
    size: torch.Size,
    dtype: torch.dtype,
) -> None:
    weight, shift = _fold(norm, weight, None)
    after = _follower(norm)
    is_rectified = after is not None and _activation(after) == ("relu", [])
    last = after if after is not None and is_rectified else norm
    x, name = node.args[0], f"fused_{node.name}"
    usual = [MARGIN, MARGIN], [2, 2], [1, 1], 1
    is_usual = weight.shape[1:] == (1, KERNEL, KERNEL) and geometry == usual
    if is_usual and is_rectified and len(weight) % GROUP == 0:
        new = _insert(traced, last, name, _Partial(weight, shift, dtype), x, scale)
    else:
        layer = _Convolution(weight, None, geometry, size, dtype)
        rescaled = _Rescaled(shift, dtype, is_rectified=is_rectified)
        new = _insert(traced, last, name, layer, x)
        new = _insert(traced, last, name + "_scale", rescaled, new, scale)
    last.replace_all_uses_with(new)


def _scaled_norm(node: fx.Node) -> tuple[Any, fx.Node] | None:
    """What multiplies a convolution's result, and the norm that takes the product."""
    product = _follower(node)
    if product is None or not _is_call(product, operator.mul, torch.mul):
        return None
    norm = _follower(product)
    if norm is None or not _is_module(norm, Norm) or product.args[0] is not node:
        return None
    return product.args[1], norm


def _insert(
    traced: fx.GraphModule, before: fx.Node, name: str, layer: nn.Module, *args: Any
) -> fx.Node:
    traced.add_submodule(name, layer)
    with traced.graph.inserting_before(before):
        return traced.graph.call_module(name, args)


def _is_convolution(node: fx.Node) -> bool:
    # Layers of other packages call the function.
    return _is_module(node, nn.Conv2d) or _is_call(node, functional.conv2d)


def _describe(
    node: fx.Node, size: torch.Size
) -> tuple[torch.Tensor, torch.Tensor | None, Geometry]:
    """Weight, bias and geometry of a convolution."""
    weight: Any
    layer: Any = _module(node) if node.op == "call_module" else None
    if layer is None:
        given: Any = node.args
        _, *named, stride, padding, dilation, groups = given
        weight, bias = (None if part is None else _attribute(node, part) for part in named)
    else:
        weight, bias, stride, padding = layer.weight, layer.bias, layer.stride, layer.padding
        dilation, groups = layer.dilation, layer.groups
    if isinstance(layer, PictureConv) and size[1] == 1 < layer.in_channels:
        weight = fold_channels(layer.weight)
    return weight, bias, (_pair(padding), _pair(stride), _pair(dilation), groups)


def _pair(number: Any) -> list[int]:
    return [number, number] if isinstance(number, int) else list(number)


def _attribute(node: fx.Node, named: Any) -> torch.Tensor:
    found: torch.Tensor = operator.attrgetter(named.target)(node.graph.owning_module)
    return found


def _fold(
    node: fx.Node, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    norm = _module(node)
    assert isinstance(norm, Norm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return fuse_conv_bn_weights(
        weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


def _activation(node: fx.Node) -> tuple[str, list[float]] | None:
    """What oneDNN calls an activation, and its settings."""
    if _is_call(node, functional.relu, torch.relu) or _is_module(node, nn.ReLU):
        return "relu", []
    if _is_module(node, nn.LeakyReLU):
        return "leaky_relu", [float(_module(node).negative_slope)]  # type: ignore[arg-type]
    if _is_module(node, nn.ReLU6):
        return "hardtanh", [0.0, 6.0]
    return None


def _follower(node: fx.Node) -> fx.Node | None:
    """The only one that takes what a node gives."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _module(node: fx.Node) -> nn.Module:
    owner = node.graph.owning_module
    assert owner is not None
    return owner.get_submodule(str(node.target))


def _is_module(node: fx.Node, *kinds: type[nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(_module(node), kinds)


def _is_call(node: fx.Node, *functions: Any) -> bool:
    return node.op == "call_function" and node.target in functions
