"""A simulated accelerator: the torch device `sim`, for machines that have no real one.

A tensor on `sim` is a wrapper whose values lie in an ordinary CPU tensor, so every operator gives
the CPU's result. What a real accelerator would refuse is refused (operands on two devices),
and what would make it wait is counted (the host reading values back). Needs torch's Python
backend for the `PrivateUse1` device, which is still experimental there.

Use it as a context manager in a test::

    with simulated_accelerator() as sim:
        logits = network.to("sim")(images.to("sim"))
    assert sim.host_reads == []

or for a whole pytest run with `-p tests.simulated_accelerator`, from the root of the project.

Stricter than a real one: an index tensor on the CPU is refused too.
Not simulated: streams, memory, and assigning a `sim` tensor to the `.data` of a CPU tensor
(`Module.to` puts new parameters in place instead, as it does for every wrapper tensor).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

try:
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
except ImportError:  # older releases have no backends in Python
    _setup_privateuseone_for_python_backend = None

_COPIES = frozenset({"_to_copy", "copy_"})
_MASKABLE = frozenset(
    {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
)
# Beside the pointwise ones, these take a CPU scalar as a plain kernel argument.
_TAKES_CPU_SCALAR = frozenset(
    {"fill", "fill_", "floor_divide", "floor_divide_", "index_put", "index_put_", "masked_fill"}
    | {"masked_fill_", "_index_put_impl_"}
)
_READ_TAGS = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})
_BACKWARD = frozenset({torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward})


class Call(NamedTuple):
    """One call: name of the aten operator, and shape of the tensor it made or moved."""

    op: str
    shape: tuple[int, ...]


class Operator(NamedTuple):
    """What the simulation asks about an operator of torch, looked up once: it is asked often."""

    name: str
    composite: bool
    copies: bool
    mutates: bool
    takes_cpu_scalars: bool
    maskable: bool
    reads: bool


@cache
def _known(func: Any) -> Operator:
    name = func.overloadpacket.__name__
    return Operator(
        name,
        composite=func._can_decompose(),
        copies=name in _COPIES,
        mutates=func._schema.is_mutable,
        takes_cpu_scalars=torch.Tag.pointwise in func.tags or name in _TAKES_CPU_SCALAR,
        maskable=name in _MASKABLE,
        reads=name == "_linalg_check_errors" or not _READ_TAGS.isdisjoint(func.tags),
    )


@dataclass
class Simulation:
    """What crossed the border between host and accelerator while the simulation was active.

    Attributes:
        devices: Number of visible devices, `sim:0` and up.
        float64: Whether the devices know float64.
        host_reads: Operators that read values back to the host, in order: a copy to the CPU, a
            scalar read, a result whose shape depends on values (nonzero, unique, boolean index).
        uploads: Copies from the CPU to a device, in order.
        cpu_factories: Tensors created on the CPU, in order; scalars (no dimension) are left out,
            because they travel as kernel arguments.
    """

    devices: int = 1
    float64: bool = True
    host_reads: list[str] = field(default_factory=list)
    uploads: list[Call] = field(default_factory=list)
    cpu_factories: list[Call] = field(default_factory=list)

    def reset(self) -> None:
        """Forget what was recorded so far."""
        self.host_reads.clear()
        self.uploads.clear()
        self.cpu_factories.clear()

    def device(self, name: str | torch.device) -> torch.device:
        """Return a visible device with its index, as a real backend would."""
        index = torch.device(name).index or 0
        if index >= self.devices:
            raise RuntimeError(f"invalid device ordinal {index}: {self.devices} visible")
        return torch.device("sim", index)


class SimTensor(torch.Tensor):
    """A tensor on `sim`: shape, dtype and device here, values in a CPU tensor."""

    _on_host: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: torch.Tensor, device: torch.device) -> SimTensor:
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=device,
        )
        wrapper._on_host = values
        return wrapper

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func} got a tensor on 'sim' outside simulated_accelerator()")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else format(repr(self), spec)

    def data_ptr(self) -> int:
        return self._on_host.data_ptr()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        with no_dispatch():
            return f"SimTensor({self._on_host!r}, device='{self.device}')"

    def __deepcopy__(self, memo: dict[int, Any]) -> SimTensor:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        own = {name: value for name, value in self.__dict__.items() if name != "_on_host"}
        copied.__dict__.update(own)
        memo[id(self)] = copied
        return copied


class _Backend:
    """The module `torch.sim`: without an active simulation no device is visible."""

    active: _Operators | None = None

    def device_count(self) -> int:
        return 0 if self.active is None else self.active.simulation.devices

    def is_available(self) -> bool:
        return self.device_count() > 0

    def is_initialized(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def synchronize(self, device: Any = None) -> None:
        """Return at once: work on the CPU is done when its call returns."""

    def empty_cache(self) -> None:
        """Return at once: there is no cache."""

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Do nothing: random operators draw from the CPU's generator, seeded by the caller."""

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, new_state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(new_state)

    def register_kernels(self) -> None:
        """Register what torch calls below the level of modes, for tensors from Python data."""
        self.library = torch.library.Library("aten", "IMPL")
        self.library.impl("empty_strided", self._empty_strided, "PrivateUse1")
        self.library.impl("_copy_from", self._copy_from, "PrivateUse1")

    def _empty_strided(self, size: Any, stride: Any, **options: Any) -> Any:
        return self._run(torch.ops.aten.empty_strided.default, (size, stride), options)

    def _copy_from(self, source: Any, destination: Any, non_blocking: bool = False) -> Any:
        return self._run(torch.ops.aten.copy_.default, (destination, source), {})

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.active is None:
            raise RuntimeError("the device 'sim' was used outside simulated_accelerator()")
        return self.active.run(func, args, kwargs)


class _Functions(TorchFunctionMode):
    """Backward passes in the calling thread.

    The engine starts the threads of a device at the first backward pass of the process, when this
    device may not have been registered.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func not in _BACKWARD:
            return func(*args, **(kwargs or {}))
        with torch.autograd.set_multithreading_enabled(False):
            return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    """Run every operator on CPU values; refuse mixed devices; record what crosses the border."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__()
        self.simulation = simulation

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Skipping it means importing the compiler, which takes a second and is never used here.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        # In inference mode composite operators arrive whole; their parts are what is counted.
        if _known(func).composite:
            with self:
                return func.decompose(*args, **kwargs)
        return self.run(func, args, kwargs)

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator that is no composition of others."""
        operator = _known(func)
        tensors = _tensors((*args, *kwargs.values()))
        if not operator.copies:
            _refuse_mixed(func, tensors)
        target = self._target(tensors, kwargs)
        result = self._lower(func, args, kwargs, target)
        self._record(operator, args, kwargs, tensors, result)
        return result

    def _target(self, tensors: list[torch.Tensor], kwargs: dict[str, Any]) -> torch.device | None:
        """Return the device of new results, or None where they stay where torch puts them."""
        asked = kwargs.get("device")
        if asked is not None:
            return self.simulation.device(asked) if _is_sim(asked) else None
        return next((each.device for each in tensors if isinstance(each, SimTensor)), None)

    def _lower(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], target: torch.device | None
    ) -> Any:
        operands: dict[int, Any] = {}

        def unwrap(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            values = leaf._on_host if isinstance(leaf, SimTensor) else leaf
            operands[id(values)] = leaf
            return values

        def wrap(leaf: Any) -> Any:
            if id(leaf) in operands or target is None or not isinstance(leaf, torch.Tensor):
                return operands.get(id(leaf), leaf)
            return self._new(leaf, target)

        lowered = {name: _on_leaves(unwrap, each) for name, each in kwargs.items()}
        if _is_sim(kwargs.get("device")):
            lowered["device"] = torch.device("cpu")
        result = func(*_on_leaves(unwrap, args), **lowered)
        if _known(func).mutates:
            for operand in operands.values():
                _follow_shape(operand)
        return _on_leaves(wrap, result)

    def _new(self, values: torch.Tensor, device: torch.device) -> SimTensor:
        if values.dtype == torch.float64 and not self.simulation.float64:
            raise TypeError("the simulated accelerator does not know float64")
        return SimTensor(values, device)

    def _record(
        self,
        operator: Operator,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[torch.Tensor],
        result: Any,
    ) -> None:
        name = operator.name
        if operator.copies:
            self._record_copy(name, source=tensors[-1], destination=result)
        elif _any_sim(tensors) and _reads_host(operator, args, kwargs):
            self.simulation.host_reads.append(name)
        if _makes_tensor(name, tensors):
            made = [each for each in _tensors((result,)) if _on_cpu(each) and each.dim() > 0]
            self.simulation.cpu_factories += [Call(name, tuple(each.shape)) for each in made]

    def _record_copy(self, name: str, source: torch.Tensor, destination: torch.Tensor) -> None:
        if isinstance(source, SimTensor) and _on_cpu(destination):
            self.simulation.host_reads.append(name)
        elif _on_cpu(source) and isinstance(destination, SimTensor):
            self.simulation.uploads.append(Call(name, tuple(destination.shape)))


def _on_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to a value, or to all in it: operators take and give lists and tuples."""
    if isinstance(value, tuple | list):
        return type(value)(_on_leaves(function, each) for each in value)
    return function(value)


def _tensors(values: Any) -> list[torch.Tensor]:
    """Return the tensors among values and in lists and tuples among them."""
    found: list[torch.Tensor] = []
    for each in values:
        if isinstance(each, torch.Tensor):
            found.append(each)
        elif isinstance(each, tuple | list):
            found += _tensors(each)
    return found


def _is_sim(device: Any) -> bool:
    return device is not None and torch.device(device).type == "sim"


def _any_sim(tensors: list[torch.Tensor]) -> bool:
    return any(isinstance(each, SimTensor) for each in tensors)


def _on_cpu(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu"


def _makes_tensor(name: str, tensors: list[torch.Tensor]) -> bool:
    """Return whether an operator creates its result rather than computes it from tensors."""
    return not tensors or name.endswith("_like") or name.startswith(("new_", "lift_fresh"))


def _reads_host(operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether the host has to wait for values on the device to run an operator."""
    if operator.maskable:
        return any(mask.dtype in (torch.bool, torch.uint8) for mask in _tensors(args[1]))
    if operator.name == "repeat_interleave" and kwargs.get("output_size") is not None:
        return False
    return operator.reads


def _refuse_mixed(func: Any, tensors: list[torch.Tensor]) -> None:
    """Raise for operands on two devices, unless the odd one is a CPU scalar that is only read."""
    if len(tensors) < 2 or not _any_sim(tensors):
        return
    operator = _known(func)
    scalars_pass = operator.takes_cpu_scalars
    fixed = [each for each in tensors if not (scalars_pass and _on_cpu(each) and each.dim() == 0)]
    if operator.mutates:
        fixed.append(tensors[0])
    found = sorted({str(each.device) for each in fixed}, reverse=True)
    if len(found) > 1:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{found[0]} and {found[1]}! (when checking arguments of {func})"
        )


def _follow_shape(operand: Any) -> None:
    """Give a wrapper the shape its values got, after an operator such as `unsqueeze_`."""
    if not isinstance(operand, SimTensor):
        return
    values = operand._on_host
    if operand.shape != values.shape or operand.stride() != values.stride():
        with no_dispatch():
            operand.as_strided_(values.size(), values.stride(), values.storage_offset())


def _backend() -> _Backend:
    """Return `torch.sim`, registered on first use: torch allows it once in a process.

    It outlives this module, which a nested pytest run may import anew: it holds no other state
    than the active mode, and makes its tensors through it.
    """
    if torch._C._get_privateuse1_backend_name() != "sim":
        backend = _Backend()
        backend.register_kernels()
        _setup_privateuseone_for_python_backend(rename="sim", backend_module=backend)
    return torch.get_device_module("sim")


@contextmanager
def simulated_accelerator(*, devices: int = 1, float64: bool = True) -> Iterator[Simulation]:
    """Make the device `sim` work, in this thread, for a `with` block.

    Args:
        devices: Number of visible devices.
        float64: Whether they know float64; without, making such a tensor is a TypeError.

    Yields:
        The record of what crosses the border between host and accelerator.

    Raises:
        RuntimeError: If a simulation is active already.

    The test is skipped where this torch has no backends in Python.
    """
    if _setup_privateuseone_for_python_backend is None:
        pytest.skip(f"torch {torch.__version__} has no backends in Python")
    backend = _backend()
    if backend.active is not None:
        raise RuntimeError("simulated_accelerator() is active already and cannot be nested")
    backend.active = _Operators(Simulation(devices=devices, float64=float64))
    try:
        with backend.active, _Functions():
            yield backend.active.simulation
    finally:
        backend.active = None


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Make the device work for the whole run when this file is loaded with `-p`."""
    stack = ExitStack()
    stack.enter_context(simulated_accelerator())
    config.add_cleanup(stack.close)
