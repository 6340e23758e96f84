"""The bounds of auto_LiRPA, for who wants a second opinion; a library that need not be installed.

Release 0.3, the one on the package index, was written for torch 1.12. It is adapted here while it
is in use, and only then: everything that is changed in torch, numpy, logging and warnings is put
back, and the module under test is copied first. Later releases (0.6, 0.7) need less of this.

**What its proofs mean.** The library computes with plain floating point and rounds nothing outward.
Bounds are computed in float64 where the device knows it, and `SLACK` times the largest logit is
taken off every margin. That is a stated allowance, not a bound on the rounding error: a proof by
this backend is sound up to float rounding. The project's own methods have no such gap.

**What is guarded.** Only operators on a list are handed to the library; each was tried against
sampled outputs in every method. All else is `Unsupported`, by name and module path:

* division (its interval rule is wrong where the numerator has both signs), layer norm (replaced by
  a formula without epsilon), softmax, powers and every other operator that is not on the list;
* average pools that overlap or are padded, which it bounds wrongly;
* max-pools that overlap or are padded, in all methods but `ibp`; any max-pool in `alpha_crown`;
* leaky ReLU with a slope beyond 0 to 1, whose chord it takes for an upper line;
* convolutions with groups or dilation in patches mode, which it bounds wrongly: matrices are used;
* weights that are not finite (a NaN bias becomes 0 in the library).

Dropout is replaced in the copy (the library puts the caller's module into training mode for it).
Samples are bounded one by one where the library's result depends on their neighbours. Alpha-CROWN
stores every slope (it fails where more than 90 % of a layer is unstable), keeps the gradient of a
clamp at its ends (torch 2.14 made it 0, and the optimisation stood still unnoticed), is tried on a
network where it must gain, and never returns less than CROWN. On every call the library's network
is compared with the module at both ends and in the middle of each box, and the bounds with both.

References:
    Xu et al. 2020, "Automatic Perturbation Analysis for Scalable Certified Robustness and Beyond",
    arXiv:2002.12920; Zhang et al. 2018, arXiv:1811.00866; Xu et al. 2021, arXiv:2011.13824.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytest_triguard.errors import InputError
from pytest_triguard.validation import one_of
from pytest_triguard.verification import rounding
from pytest_triguard.verification.auto_lirpa_layer import (
    PACKAGE,
    GradientAtTheEnds,
    adapted,
    bounded_class,
    copied_module,
    forget,
    library_options,
    refusing,
    scopes,
)
from pytest_triguard.verification.auto_lirpa_operators import POOL, refuse, storage
from pytest_triguard.verification.intervals import Ball, BallNorm, Interval, lengths
from pytest_triguard.verification.operators import Unsupported

INSTALL = "pip install --no-deps auto_LiRPA==0.3 appdirs pyyaml packaging tqdm sortedcontainers"
"""How the library is installed beside a current torch, which its metadata does not allow."""

METHODS: dict[str, str] = {
    "ibp": "IBP",
    "crown_ibp": "CROWN-IBP",
    "crown": "CROWN",
    "alpha_crown": "CROWN-Optimized",
}
"""The methods by name, and what the library calls them."""

SLACK: dict[torch.dtype, float] = {torch.float32: 1e-4, torch.float64: 1e-9}
"""What is taken off a margin, by the dtype of the bounds and relative to the largest magnitude of
a logit (at least 1): an allowance for the rounding of the library."""

FAITHFUL: dict[torch.dtype, float] = {torch.float32: 1e-3, torch.float64: 1e-8}
"""How far logits of the module and of the library may differ, relative to the largest."""

STEPS = 20
"""Steps of alpha-CROWN."""

_ORDERS: dict[BallNorm, float] = {"linf": math.inf, "l2": 2.0, "l1": 1.0}


def available() -> bool:
    """Return whether the library is installed; it is not imported."""
    return importlib.util.find_spec(PACKAGE) is not None


def require() -> Any:
    """Return the library, imported without its side effects.

    Raises:
        InputError: If it is absent, or cannot be imported beside this torch; has the install line.
    """
    if not available():
        raise InputError(
            f'method "auto_lirpa" needs {PACKAGE}, which is not installed; install it with: '
            f"{INSTALL}"
        )
    try:
        with adapted(torch.get_default_dtype()):
            return importlib.import_module(PACKAGE)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f'method "auto_lirpa" cannot use the installed {PACKAGE} with torch '
            f"{torch.__version__}: {error}; the release that is known to work: {INSTALL}"
        ) from error


@dataclass(frozen=True)
class Found:
    """Bounds by the library.

    Attributes:
        margin: `(n, S)` lower bounds of the rows, the slack taken off; NaN where refused.
        logits: Bounds of the logits, `(n, K)`, without slack; likewise.
        slack: `(n, S)` what was taken off; likewise.
        reasons: Why a sample was refused, or None.
    """

    margin: Tensor
    logits: Interval
    slack: Tensor
    reasons: tuple[str | None, ...]


class AutoLirpa:
    """A module as auto_LiRPA bounds it, with one method.

    Args:
        module: The network; it is copied and stays as it is.
        normalization: Mean and standard deviation in front of it, `(C,)` each, or None.
        example: `(n, C, H, W)` inputs as the module itself takes them; one is traced.
        method: `"ibp"`, `"crown_ibp"`, `"crown"` or `"alpha_crown"`.
        dtype: Dtype of the bounds; None for float64.
        conv_mode: How the library stores convolutions: `"patches"`, `"matrix"`, or `"auto"` for
            patches where they are sound.
        steps: Steps of alpha-CROWN.

    Attributes:
        dtype: Dtype of the bounds.
        conv_mode: How the library stores convolutions.
        statement: What a proof means, in one sentence.
        singly: Whether samples are bounded one by one.

    Raises:
        InputError: If the library is absent or the method unknown.
        Unsupported: If the module has an operator that is not known to be bounded soundly.
    """

    def __init__(
        self,
        module: nn.Module,
        normalization: tuple[Tensor, Tensor] | None,
        example: Tensor,
        method: str,
        *,
        dtype: torch.dtype | None = None,
        conv_mode: str = "auto",
        steps: int = STEPS,
    ) -> None:
        self.method = one_of("method", method, METHODS)
        self._library = require()
        self.dtype = torch.float64 if dtype is None else dtype
        self.statement = (
            f"sound up to float rounding: {PACKAGE} {self._library.__version__} rounds nothing "
            f"outward; {SLACK[self.dtype]:g} of the largest logit is taken off each margin"
        )
        self._normalization = _reshaped(normalization, self.dtype)
        self._module = copied_module(module, self.dtype)
        inputs = example[:1].detach().to(self.dtype)
        with adapted(self.dtype):
            nodes = self._accepted(inputs)
            self.conv_mode = storage(conv_mode, nodes)
            self._bounded = self._converted(self._module, inputs, steps)
        pools = any(node.op == POOL for node in nodes)
        alone = ("crown", "alpha_crown", "crown_ibp") if pools else ("crown", "alpha_crown")
        self._slopes = any(node.op == "onnx::Relu" for node in nodes)
        self.singly = method in alone or not self._batches(inputs)
        if method == "alpha_crown" and self._slopes:
            self._refuse_dead(steps)

    def _accepted(self, inputs: Tensor) -> list[Any]:
        """Return the nodes of the parsed module that depend on the input, none of them refused."""
        parser = importlib.import_module(f"{PACKAGE}.parse_graph")
        with refusing("be parsed by"), scopes(self._module):
            nodes, leaves = parser.parse_module(self._module, (inputs,))[:2]
        reached = {leaf.name for leaf in leaves if leaf.input_index is not None}
        found = []
        for node in nodes:
            if reached.intersection(node.inputs) and node.op != "onnx::Shape":
                refuse(node, reached, self.method)
                reached.add(node.name)
                found.append(node)
        return found

    def _converted(self, module: nn.Module, inputs: Tensor, steps: int) -> Any:
        with refusing("be converted by"):
            bounded = bounded_class(self._library)(
                module, inputs, library_options(self.conv_mode, steps)
            )
            bounded.eval()
        return bounded

    def _batches(self, inputs: Tensor) -> bool:
        """Return whether the library's network takes two samples; tracing may freeze one."""
        pair = torch.cat([inputs, inputs])
        try:
            with adapted(self.dtype), torch.no_grad():
                return bool(self._bounded(pair).shape == self._module(pair).shape)
        except Exception:  # the library fails in many ways
            return False

    # --- bounds ---------------------------------------------------------------------------------

    def margins(
        self, lower: Tensor, upper: Tensor, rows: Tensor, ball: Ball | None = None
    ) -> Found:
        """Return lower bounds of rows on the logits over boxes, or over balls.

        A sample is refused, whatever the others are, where the library fails, does not compute what
        the module computes, or gives bounds that do not hold the module's values.

        Args:
            lower: `(n, C, H, W)` lower ends in the user's space.
            upper: `(n, C, H, W)` upper ends.
            rows: `(n, S, K)`.
            ball: L2 or L1 balls of the user's space; the box is then left out, for the library
                does not cut a ball.
        """
        if ball is None and not self.singly:
            try:
                return self._margins(lower, upper, rows, None)
            except Unsupported:
                pass  # which of them it is shows one by one
        parts = []
        for place in range(len(lower)):
            part = slice(place, place + 1)
            try:
                found = self._margins(lower[part], upper[part], rows[part], _picked(ball, place))
            except Unsupported as refusal:
                found = _nothing(rows[part].to(self.dtype), str(refusal))
            parts.append(found)
        return _joined(parts)

    def _margins(self, lower: Tensor, upper: Tensor, rows: Tensor, ball: Ball | None) -> Found:
        classes = rows.shape[2]
        unit = torch.eye(classes, dtype=self.dtype, device=rows.device).expand(len(rows), -1, -1)
        wanted = torch.cat([rows.to(self.dtype), unit, -unit], dim=1)
        base = "crown" if self.method == "alpha_crown" else self.method
        found = self.rows(lower, upper, wanted, ball, method=base)
        margin = found[:, : -2 * classes]
        logits = Interval(found[:, -2 * classes : -classes], -found[:, -classes:])
        if self.method == "alpha_crown":
            margin = torch.maximum(margin, self.rows(lower, upper, rows, ball))
        self._refuse_stray(lower, upper, logits, ball)
        largest = logits.magnitude.amax(1, keepdim=True)
        size = rows.to(self.dtype).abs().sum(2).div_(2).clamp_min_(1)
        slack = SLACK[self.dtype] * largest.clamp_min(1) * size
        return Found(margin - slack, logits, slack, (None,) * len(margin))

    def rows(
        self,
        lower: Tensor,
        upper: Tensor,
        rows: Tensor,
        ball: Ball | None = None,
        *,
        method: str | None = None,
        singly: bool | None = None,
    ) -> Tensor:
        """Return what the library says the rows are at least, `(n, S)`: no slack, no comparison.

        Args:
            lower: `(n, C, H, W)` lower ends in the user's space.
            upper: `(n, C, H, W)` upper ends.
            rows: `(n, S, K)`.
            ball: Balls in place of the boxes, or None.
            method: Another method than that of the constructor.
            singly: Whether samples are bounded one by one; None for where it matters.

        Raises:
            Unsupported: If the library fails.
        """
        together = not (self.singly if singly is None else singly) and ball is None
        step = len(lower) if together else 1
        wanted = self.method if method is None else method
        name = METHODS["crown" if wanted == "alpha_crown" and not self._slopes else wanted]
        parts = []
        for start in range(0, len(lower), step):
            part = slice(start, start + step)
            with adapted(self.dtype):
                around = self._perturbed(lower[part], upper[part], _picked(ball, start))
            parts.append(self._computed(around, rows[part].to(self.dtype), name))
        return torch.cat(parts)

    def _computed(self, around: Any, rows: Tensor, name: str) -> Tensor:
        """Ask the library; where its sparse slopes fail, ask again with all of them stored."""
        optimised = name == METHODS["alpha_crown"]
        with ExitStack() as stack:
            stack.enter_context(adapted(self.dtype))
            stack.enter_context(torch.set_grad_enabled(optimised))
            if optimised:
                stack.enter_context(GradientAtTheEnds())
            stack.enter_context(refusing("be bounded by"))
            try:
                bound = self._asked(around, rows, name, sparse=True)
            except AssertionError:
                bound = self._asked(around, rows, name, sparse=False)
        if bound.shape != rows.shape[:2]:
            raise Unsupported(f"{PACKAGE} returned bounds of shape {tuple(bound.shape)}")
        return bound

    def _asked(self, around: Any, rows: Tensor, name: str, *, sparse: bool) -> Tensor:
        forget(self._bounded, sparse)
        found = self._bounded.compute_bounds(
            x=(around,), C=rows, method=name, bound_lower=True, bound_upper=name == "IBP"
        )
        bound: Tensor = found[0].detach()
        return bound

    def _perturbed(self, lower: Tensor, upper: Tensor, ball: Ball | None) -> Any:
        """Return inputs of the library for boxes, or for one ball."""
        library = self._library
        if ball is None:
            low, high = self._normalized(lower, upper)
            perturbation = library.PerturbationLpNorm(norm=math.inf, x_L=low, x_U=high)
            return library.BoundedTensor((low + high) / 2, perturbation)
        scale, centre = self._radius_scale(ball), ball.centre.to(self.dtype)
        middle, beside = self._normalized(centre, centre)
        widened = float(ball.radius.amax()) * scale * (1 + 64 * rounding.roundoff(self.dtype))
        widened += float(lengths(beside - middle, ball.norm).amax())
        perturbation = library.PerturbationLpNorm(norm=_ORDERS[ball.norm], eps=widened)
        return library.BoundedTensor(middle, perturbation)

    def _radius_scale(self, ball: Ball) -> float:
        """Return how much longer a radius is behind the normalisation; refuse uneven balls."""
        if bool((ball.scale != 1).any()):
            raise Unsupported(f"{PACKAGE} knows no {ball.norm} ball that is scaled unevenly")
        if self._normalization is None:
            return 1.0
        factors = self._normalization[1].reciprocal()
        if bool((factors != factors.flatten()[0]).any()):
            raise Unsupported(
                f"{PACKAGE} knows no {ball.norm} ball behind a normalisation that differs between "
                "channels"
            )
        return float(factors.flatten()[0])

    def _normalized(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes as the module sees them, moved outward by what was rounded."""
        low, high = lower.to(self.dtype), upper.to(self.dtype)
        if self._normalization is None:
            return low, high
        mean, std = (each.to(low.device) for each in self._normalization)
        room = (
            rounding.roundoff(self.dtype) * 4 * (low.abs().maximum(high.abs()) + mean.abs()) / std
        )
        return rounding.down((low - mean) / std - room, 2), rounding.up(
            (high - mean) / std + room, 2
        )

    # --- guards ---------------------------------------------------------------------------------

    @torch.no_grad()
    def _refuse_stray(
        self, lower: Tensor, upper: Tensor, logits: Interval, ball: Ball | None
    ) -> None:
        """Hold the library's network against the module, and its bounds against both."""
        if ball is None:
            points = torch.cat([lower, upper, (lower + upper) / 2]).to(self.dtype)
            bounds = Interval(logits.lower.repeat(3, 1), logits.upper.repeat(3, 1))
        else:
            points, bounds = ball.centre.to(self.dtype), logits
        inputs = self._normalized(points, points)[0]
        expected = torch.cat([self._module(part) for part in torch.split(inputs, 1)])
        step = 1 if self.singly else len(inputs)
        with adapted(self.dtype), refusing("be evaluated by"):
            values = torch.cat([self._bounded(part) for part in torch.split(inputs, step)])
        room = FAITHFUL[self.dtype] * expected.abs().amax(1, keepdim=True).clamp_min(1)
        if values.shape != expected.shape or not bool(((values - expected).abs() <= room).all()):
            raise Unsupported(
                f"{PACKAGE} does not compute what {type(self._module).__name__} computes"
            )
        if bool(((expected < bounds.lower - room) | (expected > bounds.upper + room)).any()):
            raise Unsupported(f"the bounds by {PACKAGE} do not hold the module's own logits")

    def _refuse_dead(self, steps: int) -> None:
        """Refuse an alpha-CROWN that does not optimise, tried where it can gain 0.7.

        The network is `relu(x) - 0.3 x` on [-1, 1.2]: CROWN has -0.7, the best slope has 0.
        """
        with torch.random.fork_rng(devices=[]):
            first, last = nn.Linear(1, 2), nn.Linear(2, 1)
        with torch.no_grad():
            for values, wanted in zip(
                (first.weight, first.bias, last.weight, last.bias),
                ([[1.0], [1.0]], [0.0, 10.0], [[1.0, -0.3]], [3.0]),
                strict=True,
            ):
                values.copy_(torch.tensor(wanted))
        device = next(iter(self._module.state_dict().values()), torch.empty(0)).device
        probe, box = copy.copy(self), torch.tensor([[-1.0], [1.2]], dtype=self.dtype, device=device)
        probe._normalization = None
        probe._module = copied_module(nn.Sequential(first, nn.ReLU(), last), self.dtype).to(device)
        with adapted(self.dtype):
            probe._bounded = probe._converted(probe._module, box[:1], steps)
        bound = probe.rows(box[:1], box[1:], torch.ones(1, 1, 1, device=device))
        if float(bound) < -0.6:
            raise Unsupported(
                f"alpha-CROWN by {PACKAGE} {self._library.__version__} does not optimise with "
                f"torch {torch.__version__}"
            )


def _reshaped(
    normalization: tuple[Tensor, Tensor] | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor] | None:
    if normalization is None:
        return None
    mean, std = (each.detach().to(dtype).reshape(1, -1, 1, 1) for each in normalization)
    return mean, std


def _picked(ball: Ball | None, place: int) -> Ball | None:
    """Return the ball of one sample."""
    if ball is None:
        return None
    part = slice(place, place + 1)
    return Ball(ball.centre[part], ball.scale[:1], ball.radius[part], ball.norm)


def _nothing(rows: Tensor, reason: str) -> Found:
    """Return what is known of a refused sample, its rows being `(1, S, K)`."""
    margin, logits = (torch.full_like(part, torch.nan) for part in (rows[:, :, 0], rows[:, 0]))
    return Found(margin, Interval(logits, logits), margin, (reason,))


def _joined(parts: list[Found]) -> Found:
    """Join what was found sample by sample."""
    logits = [part.logits for part in parts]
    return Found(
        torch.cat([part.margin for part in parts]),
        Interval(
            torch.cat([each.lower for each in logits]), torch.cat([each.upper for each in logits])
        ),
        torch.cat([part.slack for part in parts]),
        tuple(reason for part in parts for reason in part.reasons),
    )
