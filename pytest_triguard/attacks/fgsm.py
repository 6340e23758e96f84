"""The fast gradient sign method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from pytest_triguard.attacks.base import Attack
from pytest_triguard.attacks.bim import BIM
from pytest_triguard.attacks.goals import LOSSES
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.outcome import Outcome
from pytest_triguard.engine.samples import Batch
from pytest_triguard.facts import Facts
from pytest_triguard.validation import flag, one_of


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """One step of length eps along the sign of the gradient (or the unit gradient, for L2).

    A misclassified sample is moved too, so that the result is the textbook's.

    Args:
        loss: What is ascended: `"cross_entropy"`, `"probability"`, `"logit"`, `"contrast"`,
            `"margin"` or `"dlr"`.
        trajectory: Whether the start, the gradient and the step are kept.

    References:
        Goodfellow et al. 2015, "Explaining and Harnessing Adversarial Examples",
        arXiv:1412.6572, section 4.
    """

    name: ClassVar[str] = "fgsm"
    facts: ClassVar[Facts] = Facts(checked="torchattacks, Foolbox, ART")

    loss: str = "cross_entropy"
    trajectory: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("loss", self.loss, LOSSES)
        flag("trajectory", self.trajectory)

    @property
    def passes_per_sample(self) -> int:
        """One."""
        return 1

    def stream(self, model: Model, batches: Iterable[Batch]) -> Iterator[Outcome]:
        """Attack labelled batches and hand out outcomes in the order in which they finish."""
        one_step = BIM(
            eps=self.eps,
            norm=self.norm,
            seed=self.seed,
            steps=1,
            loss=self.loss,
            stop="never",
            trajectory=self.trajectory,
        )
        return one_step.stream(model, batches)
