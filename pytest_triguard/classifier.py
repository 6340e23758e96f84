"""The classifier under test: a module, the range of its inputs, and its normalisation."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_triguard.engine import devices, lighter
from pytest_triguard.engine.chunking import ChunkSize, Timings
from pytest_triguard.engine.generators import Generators
from pytest_triguard.engine.kept import KeptMaps
from pytest_triguard.engine.model import Model
from pytest_triguard.errors import InputError, InputTypeError, ModelError
from pytest_triguard.settings import current_settings
from pytest_triguard.validation import describe, number

PerChannel = float | Sequence[float]


class Classifier:
    """A torch module together with what its inputs mean.

    Inputs are `(N, C, H, W)` floating tensors in the user's space, usually pixels in [0, 1];
    logits are `(N, K)`. Perturbations, steps and noise are always measured in that space.

    Args:
        module: The network. It is used in evaluation mode with frozen parameters and left as it
            came.
        bounds: Lower and upper end of the valid input range, each one number or one per channel.
        mean: Subtracted before the network, one number or one per channel, or None.
        std: Divided by before the network, likewise; given exactly when `mean` is.
        classes: Names of the classes, in the order of the logits, or None.

    Attributes:
        kept: Maps that its checks leave to each other.

    Raises:
        InputTypeError: If `module` is no `torch.nn.Module`, or a number is none.
        InputError: If bounds, mean or std are not usable.

    Example:
        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> Classifier(network, mean=0.5, std=0.25)(torch.rand(2, 1, 2, 2)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        bounds: tuple[PerChannel, PerChannel] = (0.0, 1.0),
        mean: PerChannel | None = None,
        std: PerChannel | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise InputTypeError(f"module must be a torch.nn.Module, but {describe(module)} came")
        self.module = module
        self.bounds = read_bounds(bounds)
        self.normalization = _normalization(mean, std)
        self.classes = None if classes is None else tuple(str(each) for each in classes)
        self._lock = threading.RLock()
        self._held: _Held | None = None
        self._timings: dict[str, Timings] = {}
        self._layouts: dict[str, dict[Hashable, bool]] = {}
        self.kept = KeptMaps()
        self._fingerprint: tuple[tuple[object, ...], str] | None = None

    def __repr__(self) -> str:
        return f"Classifier({type(self.module).__name__}, bounds={self.bounds})"

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the logits `(N, K)` of inputs `(N, C, H, W)`, on the device of the module.

        Gradients flow to the inputs where autograd is on.
        """
        with self.prepared(device=str(self.device)) as model:
            return model.logits(inputs.to(model.device))

    @property
    def device(self) -> torch.device:
        """The device the module itself is on; the host if it has neither parameter nor buffer."""
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            return tensor.device
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype | None:
        """The floating dtype of the parameters, or None if there are none or several.

        Buffers tell it where no parameter does.
        """
        for tensors in (self.module.parameters(), self.module.buffers()):
            found = {each.dtype for each in tensors if each.dtype.is_floating_point}
            if found:
                return found.pop() if len(found) == 1 else None
        return None

    @contextmanager
    def prepared(self, *, device: str | None = None, chunk: int | None = None) -> Iterator[Model]:
        """Make the classifier ready to run, and take everything back at the end.

        The module is put in evaluation mode, frozen, and moved to the device; afterwards its
        training flags, `requires_grad` flags, buffers, device and the random number generators are
        as before, also when the block raises.

        Args:
            device: Device name, or None for the session's, else the module's own.
            chunk: Rows per pass, or None for the session's, else the fastest, found by timing.

        Yields:
            The network ready to run, with counters at zero.

        Raises:
            ConfigError: If the device is not to be had.
            ModelError: If the module lies on several devices and would have to be moved, or has
                parameters or buffers without values, or parameters made in inference mode.
        """
        _require_usable(self.module)
        settings = current_settings()
        target = devices.resolve(device or settings.device, fallback=self.device)
        self._hold(target)
        try:
            timings = self._timings.setdefault(str(target), {})
            with devices.host_by_default() as outside:
                yield Model(
                    self.module,
                    device=target,
                    dtype=self.dtype,
                    bounds=self.bounds,
                    normalization=self.normalization,
                    chunk=ChunkSize(chunk or settings.chunk, timings),
                    layouts=self._layouts.setdefault(str(target), {}),
                    default_device=outside,
                )
        finally:
            self._release()

    def _hold(self, target: torch.device) -> None:
        with self._lock:
            if self._held is None:
                self._held = _Held(self.module, target)
            elif self._held.device != target:
                raise ModelError(
                    f"the classifier is in use on {self._held.device} and cannot be used on "
                    f"{target} at the same time"
                )
            self._held.users += 1

    def _release(self) -> None:
        with self._lock:
            if self._held is None:
                return
            self._held.users -= 1
            if not self._held.users:
                held, self._held = self._held, None
                held.restore()

    def fingerprint(self) -> str:
        """Return a hash of weights, buffers, architecture, bounds and normalisation.

        Raises:
            ModelError: If the module has parameters or buffers without values.
        """
        _require_usable(self.module)
        state = self._state()
        if self._fingerprint is None or self._fingerprint[0] != state:
            self._fingerprint = state, self._hash()
        return self._fingerprint[1]

    def _state(self) -> tuple[object, ...]:
        """Return what tells, faster than a hash, whether anything may have changed."""
        tensors = (*self.module.parameters(), *self.module.buffers())
        # The sums see what was written through .data, which the versions do not.
        sums = [_integers(each).sum(dtype=torch.int64) for each in tensors if each.numel()]
        return (
            repr((self.module, self.bounds, self.normalization)),
            *((id(each), _version(each), each.data_ptr()) for each in tensors),
            torch.stack(sums).tolist() if sums else [],
        )

    def _hash(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((self.module, self.bounds, self.normalization)).encode())
        named = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        for name, tensor in sorted(named.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(values.numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class _Parameter:
    """A parameter as it was."""

    owner: nn.Module
    name: str
    parameter: nn.Parameter
    data: Tensor
    grad: Tensor | None
    requires_grad: bool

    def restore(self) -> None:
        self.parameter.data = self.data
        self.parameter.grad = self.grad
        self.parameter.requires_grad_(self.requires_grad)
        self.owner._parameters[self.name] = self.parameter


@dataclass
class _Held:
    """What has to be put back when the last user of a module is done."""

    module: nn.Module
    device: torch.device
    users: int = 0
    training: dict[nn.Module, bool] = field(init=False)
    parameters: list[_Parameter] = field(init=False)
    buffers: list[tuple[nn.Module, str, Tensor, Tensor]] = field(init=False)
    named: list[tuple[nn.Module, frozenset[str], frozenset[str]]] = field(init=False)
    lightened: list[nn.Module] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        modules = list(self.module.modules())
        # A frozen ScriptModule has no mode: evaluation is built in.
        self.training = {each: each.training for each in modules if hasattr(each, "training")}
        self.parameters = [
            _Parameter(owner, name, each, each.data, each.grad, each.requires_grad)
            for owner in modules
            for name, each in owner._parameters.items()
            if each is not None
        ]
        self.buffers = [
            (owner, name, buffer, buffer.detach().clone())
            for owner in modules
            for name, buffer in owner._buffers.items()
            if buffer is not None
        ]
        self.named = [
            (
                owner,
                frozenset(owner._buffers.keys()),
                frozenset(name for name, buffer in owner._buffers.items() if buffer is None),
            )
            for owner in modules
        ]
        self.generators = Generators(self.device)
        try:
            self._prepare()
        except BaseException:
            self.restore()
            raise

    def _prepare(self) -> None:
        self._evaluate()
        for each in self.parameters:
            # Not by the module's own requires_grad_, which a ScriptModule does not have.
            each.parameter.requires_grad_(False)
            each.parameter.grad = None  # or it would move along
        tensors = (*self.module.parameters(), *self.module.buffers())
        places = {tensor.device for tensor in tensors}
        if len(places) > 1:
            raise ModelError(
                "the module must lie on one device, but its parameters are on "
                f"{', '.join(sorted(str(place) for place in places))}"
            )
        if places and places != {self.device}:
            self.module.to(self.device)
        if devices.is_host(self.device):
            self.lightened = lighter.lighten(self.module)

    def _evaluate(self) -> None:
        try:
            self.module.eval()
        except NotImplementedError:
            # The mode of what torch.export makes is built in, and that of its neighbours is not.
            for module in self.training:
                module.training = False

    def restore(self) -> None:
        lighter.restore(self.lightened)
        for each in self.parameters:
            each.restore()
        for owner, names, empty in self.named:
            for name in set(owner._buffers.keys()) - names:
                del owner._buffers[name]
            for name in empty:
                owner._buffers[name] = None
        for owner, name, buffer, values in self.buffers:
            if not _expanded(buffer):
                # Through .data, so that a buffer nobody changed does not look changed.
                buffer.data.copy_(values)
            owner._buffers[name] = buffer
        for module, training in self.training.items():
            module.training = training
        self.generators.restore()


def _require_usable(module: nn.Module) -> None:
    """Refuse a module with tensors that cannot be read, or that autograd cannot use.

    Raises:
        ModelError: If there are any; it names the first.
    """
    for kind, named in (
        ("parameter", module.named_parameters()),
        ("buffer", module.named_buffers()),
    ):
        for name, tensor in named:
            if reason := _unusable(tensor):
                raise ModelError(
                    f"the module must be ready to run, but its {kind} {name!r} {reason}"
                )


def _unusable(tensor: Tensor) -> str | None:
    if is_lazy(tensor):
        return "is lazy and not initialised; pass one batch through the module first"
    if tensor.is_meta:
        return "is on the meta device and has no values; load the weights first"
    if isinstance(tensor, nn.Parameter) and tensor.is_inference():
        return "was made in torch.inference_mode(); build and load the module outside of it"
    return None


def _expanded(tensor: Tensor) -> bool:
    """Return whether elements share memory; such a tensor cannot be written to."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return any(size > 1 and not stride for size, stride in sizes)


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was written to, as far as that is counted."""
    return 0 if tensor.is_inference() else tensor._version


def _integers(tensor: Tensor) -> Tensor:
    """Return the bits of a tensor as integers, flat."""
    widths = {1: torch.int8, 2: torch.int16, 4: torch.int32}
    width = widths.get(tensor.element_size(), torch.int64)
    return tensor.detach().contiguous().flatten().view(width)


def read_bounds(bounds: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return lower and upper ends of a valid range, equally long: one number, or one per channel.

    Raises:
        InputTypeError: If it is no pair, or an end is no number.
        InputError: If an end is not finite, or the ends do not go together.
    """
    if not isinstance(bounds, Sequence) or isinstance(bounds, str) or len(bounds) != 2:
        raise InputTypeError(f"bounds must be a pair (low, high), but {describe(bounds)} came")
    low, high = _channels("bounds", bounds[0]), _channels("bounds", bounds[1])
    if len(low) != len(high) and 1 not in (len(low), len(high)):
        raise InputError(
            f"bounds must name as many channels below as above, but {len(low)} and {len(high)} came"
        )
    width = max(len(low), len(high))
    low, high = low * (width // len(low)), high * (width // len(high))
    if not all(below < above for below, above in zip(low, high, strict=True)):
        raise InputError(f"bounds must rise from low to high, but {bounds!r} came")
    return low, high


def _normalization(
    mean: PerChannel | None, std: PerChannel | None
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        missing = "mean" if mean is None else "std"
        raise InputError(f"mean and std must be given together, but {missing} is missing")
    means, stds = _channels("mean", mean), _channels("std", std)
    if min(stds) <= 0:
        raise InputError(f"std must be greater than 0, but {min(stds):g} came")
    if len(means) != len(stds) and 1 not in (len(means), len(stds)):
        raise InputError(
            f"mean and std must name as many channels, but {len(means)} and {len(stds)} came"
        )
    return means, stds


def _channels(name: str, value: Any) -> tuple[float, ...]:
    if isinstance(value, Tensor):
        value = value.detach().flatten().tolist()
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            raise InputError(f"{name} must have one number per channel, but an empty list came")
        return tuple(number(name, each) for each in value)
    return (number(name, value),)
