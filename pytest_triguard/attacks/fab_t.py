"""Fast adaptive boundary attack towards one likely class after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.attacks.fab import FAB, ToBoundary, slope
from pytest_triguard.attacks.ranked import TARGETS, Ranked
from pytest_triguard.engine.iteration import search
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.objectives import logit
from pytest_triguard.engine.outcome import Outcome
from pytest_triguard.engine.rows import Rows
from pytest_triguard.engine.samples import Batch
from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.validation import whole


@dataclass(frozen=True, kw_only=True)
class FABT(FAB):
    """FAB on the boundary to one class after the other: one backward pass a step.

    The targets are the classes of largest logit at the sample, without the label. The goal is any
    class but the label.

    Args:
        classes: Number of targets, or all classes but the label where those are fewer.

    References:
        Croce and Hein 2020, "Reliable Evaluation of Adversarial Robustness with an Ensemble of
        Diverse Parameter-free Attacks", arXiv:2003.01690, section 5.
    """

    name: ClassVar[str] = "fab_t"
    facts: ClassVar[Facts] = Facts(cost=f"at most {PASSES}", checked="torchattacks")

    classes: int = TARGETS

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("classes", self.classes, low=1)

    @property
    def passes_per_sample(self) -> int:
        """Most gradient passes a sample can take."""
        return super().passes_per_sample * self.classes

    def describe(self) -> str:
        """Return the method and its budget in words, for reports."""
        return f"{super().describe()}, {self.classes} target classes at most"

    def stream(self, model: Model, batches: Iterable[Batch]) -> Iterator[Outcome]:
        """Attack labelled batches and hand out outcomes in the order in which they finish."""
        return search(model, batches, _Ranked(self, model))


class _Ranked(Ranked[FABT], ToBoundary[FABT]):
    """The search towards one class after the other."""

    def boundary(self, model: Model, base: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            base = base.detach().requires_grad_()
            logits = model.logits(base)
            leads = logit(logits, rows["aim"]) - logit(logits, rows["labels"])
            gradient = slope(model, leads, base)
        return leads.detach(), gradient
