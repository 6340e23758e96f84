"""PGD-40 against torchattacks, foolbox and ART, at equal batch.

They take all steps with every sample; here a sample leaves when it falls. Each row is skipped
where its library is not installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pytest_triguard.attacks.pgd import PGD
from pytest_triguard.classifier import Classifier
from pytest_triguard.settings import Session, Settings, use_session
from tests.benchmarks.plan import Plan
from tests.benchmarks.robustness import FALLING, STEPS, Falling
from tests.benchmarks.table import Row
from tests.benchmarks.timing import pairs

BATCH = 64
_NEARLY = 0.95
"""Share of the ratio of passes that counts as nearly all of it."""

Crafter = Callable[[Tensor, Tensor], Tensor]
"""From inputs and labels to adversarial inputs."""


def _torchattacks(module: nn.Module, eps: float) -> Crafter:
    import torchattacks

    attack: Crafter = torchattacks.PGD(
        module, eps=eps, alpha=2.5 * eps / STEPS, steps=STEPS, random_start=True
    )
    return attack


def _foolbox(module: nn.Module, eps: float) -> Crafter:
    import foolbox

    model = foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=2.5 * eps / STEPS, steps=STEPS, random_start=True)
    return lambda inputs, labels: attack(model, inputs, labels, epsilons=eps)[1]


def _art(module: nn.Module, eps: float) -> Crafter:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    estimator = PyTorchClassifier(
        module,
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, 28, 28),
        nb_classes=10,
        clip_values=(0, 1),
        device_type="cpu",
    )
    options: dict[str, Any] = {
        "eps": eps,
        "eps_step": 2.5 * eps / STEPS,
        "max_iter": STEPS,
        "num_random_init": 1,
        "batch_size": BATCH,
        "verbose": False,
    }
    attack = ProjectedGradientDescentPyTorch(estimator, **options)
    return lambda inputs, labels: torch.from_numpy(attack.generate(inputs.numpy(), labels.numpy()))


LIBRARIES = {"torchattacks": _torchattacks, "foolbox": _foolbox, "art": _art}
"""What makes the attack of a library, by the name it is imported under."""


def measure(plan: Plan, found: Falling) -> Iterator[Row]:
    """Yield the time of each library over that taken here, at each share that falls."""
    for name, make in LIBRARIES.items():
        if importlib.util.find_spec(name) is None:
            missing = f"not measured: {name} is not installed"
            yield Row(f"pgd-{STEPS} against {name}", None, details=missing)
            continue
        for share in FALLING:
            yield _row(plan, name, make(found.module, found.eps(share)), found, share)


def _row(plan: Plan, name: str, craft: Crafter, found: Falling, share: float) -> Row:
    """Compare robust accuracies: crafting, and the prediction of what was crafted."""
    eps, inputs, labels = found.eps(share), found.inputs, found.labels
    classifier, attack = Classifier(found.module), PGD(eps=eps, steps=STEPS)

    def theirs() -> float:
        fell = 0
        for some, each in zip(inputs.split(BATCH), labels.split(BATCH), strict=True):
            adversarial = craft(some, each).detach()
            with torch.no_grad():
                fell += int((found.module(adversarial).argmax(1) != each).sum())
        return fell / len(inputs)

    def ours() -> Tensor:
        with use_session(Session(settings=Settings(chunk=BATCH))):
            return attack(classifier, inputs, labels).passes

    needed, fell = int(ours().sum()), theirs()
    turns = pairs(theirs, ours, plan.pairs)
    passes = STEPS * len(inputs) / needed
    return Row(
        f"pgd-{STEPS} robust accuracy, small_cnn, {len(inputs)} digits, {share:.0%} fall: time of "
        f"{name} / here",
        turns.clock,
        f">= {_NEARLY * passes:.2f}",
        turns.processor,
        f"{passes:.2f} times the passes; {turns.first:.2f} s against {turns.second:.2f} s at batch "
        f"{BATCH}; {fell:.1%} fall there",
    )
