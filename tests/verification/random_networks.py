"""Random small networks over every operator that the verifier knows, for the tests of soundness.

Every decision is made by a `choose` that picks one of some options: a seeded generator's, or that
of hypothesis, which then shrinks the decisions.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from pytest_triguard import Classifier
from tests.verification.random_parts import Apply, Attention, Combined, Constant
from tests.verification.zoo import MEAN, STD

Choose = Callable[[Sequence[Any]], Any]

LARGEST = 160
"""Elements of a value of a sample at most, so that thousands of networks can be bounded."""
SHAPES = ((1, 3, 4), (1, 5, 5), (2, 4, 3), (3, 3, 3), (3, 4, 5), (1, 2, 7), (1, 8, 7))
WEIGHTS = ("plain", "plain", "plain", "plain", "small", "large", "uneven", "dead", "zero")
"""What happens to the weights of a network after they were drawn."""


def _first_two(join: Callable[..., Tensor], parts: Any) -> Tensor:
    return join(parts[0], parts[1])


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu in place": lambda x: functional.relu(x + 0, inplace=True),
    "relu method": lambda x: x.relu(),
    "relu6": lambda x: functional.relu6(4 * x),
    "leaky relu": lambda x: functional.leaky_relu(x, 0.2),
    "hardtanh": lambda x: functional.hardtanh(x, -0.5, 0.7),
    "hardsigmoid": functional.hardsigmoid,
    "hardswish": lambda x: functional.hardswish(3 * x),
    "clamp": lambda x: torch.clamp(x, -0.4, 0.6),
    "clip": lambda x: x.clip(max=0.3),
    "clamp min": lambda x: x.clamp_min(-0.1),
    "clamp max": lambda x: torch.clamp_max(x, 0.2),
    "magnitude": torch.abs,
    "sigmoid": lambda x: torch.sigmoid(2 * x),
    "expit": torch.special.expit,
    "log sigmoid": functional.logsigmoid,
    "tanh": lambda x: x.tanh(),
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu by tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "mish": functional.mish,
    "softplus": lambda x: functional.softplus(x, 2.0, 3.0),
    "elu": lambda x: functional.elu(x, 1.3),
    "celu": lambda x: torch.celu(x, 0.7),
    "selu": torch.selu,
    "erf": torch.erf,
    "exp": lambda x: torch.exp(x.clamp(max=2.0)),
    "sqrt": lambda x: torch.sqrt(x * x + 0.1),
    "reciprocal": lambda x: torch.reciprocal(torch.square(x) + 0.3),
    "square": lambda x: x**2,
    "power": lambda x: x.pow(2) - x,
    "negative": lambda x: -x,
    "shifted": lambda x: 1.5 - (x + 0.3) / 0.7,
    "scaled": lambda x: x.mul(-2).sub(0.1).div(3),
    "divided": lambda x: (x - 0.2) / (x.square() + 0.5),
    "constant over": lambda x: 1.0 / (x.exp() + 1),
    "product": lambda x: x * torch.sigmoid(x + 0.1),
    "difference": lambda x: torch.sub(x.relu(), x.tanh()),
    "sum": lambda x: torch.add(x.abs(), x),
    "copied": lambda x: x.clone().contiguous(),
    "detached": lambda x: x.detach() + x,
    "dropped": lambda x: functional.dropout(x, 0.5, False),
}
"""Of every element on its own."""

MODULES: dict[str, Callable[[], nn.Module]] = {
    "ReLU": lambda: nn.ReLU(),
    "LeakyReLU": lambda: nn.LeakyReLU(0.1),
    "ReLU6": lambda: nn.ReLU6(),
    "Hardtanh": lambda: nn.Hardtanh(-0.6, 0.2),
    "Hardsigmoid": lambda: nn.Hardsigmoid(),
    "Hardswish": lambda: nn.Hardswish(),
    "Sigmoid": lambda: nn.Sigmoid(),
    "LogSigmoid": lambda: nn.LogSigmoid(),
    "Tanh": lambda: nn.Tanh(),
    "SiLU": lambda: nn.SiLU(),
    "GELU": lambda: nn.GELU(),
    "Mish": lambda: nn.Mish(),
    "Softplus": lambda: nn.Softplus(),
    "ELU": lambda: nn.ELU(),
    "CELU": lambda: nn.CELU(1.2),
    "SELU": lambda: nn.SELU(),
    "Identity": lambda: nn.Identity(),
    "Dropout": lambda: nn.Dropout(),
    "StochasticDepth": lambda: StochasticDepth(0.5, "row"),
}

PICTURES: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.transpose(2, 3),
    "permuted": lambda x: x.permute(0, 1, 3, 2),
    "movedim": lambda x: torch.movedim(x, 3, 2),
    "rolled": lambda x: x.roll((1, -1), (2, 3)),
    "flipped": lambda x: torch.flip(x, (1, 3)),
    "rows": lambda x: x[:, :, 1:],
    "columns": lambda x: x[..., ::2],
    "channel": lambda x: x[:, :1],
    "narrowed": lambda x: x.narrow(3, 0, 2),
    "selected": lambda x: x.select(2, 1).unsqueeze(2),
    "halves": lambda x: torch.cat(x.chunk(2, dim=2)[::-1], 2),
    "parts": lambda x: _first_two(torch.sub, torch.split(x, 2, 3)),
    "thirds": lambda x: torch.cat(x.tensor_split((1, 2), 3)[1:], 3),
    "unbound": lambda x: x.unbind(3)[0].unsqueeze(3) * x,
    "stacked": lambda x: torch.stack([x, x.roll(1, 2)], 2).flatten(1, 2),
    "zeros around": lambda x: functional.pad(x, (1, 0, 0, 1)),
    "ones around": lambda x: functional.pad(x, (0, 1), value=1.0),
    "reflected": lambda x: functional.pad(x, (1, 1), mode="reflect"),
    "repeated": lambda x: x.repeat(1, 2, 1, 1),
    "expanded": lambda x: x.mean(1, keepdim=True).expand(-1, 2, -1, -1) + x[:, :1],
    "shuffled": lambda x: functional.channel_shuffle(x, 2),
    "pixels together": lambda x: functional.pixel_shuffle(torch.cat([x, x, x, -x], 1), 2),
    "pixels apart": lambda x: functional.pixel_unshuffle(x[:, :, :2, :2], 2),
    "average": lambda x: functional.avg_pool2d(x, 2, 1),
    "adaptive": lambda x: functional.adaptive_avg_pool2d(x, (2, 2)),
    "larger": lambda x: functional.interpolate(x, scale_factor=1.5, mode="bilinear"),
    "nearest": lambda x: functional.interpolate(x, size=(3, 4)),
    "largest of rows": lambda x: x - x.amax(2, keepdim=True),
    "sum of columns": lambda x: x + x.sum(3, keepdim=True) / 3,
    "less the mean": lambda x: x - x.mean((2, 3), keepdim=True),
    "chances": lambda x: torch.softmax(x, 1),
    "unit length": lambda x: functional.normalize(x + 0.5, dim=1, eps=0.05),
}
"""Of values `(N, C, H, W)`."""

VECTORS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: torch.softmax(2 * x, -1),
    "log softmax": lambda x: functional.log_softmax(x, 1),
    "halves": lambda x: _first_two(torch.mul, x.tensor_split(2, 1)),
    "reshaped": lambda x: x.view(x.shape[0], 1, -1).squeeze(1),
    "unflattened": lambda x: torch.unflatten(x, 1, (1, -1)).swapaxes(1, 2).flatten(1),
    "less its largest": lambda x: x - torch.amax(x, 1, keepdim=True),
    "outer product": lambda x: torch.matmul(x.unsqueeze(2), x.unsqueeze(1)).amax(2),
    "own product": lambda x: torch.bmm(x.unsqueeze(1), x.tanh().unsqueeze(2)).flatten(1) + x,
    "doubled": lambda x: torch.concat((x, -x.relu()), 1),
    "normalised": lambda x: functional.layer_norm(x, x.shape[1:], eps=0.1),
}
"""Of values `(N, D)`."""

JOINS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "residual": lambda x, y: x + y,
    "residual, then activated": lambda x, y: torch.relu(x + y),
    "residual in place": lambda x, y: (y * 1).add_(x),
    "difference": lambda x, y: y - x,
    "product": lambda x, y: x * y,
    "gate": lambda x, y: y.sigmoid() * x,
    "quotient": lambda x, y: x / (y * y + 0.5),
    "side by side": lambda x, y: torch.cat([y, x], 1),
}
CONSTANTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "times weights": lambda x, w: w * x,
    "plus weights": lambda x, w: w + x,
    "weights less": lambda x, w: w - x,
    "over weights": lambda x, w: x / w,
    "less weights": lambda x, w: x.sub(w),
}
ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda x: x.flatten(1),
    "reshape": lambda x: x.reshape(x.size(0), -1),
    "mean": lambda x: x.mean((2, 3)),
    "largest": lambda x: torch.amax(x, (2, 3)),
    "sum": lambda x: x.sum((2, 3)) / 4,
}
"""From values `(N, C, H, W)` to `(N, D)`."""


@dataclass
class Grower:
    """A network while it grows.

    Attributes:
        choose: Makes the decisions.
        sample: A value `(2, ...)` after the steps so far.
        steps: The steps.
    """

    choose: Choose
    sample: Tensor
    steps: list[nn.Module] = field(default_factory=list)

    @property
    def shape(self) -> torch.Size:
        return self.sample.shape[1:]

    def add(self, step: nn.Module | None) -> bool:
        """Append a step if it can be applied and its result is neither empty nor too large."""
        if step is None:
            return False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # some paddings cost a copy, and say so
                step.eval()(self.sample[:1].clone())  # some norms refuse one sample alone
                found = step(self.sample.clone())
        except (RuntimeError, ValueError, IndexError, TypeError):
            return False
        if not 0 < found[0].numel() <= LARGEST or not bool(found.isfinite().all()):
            return False
        if found.ndim not in (2, 4) or len(found) != 2:
            return False
        self.steps.append(step)
        self.sample = found.detach()
        return True

    def take(self, table: dict[str, Any]) -> tuple[str, Any]:
        name = self.choose(list(table))
        return name, table[name]


def _convolution(grower: Grower) -> nn.Module:
    inputs = grower.shape[0]
    groups = grower.choose([each for each in (1, 1, 2, 3, inputs) if inputs % each == 0])
    outputs = groups * grower.choose((1, 2))
    padding = grower.choose((0, 1, (1, 0), (0, 2), "same"))
    stride = 1 if padding == "same" else grower.choose((1, 1, 2, (1, 2), (2, 1)))
    return nn.Conv2d(
        inputs,
        outputs,
        grower.choose((1, 2, 3, (3, 2), (1, 3), (2, 1))),
        stride=stride,
        padding=padding,
        dilation=grower.choose((1, 1, 2, (1, 2))),
        groups=groups,
        bias=grower.choose((True, False)),
    )


def _transposed_convolution(grower: Grower) -> nn.Module:
    inputs = grower.shape[0]
    groups = grower.choose([each for each in (1, 2, inputs) if inputs % each == 0])
    return nn.ConvTranspose2d(
        inputs,
        groups * grower.choose((1, 2)),
        grower.choose((1, 2, (2, 3))),
        stride=grower.choose((1, 2)),
        padding=grower.choose((0, 1)),
        output_padding=grower.choose((0, 0, 1)),
        groups=groups,
        dilation=grower.choose((1, 2)),
        bias=grower.choose((True, False)),
    )


def _max_pool(grower: Grower) -> nn.Module:
    kernel = grower.choose((2, 3, (3, 2), (1, 2)))
    return nn.MaxPool2d(
        kernel,
        stride=grower.choose((None, 1, 2, (2, 1))),
        padding=grower.choose((0, 0, 1)) if kernel != (1, 2) else 0,
        dilation=grower.choose((1, 1, 2)),
        ceil_mode=grower.choose((False, True)),
    )


def _average_pool(grower: Grower) -> nn.Module:
    if grower.choose((False, True)):
        return nn.AdaptiveAvgPool2d(grower.choose((1, 2, (2, 1), (None, 3))))
    return nn.AvgPool2d(
        grower.choose((2, 3, (1, 2))),
        stride=grower.choose((None, 1, 2)),
        padding=grower.choose((0, 0, 1)),
        ceil_mode=grower.choose((False, True)),
        count_include_pad=grower.choose((False, True)),
        divisor_override=grower.choose((None, None, 3)),
    )


def _norm(grower: Grower) -> nn.Module:
    channels = grower.shape[0]
    groups = grower.choose([each for each in (1, 2, channels) if channels % each == 0])
    kind = grower.choose(("batch", "batch", "group", "instance", "layer"))
    eps = grower.choose((1e-5, 0.1, 1.0))
    if kind == "batch":
        return nn.BatchNorm2d(channels, eps, affine=grower.choose((True, False)))
    if kind == "group":
        return nn.GroupNorm(groups, channels, eps)
    if kind == "instance":
        return nn.InstanceNorm2d(channels, eps, affine=grower.choose((True, False)))
    return nn.LayerNorm(list(grower.shape[grower.choose((0, 2)) :]), eps)


def _vector_norm(grower: Grower) -> nn.Module:
    kind = grower.choose((nn.BatchNorm1d, nn.LayerNorm))
    return kind(grower.shape[0], eps=grower.choose((1e-5, 0.1, 1.0)))


def _linear(grower: Grower) -> nn.Module:
    return nn.Linear(grower.shape[0], grower.choose((3, 5, 8)), bias=grower.choose((True, False)))


def _activation(grower: Grower) -> nn.Module:
    name, build = grower.take(MODULES | FUNCTIONS)
    return build() if name in MODULES else Apply(name, build)


def _picture(grower: Grower) -> nn.Module:
    if grower.choose((False, False, False, True)):
        return grower.choose(
            (
                nn.Upsample(scale_factor=2, mode="nearest"),
                nn.PixelUnshuffle(2),
                nn.ZeroPad2d((1, 0, 0, 1)),
                nn.Dropout2d(),
            )
        )
    return Apply(*grower.take(PICTURES))


def _constant(grower: Grower) -> nn.Module:
    name, join = grower.take(CONSTANTS)
    shape = tuple(grower.choose((1, size) if size > 1 else (1, 2)) for size in grower.shape)
    return Constant(name, shape[grower.choose((0, len(shape) - 1)) :], join)


def _branch(grower: Grower) -> nn.Module:
    """Return a branch whose result goes with the value, joined with it."""
    name, join = grower.take(JOINS)
    size = grower.shape[0]
    if len(grower.shape) == 1:
        first: nn.Module = nn.Linear(size, size)
    elif grower.choose((False, False, True)):
        first = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(size, size, 1))
        name, join = "squeezed, " + name, JOINS["gate"]
    else:
        first = nn.Conv2d(size, size, grower.choose((1, 3)), padding="same")
    return Combined(name, nn.Sequential(first, _activation(grower)), join)


def _attention(grower: Grower) -> nn.Module | None:
    """Return attention between the columns of the value."""
    channels = grower.shape[0]
    if channels % 2:
        return None
    attention = Attention(channels, grower.choose((1, 2)), by_module=grower.choose((True, False)))
    return nn.Sequential(
        Apply("as rows", lambda x: x.flatten(2).permute(0, 2, 1)),
        attention,
        Apply("as vectors", lambda x: x.transpose(1, 2).unsqueeze(3)),
    )


IMAGE_STEPS: tuple[Callable[[Grower], nn.Module | None], ...] = (
    _convolution,
    _convolution,
    _transposed_convolution,
    _max_pool,
    _average_pool,
    _norm,
    _activation,
    _activation,
    _picture,
    _picture,
    _constant,
    _branch,
    _attention,
)
VECTOR_STEPS: tuple[Callable[[Grower], nn.Module | None], ...] = (
    _linear,
    _linear,
    _vector_norm,
    _activation,
    _constant,
    _branch,
    lambda grower: Apply(*grower.take(VECTORS)),
)


@dataclass(frozen=True)
class Problem:
    """A random classifier and samples.

    Attributes:
        subject: The classifier, in evaluation mode.
        inputs: `(n, C, H, W)` samples in [0, 1].
        weights: What was done to the weights, one of `WEIGHTS`.
    """

    subject: Classifier
    inputs: Tensor
    weights: str

    @property
    def labels(self) -> Tensor:
        """What is predicted for the samples; NaN counts as the first class."""
        return self.subject(self.inputs).nan_to_num(0.0).argmax(1)

    def __repr__(self) -> str:
        return f"Problem({self.weights}, {self.inputs.dtype}, {self.subject.module})"


def problem(
    choose: Choose,
    samples: int = 2,
    *,
    weights: Sequence[str] = WEIGHTS,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
) -> Problem:
    """Return a random problem.

    Args:
        choose: Makes all decisions.
        samples: Number of samples.
        weights: What may happen to the weights.
        dtypes: Dtypes that the network may compute in.
    """
    dtype, shape = choose(dtypes), choose(SHAPES)
    generator = torch.Generator().manual_seed(choose(range(2**16)))
    values = torch.rand(samples, *shape, generator=generator, dtype=torch.float64)
    inputs = (values * 1.2 - 0.1).clamp(0, 1).to(dtype)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(choose(range(2**16)))
        module = _grown(choose, shape)
        _unsettle(module)
        done = choose(weights)
        spoilt = copy.deepcopy(module)
        _spoil(spoilt, done, choose)
        if bool(spoilt(inputs.float()).isfinite().all()):
            module = spoilt
    normalised = choose((True, False))
    arguments = {"mean": MEAN, "std": STD} if normalised else {}
    return Problem(Classifier(module.to(dtype).eval(), **arguments), inputs, done)


def seeded(seed: int, samples: int = 2, **options: Any) -> Problem:
    """Return the problem of a seed."""
    return problem(random.Random(seed).choice, samples, **options)


def problems(samples: int = 2, **options: Any) -> st.SearchStrategy[Problem]:
    """Return a strategy of problems, which shrink decision by decision."""

    @st.composite
    def draw_problem(draw: st.DrawFn) -> Problem:
        return problem(lambda options: draw(st.sampled_from(options)), samples, **options)

    return draw_problem()


def _grown(choose: Choose, shape: tuple[int, ...]) -> nn.Sequential:
    grower = Grower(choose, torch.rand(2, *shape))
    for _ in range(choose((1, 2, 3, 4))):
        grower.add(choose(IMAGE_STEPS)(grower))
    if not grower.add(Apply(*grower.take(ENDS))):
        grower.add(nn.Flatten())
    for _ in range(choose((0, 1, 2, 3))):
        grower.add(choose(VECTOR_STEPS)(grower))
    classes = choose((2, 3, 4))
    if grower.shape[0] < 2 or choose((True, True, True, False)):
        grower.add(nn.Linear(grower.shape[0], classes))
    return nn.Sequential(*grower.steps)


def _unsettle(module: nn.Module) -> None:
    """Give normalisations statistics and weights that are not those of a fresh one."""
    for each in module.modules():
        if isinstance(each, nn.BatchNorm1d | nn.BatchNorm2d):
            each.running_mean.uniform_(-0.5, 0.5)
            each.running_var.uniform_(0.1, 2)
        norms = nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm | nn.InstanceNorm2d
        if isinstance(each, norms) and each.weight is not None:
            each.weight.uniform_(-1.5, 1.5)
            each.bias.uniform_(-0.5, 0.5)


def _spoil(module: nn.Module, how: str, choose: Choose) -> None:
    """Change the weights of one layer."""
    parameters = list(module.parameters())
    if how == "plain" or not parameters:
        return
    chosen = choose(parameters)
    if how in ("small", "large"):
        chosen.mul_({"small": 1e-8, "large": 1e8}[how])
    elif how == "uneven":
        chosen.mul_(10 ** (torch.rand_like(chosen) * 16 - 8))
    elif how == "dead":
        for each in module.modules():
            if isinstance(each, nn.Linear | nn.Conv2d) and each.bias is not None:
                each.bias.copy_(torch.where(torch.rand_like(each.bias) > 0.5, -9.0, each.bias))
    else:
        chosen.zero_()
