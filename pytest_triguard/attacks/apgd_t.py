"""Auto-PGD towards one likely class after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pytest_triguard.attacks.apgd import APGD, Climb
from pytest_triguard.attacks.ranked import TARGETS, Ranked
from pytest_triguard.engine.iteration import search
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.objectives import targeted_dlr
from pytest_triguard.engine.outcome import Outcome
from pytest_triguard.engine.rows import Rows
from pytest_triguard.engine.samples import Batch
from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.validation import whole


@dataclass(frozen=True, kw_only=True)
class APGDT(APGD):
    """Auto-PGD up the targeted difference-of-logits ratio, for one class after the other.

    The targets are the classes of largest logit at the sample, without the label. The goal is any
    class but the label. It needs four classes.

    Args:
        classes: Number of targets, or all classes but the label where those are fewer.

    References:
        Croce and Hein 2020, "Reliable Evaluation of Adversarial Robustness with an Ensemble of
        Diverse Parameter-free Attacks", arXiv:2003.01690, equation 7 and section 5.
    """

    name: ClassVar[str] = "apgd_t"
    facts: ClassVar[Facts] = Facts(cost=f"at most {PASSES}", checked="torchattacks")
    loss: ClassVar[str] = "targeted dlr"

    classes: int = TARGETS

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("classes", self.classes, low=1)

    @property
    def takes_targets(self) -> bool:
        """No: the goal is any class but the label."""
        return False

    @property
    def passes_per_sample(self) -> int:
        """Most gradient passes a sample can take."""
        return super().passes_per_sample * self.classes

    def classes_needed(self, *, targeted: bool) -> int:
        """Return the fewest classes the loss is defined for."""
        return 4

    def describe(self) -> str:
        """Return the method and its budget in words, for reports."""
        return f"{super().describe()}, {self.classes} target classes at most"

    def stream(self, model: Model, batches: Iterable[Batch]) -> Iterator[Outcome]:
        """Attack labelled batches and hand out outcomes in the order in which they finish."""
        return search(model, batches, _Ranked(self, model))


class _Ranked(Ranked[APGDT], Climb[APGDT]):
    """The search towards one class after the other."""

    def loss(self, logits: Tensor, rows: Rows) -> Tensor:
        return targeted_dlr(logits, rows["labels"], rows["aim"])
