"""The assertions as the tests see them: a new assertion is one row in `TABLE`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_triguard import (
    Classifier,
    Measurement,
    assert_accuracy,
    assert_attack_success_below,
    assert_drift_below,
    assert_entropy_below,
    assert_explanation_robust,
    assert_explanations_agree,
    assert_faithful,
    assert_passes_sanity_check,
    assert_robust,
    assert_transfer_below,
    assert_trigger_recall,
    assert_verified,
    attacks,
    attribution_attacks,
    attributions,
    backdoors,
)
from pytest_triguard.verification import Budget
from tests.networks import bare, images

_SMOOTHGRAD = attributions.get("smoothgrad", copies=3)
_IG = attributions.get("integrated_gradients", points=4)
_ATTACKED = {
    "attack": attribution_attacks.get("topk", eps=0.1, steps=3),
    "attribution": "gradient_x_input",
    "eps": 0.1,
    "undefined_at_most": 1.0,
}


@dataclass(frozen=True)
class Case:
    """One assertion with arguments that make it fast.

    Attributes:
        title: What the test is called.
        assertion: The assertion.
        gate: Name of the argument that holds the threshold.
        passing: A threshold that every network of the tests passes.
        failing: One that none passes.
        labels: Whether labels are given beside the inputs: by position, by keyword, or not.
        options: The other arguments.
        derived: Returns those that go with the classifier under test.
    """

    title: str
    assertion: Callable[..., Measurement]
    gate: str
    passing: float
    failing: float
    labels: str = "position"
    options: dict[str, Any] = field(default_factory=dict)
    derived: Callable[[Any], dict[str, Any]] = lambda _: {}

    def __call__(
        self,
        subject: Any,
        inputs: Any,
        labels: Any = None,
        *,
        threshold: float | None = None,
        **options: Any,
    ) -> Measurement:
        """Call the assertion; with the threshold that passes unless there is another."""
        chosen = {self.gate: self.passing if threshold is None else threshold}
        given = chosen | self.options | self.derived(subject) | options
        if labels is None or self.labels == "none":
            return self.assertion(subject, inputs, **given)
        if self.labels == "keyword":
            return self.assertion(subject, inputs, labels=labels, **given)
        return self.assertion(subject, inputs, labels, **given)


def _with_a_twin(subject: Any) -> dict[str, Any]:
    """Return a source for transfer: the classifier without its biases."""
    known = subject if isinstance(subject, Classifier) else Classifier(nn.Identity())
    module = copy.deepcopy(known.module)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.zero_()
    return {"source": Classifier(module, bounds=known.bounds)}


TABLE = [
    Case("accuracy", assert_accuracy, "at_least", 0.0, 1.0),
    # Domains in place of seconds, so that the verdict is the same on a slow device.
    Case(
        "verified",
        assert_verified,
        "at_least",
        0.0,
        1.0,
        options={"eps": 0.02, "budget": Budget(domains=8, steps=5)},
    ),
    Case(
        "robust",
        assert_robust,
        "at_least",
        0.0,
        1.0,
        options={"eps": 0.1, "attack": attacks.get("pgd", eps=0.1, steps=3)},
    ),
    Case("entropy", assert_entropy_below, "threshold", 1.0, 1e-3, "keyword", {"attribution": _IG}),
    Case("drift", assert_drift_below, "threshold", 2.0, 1e-3, "keyword", {"attribution": _IG}),
    Case(
        "adversarial drift",
        assert_drift_below,
        "threshold",
        2.0,
        1e-9,
        "keyword",
        {
            "attribution": _SMOOTHGRAD,
            "between": ("clean", attacks.get("pgd", eps=0.1, steps=3)),
        },
    ),
    Case(
        "explanation similarity",
        assert_explanation_robust,
        "at_least",
        0.0,
        1.0,
        "keyword",
        _ATTACKED | {"metric": "topk_intersection"},
    ),
    Case(
        "explanation distance",
        assert_explanation_robust,
        "at_most",
        1.0,
        0.0,
        "keyword",
        _ATTACKED | {"metric": "cosine"},
    ),
    Case(
        "insertion",
        assert_faithful,
        "insertion_at_least",
        0.0,
        1.0,
        labels="keyword",
        options={"attribution": _IG, "steps": 9},
    ),
    Case(
        "deletion",
        assert_faithful,
        "deletion_at_most",
        1.0,
        0.0,
        labels="keyword",
        options={"attribution": _IG, "steps": 9},
    ),
    Case(
        "agreement",
        assert_explanations_agree,
        "at_least",
        -1.0,
        1.0,
        labels="keyword",
        options={"methods": ("gradient_x_input", _IG)},
    ),
    Case(
        "sanity check",
        assert_passes_sanity_check,
        "at_most",
        1.0,
        -1.0,
        labels="keyword",
        options={"attribution": "gradient_x_input"},
    ),
    Case(
        "trigger recall",
        assert_trigger_recall,
        "at_least",
        0.0,
        1.0,
        "none",
        {
            "attribution": _SMOOTHGRAD,
            "trigger": backdoors.get("badnets", target=1),
            "undefined_at_most": 1.0,
        },
    ),
    Case(
        "trigger success",
        assert_attack_success_below,
        "threshold",
        1.0,
        1e-6,
        options={"trigger": backdoors.get("badnets", target=1)},
    ),
    Case(
        "attack success",
        assert_attack_success_below,
        "threshold",
        1.0,
        1e-6,
        options={"attack": attacks.get("pgd", eps=0.03, steps=3)},
    ),
    Case(
        "targeted success",
        assert_attack_success_below,
        "threshold",
        1.0,
        1e-6,
        options={"attack": "pgd", "eps": 0.03, "target": 1},
    ),
    Case(
        "transfer success",
        assert_transfer_below,
        "threshold",
        1.0,
        1e-6,
        options={"attack": attacks.get("mim", eps=0.03, steps=3)},
        derived=_with_a_twin,
    ),
]

every_assertion = pytest.mark.parametrize("case", TABLE, ids=lambda case: case.title)


def gate_problem(
    count: int, dtype: torch.dtype = torch.float64
) -> tuple[Classifier, Tensor, Tensor]:
    """Return a classifier, images, and labels for which every assertion has something to count.

    Every fifth label is wrong, some samples fall to an attack, and the trigger fires on some.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(2)
        layers = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        network = nn.Sequential(*layers).double()
        network[-1].bias -= network(images((1, 6, 6), 30)).mean(0)
        network[-1].weight *= 4
        network[-1].bias *= 4
    subject, inputs = Classifier(network.to(dtype)), images((1, 6, 6), count, dtype)
    labels = bare(subject)(inputs).argmax(1)
    labels[::5] = (labels[::5] + 1) % 3
    return subject, inputs, labels
