"""The attacks on predictions as the tests see them: a new attack is one row in `TABLE`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_triguard import attacks
from pytest_triguard.classifier import Classifier
from tests.networks import CLASSES, SHAPES

EPS = {"linf": 0.04, "l2": 0.15}
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


@dataclass(frozen=True)
class Row:
    """One attack, as the table tests it.

    Attributes:
        name: Its name in the family.
        defaults: Hyperparameters it must have unless told otherwise, beside the common ones.
        few: Hyperparameters that make it fast enough for a test.
        whole: Hyperparameters that make every sample go all the way.
        converged: Hyperparameters, at radius 1 in L2, that take it to the optimum of a linear
            network; its steps are in units of eps.
        length: Length of a step in units of eps unless told otherwise, for a number of steps.
        random: Whether it draws.
        random_start: Whether it starts at random unless told otherwise.
        plain: Whether it follows the gradient of the cross-entropy at each iterate, and nothing
            else; such a row meets every case of every test, another one a few of them.
        straight: Hyperparameters under which its direction on a linear network is the gradient's,
            or None where it never is.
        passes: Gradient passes that a start and some estimates take with `few`.
        norms: Norms it is defined for.
        goals: Whether it is targeted, for each way it can be.
        searching: Whether it searches by rules of its own, without a step size or a loss to choose.
        gradients: Whether it needs gradients.
        enough: Hyperparameters with which it breaks something, where `few` are too few.
        long: Whether it takes too long for a test: quick attacks are cascaded in its place.
    """

    name: str
    defaults: dict[str, Any] = field(default_factory=dict)
    few: dict[str, Any] = field(default_factory=dict)
    whole: dict[str, Any] = field(default_factory=dict)
    converged: dict[str, Any] = field(default_factory=dict)
    length: Callable[[int], float] = lambda steps: 1.0
    random: bool = False
    random_start: bool = False
    plain: bool = True
    straight: dict[str, Any] | None = field(default_factory=dict)
    passes: Callable[[int], int] = lambda steps: steps
    norms: tuple[str, ...] = ("linf", "l2")
    goals: tuple[bool, ...] = (False, True)
    searching: bool = False
    gradients: bool = True
    enough: dict[str, Any] = field(default_factory=dict)
    long: bool = False

    @property
    def stepwise(self) -> bool:
        """Whether it takes steps of a size, up a loss, that can be chosen."""
        return bool(self.whole) and not self.searching

    def __str__(self) -> str:
        return self.name


STEPWISE = {"step_size": None, "restarts": 1, "stop": "success"}
ACCUMULATING = {
    "eps": 16 / 255,
    "steps": 10,
    "random_start": False,
    "momentum": 1.0,
    "transforms": [],
    **STEPWISE,
    "stop": "never",
}


def transferable(
    name: str,
    *,
    defaults: dict[str, Any] | None = None,
    few: dict[str, Any] | None = None,
    **more: Any,
) -> Row:
    """Return the row of an attack made to carry over to other classifiers."""
    return Row(
        name,
        defaults=ACCUMULATING | (defaults or {}),
        few={"steps": 3, "stop": "success"} | (few or {}),
        whole={"stop": "never"},
        length=lambda steps: 1 / steps,
        plain=False,
        **more,
    )


def searching(name: str, **more: Any) -> Row:
    """Return the row of an attack that searches by rules of its own."""
    return Row(
        name, **{"whole": {"stop": "never"}} | more, plain=False, straight=None, searching=True
    )


AUTO = {
    "steps": 100,
    "restarts": 1,
    "rho": 0.75,
    "copies": 1,
    "stop": "success",
    "trajectory": False,
}
FABS = {
    "steps": 100,
    "restarts": 1,
    "alpha_max": 0.1,
    "eta": 1.05,
    "beta": 0.9,
    "stop": "success",
}
TABLE = (
    Row("fgsm"),
    Row(
        "bim",
        defaults={"steps": 10, "random_start": False, **STEPWISE},
        few={"steps": 4},
        whole={"stop": "never"},
        length=lambda steps: 1 / steps,
    ),
    Row(
        "pgd",
        defaults={"steps": 40, "random_start": True, **STEPWISE},
        few={"steps": 5},
        whole={"stop": "never"},
        converged={"steps": 60, "step_size": 1.0},
        length=lambda steps: 2.5 / steps,
        random=True,
        random_start=True,
    ),
    transferable("mim"),
    transferable("nim"),
    transferable(
        "si_nim", defaults={"copies": 5}, few={"copies": 2}, passes=lambda steps: 2 * steps
    ),
    transferable(
        "dim",
        defaults={"copies": 1, "probability": 0.5, "rate": 1.1},
        few={"rate": 1.5},
        straight={"probability": 0.0},
        random=True,
    ),
    transferable(
        "tim",
        defaults={"size": 15, "kernel": "gaussian"},
        few={"size": 3},
        straight={"size": 1},
    ),
    transferable(
        "sia",
        defaults={
            "copies": 20,
            "blocks": 3,
            "noise": 16 / 255,
            "operations": [
                "roll_rows",
                "roll_columns",
                "flip_rows",
                "flip_columns",
                "rotate",
                "scale",
                "noise",
            ],
        },
        few={"copies": 2, "blocks": 2},
        straight={"operations": ["identity"]},
        random=True,
        passes=lambda steps: 2 * steps,
    ),
    transferable(
        "ssa",
        defaults={"copies": 20, "rho": 0.5, "sigma": 16 / 255},
        few={"copies": 2, "rho": 0.1, "sigma": 0.02},
        random=True,
        passes=lambda steps: 2 * steps,
    ),
    transferable(
        "gra",
        defaults={"copies": 20, "beta": 3.5, "decay": 0.94},
        few={"copies": 2},
        random=True,
        passes=lambda steps: 3 * steps,
    ),
    transferable(
        "mig",
        defaults={
            "loss": "probability",
            "points": 20,
            "baseline": "zero",
            "weights": "integral",
        },
        few={"points": 3},
        straight=None,
        passes=lambda steps: 3 * steps,
    ),
    transferable(
        "naa",
        defaults={"loss": "probability", "layer": None, "points": 30, "noise": 0.0},
        few={"points": 7},
        passes=lambda steps: 7 + steps,
    ),
    transferable(
        "fsps",
        defaults={
            "copies": 20,
            "rho": 0.5,
            "sigma": 16 / 255,
            "search_steps": 50,
            "search_after": 0.5,
            "search_radius": 0.5,
            "size": 7,
        },
        few={"copies": 2, "rho": 0.1, "sigma": 0.02, "search_steps": 2, "size": 3},
        straight={"size": 1},
        random=True,
        # Of 3 steps, the last is taken after a descent of 2.
        passes=lambda steps: 2 * steps + 2 * max(0, steps - 2),
    ),
    searching("apgd_ce", defaults=AUTO, few={"steps": 8}, random=True),
    searching("apgd_dlr", defaults=AUTO, few={"steps": 8}, random=True),
    searching(
        "apgd_t", defaults=AUTO | {"classes": 9}, few={"steps": 8}, random=True, goals=(False,)
    ),
    searching("fab", defaults=FABS, few={"steps": 6}, goals=(False,)),
    searching("fab_t", defaults=FABS | {"classes": 9}, few={"steps": 6}, goals=(False,)),
    searching(
        "square",
        defaults={"queries": 5000, "restarts": 1, "share": 0.8, "stop": "success"},
        few={"queries": 30},
        random=True,
        gradients=False,
        enough={"queries": 60},
    ),
    searching(
        "cw",
        defaults={
            "norm": "l2",
            "steps": 1000,
            "searches": 9,
            "step_size": 0.01,
            "constant": 1e-3,
            "confidence": 0.0,
            "stop": "success",
        },
        few={"steps": 15, "searches": 3, "constant": 0.1, "norm": "l2"},
        norms=("l2",),
    ),
    searching(
        "autoattack",
        defaults={"version": "standard"},
        whole={},
        random=True,
        goals=(False,),
        long=True,
    ),
)


@dataclass(frozen=True)
class Case:
    """A row with a norm and a goal."""

    row: Row
    norm: str
    targeted: bool

    def __str__(self) -> str:
        return f"{self.row.name}-{self.norm}" + ("-targeted" if self.targeted else "")

    def attack(self, *, whole: bool = False, **changed: Any) -> attacks.Attack:
        """Return the attack, fast, with changed hyperparameters."""
        fast = self.row.few | (self.row.whole if whole else {})
        given = {"eps": EPS[self.norm], "norm": self.norm} | fast | changed
        return attacks.get(self.row.name, **given)

    def targets(self, labels: Tensor, classes: int = CLASSES) -> Tensor | None:
        """Return the class after the label, or None if there is no target."""
        return (labels + 1) % classes if self.targeted else None

    def reached(self, predictions: Tensor, labels: Tensor) -> Tensor:
        """Return whether predictions reach the goal."""
        targets = self.targets(labels)
        return predictions != labels if targets is None else predictions == targets


def _in_turn() -> list[Case]:
    """Return each row with each norm and each goal once; all combinations occur in the table."""
    found: list[Case] = []
    for place, row in enumerate(TABLE):
        own = _own(row)
        chosen = [case for case in own if case.targeted == ((case.norm == "l2") ^ (place % 2 == 1))]
        found += chosen if len({case.targeted for case in chosen}) == 2 else own
    return found


def _own(row: Row) -> list[Case]:
    return [Case(row, *each) for each in product(row.norms, row.goals) if not row.long]


SOME = _in_turn()
ONE = [
    own[place // 2 % len(own)]
    for place, row in enumerate(TABLE)
    if (own := [case for case in SOME if case.row is row])
]
CASES = [case for row in TABLE for case in _own(row) if row.plain or case in SOME]
STEPS = [case for case in CASES if case.row.stepwise]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
some_cases = pytest.mark.parametrize("case", SOME, ids=str)
"""For what can fail with a norm or with a goal, but not with both together alone."""
one_case = pytest.mark.parametrize("case", ONE, ids=str)
"""For what neither the norm nor the goal has a part in: all of them occur in the table."""
plain_cases = pytest.mark.parametrize("case", [c for c in CASES if c.row.plain], ids=str)
stepwise_cases = pytest.mark.parametrize("case", [c for c in SOME if c.row.stepwise], ids=str)
random_cases = pytest.mark.parametrize("case", [c for c in SOME if c.row.random], ids=str)
starting_cases = pytest.mark.parametrize("case", [c for c in SOME if c.row.random_start], ids=str)
untargeted_steps = pytest.mark.parametrize("case", [c for c in STEPS if not c.targeted], ids=str)
stepping_cases = pytest.mark.parametrize("case", [c for c in CASES if not c.row.searching], ids=str)
stepping_rows = pytest.mark.parametrize("row", [r for r in TABLE if not r.searching], ids=str)
every_row = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
plain_rows = pytest.mark.parametrize("row", [r for r in TABLE if r.plain], ids=lambda r: r.name)


def with_networks(cases: list[Case]) -> list[tuple[Case, str]]:
    """Return all cases on one network, and one case of each row, in turn, on every other."""
    first, *others = ["conv", *(name for name in SHAPES if name != "conv")]
    found = [(case, first) for case in cases]
    for row in TABLE:
        own = [case for case in cases if case.row is row]
        found += [(own[place % len(own)], name) for place, name in enumerate(others) if own]
    return found


both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def distance(first: Tensor, second: Tensor, norm: str) -> Tensor:
    order = math.inf if norm == "linf" else 2
    return torch.linalg.vector_norm((first - second).flatten(1), order, dim=1)


def same(first: attacks.AttackResult, second: attacks.AttackResult, tolerance: float = 0) -> bool:
    close = torch.allclose(first.adversarial, second.adversarial, rtol=0, atol=tolerance)
    return (
        close
        and torch.equal(first.success, second.success)
        and torch.equal(first.passes, second.passes)
    )


def refused(error: type[Exception], message: str) -> Any:
    """Expect an error whose message begins so."""
    return pytest.raises(error, match=f"^{re.escape(message)}")


def binary(dtype: torch.dtype = torch.float64) -> Classifier:
    """Return a linear network of two classes: its steepest direction is the same everywhere."""
    generator = torch.Generator().manual_seed(3)
    layer = nn.Linear(24, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(2, 24, generator=generator, dtype=torch.float64) / 3)
    return Classifier(nn.Sequential(nn.Flatten(), layer).to(dtype))
