"""What lets auto_LiRPA 0.3 run beside a current torch and numpy, in use only and put back after it.

Written for torch 1.12, the library needs: a module that numpy 2 dropped; the TorchScript exporter's
settings, which moved in torch 2.9, with its opset; item access on nodes of a traced graph; another
signature of one method of `nn.Module`; and the gradient that a clamp had at its ends before torch
2.14. When it is imported it also gives the root logger a handler, changes warning filters,
TorchScript's executor and the recursion limit, and makes a folder in the user's home: all of that
is put back, or not done.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import io
import logging
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pytest_triguard.verification.operators import Unsupported

PACKAGE = "auto_LiRPA"
"""Name of the package."""

_DEPTH = 10**6
"""Calls within calls that the library allows itself; it walks its graph recursively."""


def copied_module(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy in evaluation mode, in a dtype, without dropout; refuse what is not finite."""
    try:
        copied = copy.deepcopy(module)
    except Exception as error:
        raise Unsupported(f"{type(module).__name__} cannot be copied: {error}") from error
    for name, values in copied.state_dict().items():
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            raise Unsupported(f"{name} is not finite; {PACKAGE} would bound another network")
    if isinstance(copied, nn.modules.dropout._DropoutNd):
        copied = nn.Identity()
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.dropout._DropoutNd):
                setattr(parent, name, nn.Identity())
    return copied.to(dtype).eval().requires_grad_(False)


def library_options(conv_mode: str, steps: int) -> dict[str, Any]:
    """Return the options of the library: nothing shared or stopped that other samples decide on."""
    optimisation = {
        "iteration": steps,
        "early_stop_patience": steps + 1,
        "use_shared_alpha": False,
        "fix_intermediate_layer_bounds": True,
        "fix_interm_bounds": True,
    }
    return {
        "conv_mode": conv_mode,
        "minimum_sparsity": 1.0,
        "use_full_conv_alpha_thresh": sys.maxsize,
        "optimize_bound_args": optimisation,
    }


def bounded_class(library: Any) -> Any:
    """Return the library's class, adapted to the signature that torch calls since 2.0."""

    class Bounded(library.BoundedModule):  # type: ignore[misc]
        def _named_members(
            self,
            get_members_fn: Callable[..., Any],
            prefix: str = "",
            recurse: bool = True,
            remove_duplicate: bool = True,
        ) -> Iterator[tuple[str, Any]]:
            del remove_duplicate
            yield from _members(self, get_members_fn, prefix, recurse)

        def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
            nn.Module.register_parameter(self, name, param)

    return Bounded


def _members(
    bounded: Any, members: Callable[..., Any], prefix: str, recurse: bool
) -> Iterator[tuple[str, Any]]:
    """Hand out members under the names that they have in the original module."""
    for name, value in nn.Module._named_members(bounded, members, prefix, recurse):
        yield getattr(bounded, "node_name_map", {}).get(name, name), value


def forget(bounded: Any, sparse: bool) -> None:
    """Drop the slopes of the last call: the library would shape those of this one after them.

    Sparse slopes fail where CROWN knows every neuron of a layer to be stable, and intervals do not.
    """
    for node in bounded.modules():
        for name in ("alpha", "alpha_lookup_idx"):
            if isinstance(getattr(node, name, None), dict):
                getattr(node, name).clear()
        if hasattr(node, "use_sparse_spec_alpha"):
            node.use_sparse_spec_alpha = sparse


@contextmanager
def scopes(module: nn.Module) -> Iterator[None]:
    """Have the nodes of a traced graph carry the path of their module."""
    paths = {each: name for name, each in module.named_modules()}
    with replaced(torch.jit._trace, "_trace_module_map", paths):
        yield


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn any failure of the library into a refusal."""
    try:
        yield
    except Unsupported:
        raise
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        told = " ".join(str(error).split())[:200]
        raise Unsupported(
            f"the module cannot {what} {PACKAGE}: {type(error).__name__}: {told}"
        ) from error


# --- adapting torch and numpy, and putting everything back ---------------------------------------


@contextmanager
def adapted(dtype: torch.dtype) -> Iterator[None]:
    """Let the library run: quietly, with the interfaces that it was written for."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("ignore")
        stack.enter_context(redirect_stdout(io.StringIO()))
        for change in (_logging, _numpy, _exporter, _script_modes, _data_folder):
            stack.enter_context(change())
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(dtype)
        stack.callback(sys.setrecursionlimit, sys.getrecursionlimit())
        sys.setrecursionlimit(max(sys.getrecursionlimit(), _DEPTH))
        yield


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute, and put back what was there."""
    missing = object()
    before = getattr(owner, name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextmanager
def _logging() -> Iterator[None]:
    """Silence loggers that the library uses; drop the handler that it gives to the root logger."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    loud = [logging.getLogger(name) for name in (f"{PACKAGE}.utils", "torch.utils.cpp_extension")]
    with ExitStack() as stack:
        for each in loud:
            stack.enter_context(replaced(each, "disabled", True))
        try:
            yield
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)


@contextmanager
def _numpy() -> Iterator[None]:
    """Stand in for a module that numpy 2 does not have."""
    name = "numpy.lib.arraysetops"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        yield
        return
    module = types.ModuleType(name)
    module.isin = numpy.isin  # type: ignore[attr-defined]
    sys.modules[name] = module
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def _exporter() -> Iterator[None]:
    """Give the TorchScript exporter its old interface, and its settings back afterwards."""
    settings = _exporter_settings()
    opset, inlining = settings.export_onnx_opset_version, settings.autograd_inlining
    helper = importlib.import_module("torch.onnx.symbolic_helper")
    importlib.import_module("torch.onnx.utils")

    def set_opset(version: int) -> None:
        settings.export_onnx_opset_version = version

    def attribute(node: Any, name: str) -> Any:
        return getattr(node, node.kindOf(name))(name)

    with ExitStack() as stack:
        if not hasattr(helper, "_set_opset_version"):
            stack.enter_context(replaced(helper, "_set_opset_version", set_opset))
        if not hasattr(torch._C.Node, "__getitem__"):
            stack.enter_context(replaced(torch._C.Node, "__getitem__", attribute))
        try:
            yield
        finally:
            settings.export_onnx_opset_version = opset
            settings.autograd_inlining = inlining


def _exporter_settings() -> Any:
    """Return the exporter's global settings, which moved in torch 2.9."""
    for name in ("torch.onnx._internal.torchscript_exporter._globals", "torch.onnx._globals"):
        try:
            return importlib.import_module(name).GLOBALS
        except ImportError:
            continue
    raise AttributeError("torch has no TorchScript exporter")


@contextmanager
def _script_modes() -> Iterator[None]:
    """Switch the profiling executor of TorchScript off, as the library does when imported."""
    executor = torch._C._jit_set_profiling_executor(False)
    mode = torch._C._jit_set_profiling_mode(False)
    try:
        yield
    finally:
        torch._C._jit_set_profiling_executor(executor)
        torch._C._jit_set_profiling_mode(mode)


@contextmanager
def _data_folder() -> Iterator[None]:
    """Keep the library from making a folder in the user's home when it is imported."""
    if f"{PACKAGE}.utils" in sys.modules or importlib.util.find_spec("appdirs") is None:
        yield
        return
    folders = importlib.import_module("appdirs")
    with replaced(folders, "user_data_dir", lambda *_: tempfile.gettempdir()):
        yield


class _Clamp(torch.autograd.Function):
    """A clamp with gradient 1 at its ends, as torch had it before 2.14."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward((values >= low) & (values <= high))
        return values.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0] * ctx.saved_tensors[0], None, None


class GradientAtTheEnds(TorchFunctionMode):
    """Lets a clamp between two numbers pass the gradient on at its ends, where slopes start."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.clamp, Tensor.clamp) and args[0].requires_grad:
            low, high = (*args[1:], None, None)[:2]
            low, high = kwargs.get("min", low), kwargs.get("max", high)
            if low is not None and high is not None:
                return _Clamp.apply(args[0], low, high)
        return func(*args, **kwargs)
