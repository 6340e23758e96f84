"""Differences from a baseline, followed backward through the network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pytest_triguard.attributions.base import known_targets
from pytest_triguard.attributions.baselined import Complete
from pytest_triguard.engine.affine import not_affine
from pytest_triguard.engine.baselines import one_row
from pytest_triguard.engine.gradients import input_gradient
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.rescale import NODES, NotByRows, Rescale
from pytest_triguard.engine.samples import Batch
from pytest_triguard.errors import ModelError
from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.validation import one_of

REUSED = ("refuse", "each_call")


@dataclass(frozen=True, kw_only=True)
class DeepLIFT(Complete):
    """The difference from the baseline, times multipliers of the rescale rule.

    The maps sum to the change of the output between baseline and sample. Activation functions go
    by the rescale rule, wherever they are called; a maximum gives its change to the place that
    holds it; a product of two activations shares its change equally between them. A network with
    an operator beyond these and the affine ones is refused.

    Args:
        reused: What happens to a module with an activation function that is called more than once
            in a forward pass: `"refuse"`, as the method defines one difference for each of its
            units, or `"each_call"` for differences of each call, which keeps the sum.

    References:
        Shrikumar et al. 2017, "Learning Important Features Through Propagating Activation
        Differences", arXiv:1704.02685, section 3.5.2 (rescale rule); for the maximum, Lundberg and
        Lee 2017, arXiv:1705.07874, section 4.2.
    """

    name: ClassVar[str] = "deeplift"
    kind: ClassVar[str] = "integration"
    facts: ClassVar[Facts] = Facts(
        cost=f"{PASSES}, and 1 forward for baselines that differ",
        sign="signed",
        axioms=("complete",),
        checked="Captum",
    )

    reused: str = "refuse"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("reused", self.reused, REUSED)

    @property
    def passes_per_sample(self) -> int:
        """One, and a forward pass of the baseline, unless all samples have the same."""
        return 1

    def explain(self, model: Model, batch: Batch) -> Tensor:
        """Return the maps, `(n, C, H, W)`."""
        inputs, targets = batch.inputs, known_targets(batch)
        start = self.start(model, batch)
        parts = model.chunk.attempt(
            lambda part: self._multipliers(model, inputs[part], start[part], targets[part]),
            len(batch),
        )
        return (inputs - start) * (parts[0] if len(parts) == 1 else torch.cat(parts))

    def _multipliers(self, model: Model, inputs: Tensor, start: Tensor, targets: Tensor) -> Tensor:
        try:
            return self._against(model, inputs, one_row(start), targets)
        except NotByRows:
            return self._against(model, inputs, start, targets)

    def _against(self, model: Model, inputs: Tensor, start: Tensor, targets: Tensor) -> Tensor:
        """Return the multipliers against a baseline of each sample, or one for all of them."""
        rules = Rescale(self.name)

        def objective(logits: Tensor, classes: Tensor) -> Tensor:
            total = self.objective(logits, classes)
            unknown = not_affine(total, NODES)
            if unknown is not None:
                raise ModelError(
                    f"{self.name} has no rule for the operator {unknown} of the module "
                    f"{type(model.module).__name__}"
                )
            return total

        shared = len(start) < len(inputs)
        with torch.inference_mode(False), torch.enable_grad(), rules.reading(shared=shared):
            logits = model.logits(start.detach().requires_grad_())
            self.objective(logits.expand(len(targets), -1), targets)
        with ExitStack() as stack:
            if self.reused == "refuse":
                rules.before_rule = stack.enter_context(_called_once(model.module, self.name))
            return input_gradient(model, inputs, targets, objective, rules=rules)[0]


@contextmanager
def _called_once(module: nn.Module, method: str) -> Iterator[Callable[[str], None]]:
    """Watch the modules of a network, and yield what refuses an operator in a repeated call."""
    calls: Counter[str] = Counter()
    inside: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[name] += 1
            inside.append(name)

        return hook

    def leave(*_: Any) -> None:
        inside.pop()

    def refuse(operator: str) -> None:
        for name in reversed(inside):
            if calls[name] > 1:
                kind = type(module.get_submodule(name)).__name__
                raise ModelError(
                    f"{method} defines one difference for each unit, but the {kind} {name!r} with "
                    f"the operator {operator} is called more than once; give each call a module "
                    "of its own, or the method reused='each_call'"
                )

    with ExitStack() as hooks:
        for name, each in module.named_modules():
            if not isinstance(each, torch.jit.ScriptModule):  # has no hooks, nor operators to see
                hooks.callback(each.register_forward_pre_hook(enter(name)).remove)
                hooks.callback(each.register_forward_hook(leave).remove)
        yield refuse
