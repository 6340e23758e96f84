"""Layers inside a network: found by name or by what they give, and their output captured."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pytest_triguard.engine.backward_rules import operator_name
from pytest_triguard.engine.model import Model
from pytest_triguard.errors import InputError, InputTypeError, ModelError
from pytest_triguard.validation import describe

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Method = TypeVar("Method", bound="DataclassInstance")

_NAMES = """
    conv2d conv_transpose2d max_pool2d adaptive_max_pool2d fractional_max_pool2d avg_pool2d
    adaptive_avg_pool2d lp_pool2d interpolate pixel_shuffle pixel_unshuffle
"""
_ON_IMAGES = frozenset(_NAMES.split())
"""Operators that take their input for an image `(N, C, h, w)`."""

Layer = str | nn.Module
"""A layer as users name it: a module of the network, or its dotted name."""

_SHOWN = 5
"""Names shown where one is unknown."""


class Captured:
    """What a layer gave when it was last called.

    Args:
        layer: The layer, for messages.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._output: Any = None

    @property
    def output(self) -> Tensor:
        """The last output, part of the autograd graph of the forward pass.

        Raises:
            InputError: If the layer took no part in the forward pass, or gave no tensor.
        """
        kind = type(self._layer).__name__
        if self._output is None:
            raise InputError(
                f"layer must take part in the forward pass, but this {kind} was never called"
            )
        if not isinstance(self._output, Tensor):
            raise InputError(
                f"layer must give one tensor, but this {kind} gave "
                f"{describe(type(self._output).__name__)}"
            )
        return self._output

    def take(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Keep an output; the network goes on with a copy, so that nothing overwrites it."""
        self._output = output
        return output.clone() if isinstance(output, Tensor) else None

    def cut(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Keep an output without its graph; the network goes on from there, with a new one."""
        if isinstance(output, Tensor) and output.dtype.is_floating_point:
            refuse_transformed(module, output)
            output = output.detach().requires_grad_()
        return self.take(module, inputs, output)


@contextmanager
def capture(layer: nn.Module) -> Iterator[Captured]:
    """Capture what a layer gives in the forward passes inside the block.

    Args:
        layer: A module of the network.

    Yields:
        An object whose `output` is what the layer gave last.
    """
    captured = Captured(layer)
    handle = watched(layer).register_forward_hook(captured.take)
    try:
        yield captured
    finally:
        handle.remove()


@contextmanager
def capture_input(layer: nn.Module) -> Iterator[Captured]:
    """Capture the first thing a layer is given, as `capture` does what it gives."""
    captured = Captured(layer)

    def take(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (captured.take(module, inputs, inputs[0]), *inputs[1:])

    handle = watched(layer).register_forward_pre_hook(take)
    try:
        yield captured
    finally:
        handle.remove()


@contextmanager
def cut(layer: nn.Module) -> Iterator[Captured]:
    """Capture what a layer gives, and begin the autograd graph there in the block.

    What runs before the layer leaves no graph, so that a gradient costs what comes behind it.

    Args:
        layer: A module of the network.

    Yields:
        An object whose `output` is what the layer gave last, a leaf of the graph.
    """
    captured = Captured(layer)
    handle = watched(layer).register_forward_hook(captured.cut)
    try:
        yield captured
    finally:
        handle.remove()


def watched(layer: nn.Module) -> nn.Module:
    """Return a layer whose calls can be watched.

    Raises:
        ModelError: If it is a ScriptModule, which takes no hooks.
    """
    if isinstance(layer, torch.jit.ScriptModule):
        raise ModelError(
            "the module must let its layers be watched, but its "
            f"{getattr(layer, 'original_name', type(layer).__name__)} is a ScriptModule; give the "
            "module that it was made from"
        )
    return layer


def refuse_transformed(layer: nn.Module, output: Tensor) -> None:
    """Refuse a layer that runs inside `torch.vmap` or its like, where no gradient can be caught.

    Raises:
        ModelError: If it does.
    """
    if torch._C._functorch.is_functorch_wrapped_tensor(output):
        raise ModelError(
            "the module must call its layers on whole batches to let them be watched, but its "
            f"{type(layer).__name__} runs inside a transform of torch.func, such as torch.vmap"
        )


def check_layer(layer: Any) -> None:
    """Refuse what can be no layer of any network.

    Raises:
        InputTypeError: If it is neither a name nor a module.
    """
    if not isinstance(layer, str | nn.Module):
        raise InputTypeError(
            f"layer must be a module or its dotted name, but {describe(layer)} came"
        )


def find_layer(module: nn.Module, layer: Layer) -> nn.Module:
    """Return the layer that a user names.

    Args:
        module: The network.
        layer: A module inside it, or its dotted name, such as `"layer4.1.conv2"`.

    Raises:
        InputTypeError: If `layer` is neither a name nor a module.
        InputError: If the network has no such layer; the nearest names are shown.
    """
    check_layer(layer)
    if isinstance(layer, nn.Module):
        if all(each is not layer for each in module.modules()):
            raise InputError(
                "layer must be a module of the classifier, but a "
                f"{type(layer).__name__} that is no part of it came"
            )
        return layer
    named = module.named_modules(remove_duplicate=False)
    known: dict[str, nn.Module] = {name: each for name, each in named if name}
    if layer not in known:
        near = difflib.get_close_matches(layer, known, n=_SHOWN, cutoff=0.4)
        shown = ", ".join(repr(name) for name in near or list(known)[:_SHOWN])
        which = "nearest" if near else "first"
        known_ones = f"the {which} of its {len(known)} layers: {shown}" if known else "it has none"
        raise InputError(
            f"layer must name a module of the classifier, but {layer!r} came ({known_ones})"
        )
    return known[layer]


def layer_name(module: nn.Module, layer: nn.Module) -> str:
    """Return the dotted name of a layer of the network; the network itself has the empty name."""
    names: dict[nn.Module, str] = {each: name for name, each in module.named_modules()}
    return names[layer]


def named_layers(method: Method, module: nn.Module) -> Method:
    """Return a method with the dotted names of the layers it was given, to use on another network.

    Args:
        method: A dataclass, which may hold others that hold layers, such as an attack.
        module: The network whose layers they are.

    Raises:
        InputError: If one is a layer of another network.
    """
    changed: dict[str, Any] = {}
    for each in fields(method):
        value = getattr(method, each.name)
        if isinstance(value, nn.Module):
            changed[each.name] = layer_name(module, find_layer(module, value))
        elif is_dataclass(value) and not isinstance(value, type):
            named = named_layers(value, module)
            changed |= {} if named is value else {each.name: named}
    return replace(method, **changed) if changed else method


@torch.no_grad()
def last_spatial_layer(model: Model, inputs: Tensor, *, share: float = 0.0) -> nn.Module | None:
    """Return the layer that finishes last among those with a spatial output.

    A layer has a spatial output if that is one tensor `(N, C, h, w)` with more than one place, one
    row for each sample, and some convolution, pooling or resizing of the network takes or gives
    images of that height and width. The matrices of attention are no images, nor are channels that
    come last.
    One forward pass with one sample tells, the first time that it is asked.

    Args:
        model: The network.
        inputs: `(N, C, H, W)` inputs on the model's device, of which the first is used.
        share: Least height and width of the output, as a share of the input's.

    Returns:
        The layer, the outermost where several finish together, or None if there is none.
    """
    asked = ("last spatial layer", tuple(inputs.shape[1:]), share)
    if asked not in model.known:
        model.known[asked] = _last_spatial_layer(model, inputs, share)
    found: nn.Module | None = model.known[asked]
    return found


def _last_spatial_layer(model: Model, inputs: Tensor, share: float) -> nn.Module | None:
    height, width = inputs.shape[2] * share, inputs.shape[3] * share
    finished: dict[nn.Module, torch.Size] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        finished.pop(module, None)  # a module that is called again counts where it ends last
        if isinstance(output, Tensor) and output.ndim == 4 and len(output) == 1:
            finished[module] = output.shape[2:]

    with ExitStack() as hooks, _ImageSizes() as sizes:
        for each in model.module.modules():
            if not isinstance(each, torch.jit.ScriptModule):  # has no hooks
                hooks.callback(each.register_forward_hook(note).remove)
        model.logits(inputs[:1])
    fitting = [
        module
        for module, size in finished.items()
        if size in sizes.seen and size.numel() > 1 and size[0] >= height and size[1] >= width
    ]
    return fitting[-1] if fitting else None


class _ImageSizes(TorchFunctionMode):
    """Notes the heights and widths of the images that operators on images take and give.

    Attributes:
        seen: The heights and widths.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.Size] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operator, and note the sizes."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if operator_name(func) in _ON_IMAGES:
            both = (args[0] if args else kwargs.get("input"), result)
            self.seen |= {each.shape[-2:] for each in both if isinstance(each, Tensor)}
        return result
