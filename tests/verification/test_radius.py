"""The certified radius: below the truth, as near to it as the tolerance, and the curve from it."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_triguard import Classifier, verification
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.settings import Session, Settings, use_session
from pytest_triguard.verification import Budget, certified_accuracy, certified_radius
from tests.verification.mixed_integer import TOLERANCE, Program
from tests.verification.zoo import CLASSES, problem

DUAL = {"linf": 1, "l2": 2, "l1": torch.inf}
FEW = Budget(domains=8, steps=3)


def linear(bounds):
    """Return a linear classifier, samples, labels of which two are wrong, and its weights."""
    generator = torch.Generator().manual_seed(3)
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, CLASSES)).double()
    with torch.no_grad():
        for each in module.parameters():
            each.copy_(torch.randn(each.shape, generator=generator, dtype=each.dtype))
    subject = Classifier(module, bounds=bounds)
    inputs = torch.rand(10, 1, 2, 3, generator=generator, dtype=torch.float64)
    labels = subject(inputs).argmax(1)
    labels[:2] = (labels[:2] + 1) % CLASSES
    return subject, inputs, labels, module[1].weight.detach(), module[1].bias.detach()


def differences(weight, bias, inputs, label):
    """Return weights and margins of the label against every other class."""
    others = [each for each in range(CLASSES) if each != label]
    slopes = weight[label] - weight[others]
    return slopes, slopes @ inputs.flatten() + bias[label] - bias[others]


def clipped_radius(slopes, margins, inputs):
    """Return the L-inf radius at which a margin reaches 0 over a ball cut by [0, 1].

    Each input moves to where it lowers the margin, at most to an end of its range: the margin is
    a broken line in eps, followed from break to break.
    """
    flat, radii = inputs.flatten(), []
    for slope, margin in zip(slopes, margins, strict=True):
        room = torch.where(slope > 0, flat, 1 - flat)
        order = room.argsort()
        left, at = float(margin), 0.0
        active = float(slope.abs().sum())
        for place in order.tolist():
            step = float(room[place]) - at
            if active * step >= left:
                break
            left, at = left - active * step, float(room[place])
            active -= float(slope[place].abs())
        radii.append(at + left / active if active > 1e-12 else math.inf)
    return min(radii)


@pytest.mark.parametrize("method", ["ibp", "crown", "auto"])
@pytest.mark.parametrize("norm", DUAL)
def test_of_a_linear_network_it_is_the_margin_over_the_dual_norm(norm, method):
    """The range is so wide that it cuts nothing."""
    subject, inputs, labels, weight, bias = linear((-1e4, 1e4))
    found = certified_radius(
        subject, inputs, labels, norm=norm, method=method, largest=50.0, tolerance=0.01
    )
    for place in range(len(inputs)):
        slopes, margins = differences(weight, bias, inputs[place], int(labels[place]))
        truth = float((margins / slopes.norm(p=DUAL[norm], dim=1)).min())
        if place < 2:
            assert (found.radius[place], found.upper[place]) == (0, 0)
        else:
            assert truth * 0.98 <= found.radius[place] <= truth
            assert found.upper[place] >= truth * (1 - 1e-9)
            assert found.margin[place] > 0
    if method == "auto" and norm == "linf":
        assert (found.upper[2:] <= found.radius[2:] * 1.011).all()


def test_a_ball_that_the_range_cuts_reaches_as_far_as_the_range_lets_it():
    subject, inputs, labels, weight, bias = linear((0.0, 1.0))
    found = certified_radius(subject, inputs, labels, method="ibp", tolerance=1e-4)
    assert found.largest == 1
    truths = []
    for place in range(2, len(inputs)):
        slopes, margins = differences(weight, bias, inputs[place], int(labels[place]))
        truth = min(1.0, clipped_radius(slopes, margins, inputs[place]))
        truths.append((truth, float((margins / slopes.abs().sum(1)).min())))
        assert truth * (1 - 2e-4) <= found.radius[place] <= truth
    assert any(cut > plain * 1.01 for cut, plain in truths)


def tiny(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Flatten(), nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3)).double()
        inputs = torch.rand(3, 1, 1, 3, dtype=torch.float64)
    subject = Classifier(module)
    return subject, inputs, subject(inputs).argmax(1)


def least_margin(subject, clean, eps, label):
    """Return the smallest margin over a ball, by the exact program."""
    program = Program(subject.module, (clean - eps).clamp(0, 1), (clean + eps).clamp(0, 1))
    one = torch.eye(3)
    return min(program.least(one[label] - one[each]) for each in range(3) if each != label)


@pytest.mark.parametrize("seed", range(3))
def test_it_brackets_the_exact_radius_of_a_tiny_network(seed):
    subject, inputs, labels = tiny(seed)
    found = certified_radius(subject, inputs, labels, budget=Budget(domains=200, steps=10))
    for clean, label, radius, upper in zip(
        inputs, labels.tolist(), found.radius.tolist(), found.upper.tolist(), strict=True
    ):
        assert radius > 0
        assert least_margin(subject, clean, radius, label) > -TOLERANCE
        if upper < math.inf:
            assert least_margin(subject, clean, upper, label) < TOLERANCE
            assert upper <= radius * (1.02 + 1e-6)
        else:
            assert radius == found.largest == 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_radius_and_counterexample_are_what_a_verifier_says_there(norm):
    subject, inputs, labels = problem("mlp", 6)
    labels[0] = (labels[0] + 1) % CLASSES
    found = certified_radius(subject, inputs, labels, norm=norm, budget=FEW, tolerance=0.2)
    assert (found.radius < found.upper)[1:].all()
    assert found.correct == (False, *[True] * 5)
    assert found.reason[0] == "misclassified"
    assert found.stage[0] is None
    assert found.broken_by[0] == "clean"
    again = verification.verify(
        subject, inputs, labels, eps=found.radius, norm=norm, budget=FEW, method="auto"
    )
    assert again.status == ("falsified", *["proven"] * 5)
    fallen = torch.isfinite(found.upper)
    points = found.counterexample[fallen]
    order = torch.inf if norm == "linf" else 2
    distance = (points - inputs[fallen]).flatten(1).norm(p=order, dim=1)
    assert fallen.sum() > 3
    assert (subject(points).argmax(1) != labels[fallen]).all()
    assert (distance <= found.upper[fallen] * (1 + 1e-6)).all()
    assert torch.isnan(found.counterexample[~fallen]).all()


def test_dearer_stages_only_narrow_what_cheaper_ones_leave():
    subject, inputs, labels = problem("mlp", 6)
    radii = [
        certified_radius(subject, inputs, labels, method=method, budget=FEW, tolerance=0.1)
        for method in ("ibp", "crown", "auto")
    ]
    for cheap, dear in pairwise(radii):
        assert (dear.radius >= cheap.radius * 0.9).all()
    assert (radii[-1].radius > radii[0].radius * 1.1).any()
    assert (radii[-1].upper < math.inf).any()
    assert (radii[0].upper == math.inf).all()
    assert {"crown_ibp", "branch_and_bound"} & set(radii[-1].stage)


def test_no_radius_is_asked_about_that_a_proof_or_a_counterexample_answers(monkeypatch):
    """Every radius that is tried lies strictly between what is proven and what is broken."""
    asked: dict[int, list] = {}
    real = verification.radius._Search._tried

    def noted(self, name, batch, known, wanted):
        for place, eps in wanted.items():
            each = known[place]
            asked.setdefault(place, []).append((each.radius, eps, each.upper, each.stage))
        return real(self, name, batch, known, wanted)

    monkeypatch.setattr(verification.radius._Search, "_tried", noted)
    subject, inputs, labels = problem("mlp", 4)
    labels[0] = (labels[0] + 1) % CLASSES
    certified_radius(subject, inputs, labels, budget=FEW)
    assert len(asked[0]) == 1
    for tried in asked.values():
        assert tried[0][1] == 0
        assert all(low < eps < high for low, eps, high, _ in tried[1:])
        assert len(tried) < 60


def test_a_whole_radius_that_is_proven_is_reached():
    subject, inputs, labels = problem("mlp", 5)
    found = certified_radius(subject, inputs, labels, largest=1e-3, method="auto")
    assert found.radius.tolist() == [1e-3] * 5
    assert found.reason == (None,) * 5
    assert {stage.name for stage in found.stages} == {"clean", "ibp"}


def test_it_does_not_depend_on_batches_or_chunks():
    subject, inputs, labels = problem("mlp", 9)
    whole = certified_radius(subject, inputs, labels, method="crown")
    with use_session(Session(settings=Settings(chunk=1))):
        loader = DataLoader(TensorDataset(inputs, labels), 4)
        parts = certified_radius(subject, loader, method="crown")
    torch.testing.assert_close(parts.radius, whole.radius, rtol=1e-6, atol=0)
    assert parts.stage == whole.stage


def test_what_cannot_be_bounded_has_no_radius_and_says_why():
    class Unknown(nn.Module):
        def forward(self, inputs):
            return torch.fft.fft(inputs.flatten(1)).real[:, :CLASSES]

    inputs = torch.rand(3, 1, 2, 3)
    subject = Classifier(Unknown())
    found = certified_radius(subject, inputs, subject(inputs).argmax(1))
    assert found.radius.tolist() == [0] * 3
    assert found.stage == (None,) * 3
    assert all("fft" in each for each in found.reason)


def test_a_spent_budget_leaves_a_smaller_radius_and_says_so():
    subject, inputs, labels = problem("mlp", 4)
    rich = certified_radius(subject, inputs, labels, budget=FEW, tolerance=0.2)
    poor = certified_radius(subject, inputs, labels, budget=Budget(total=1e-6))
    assert (poor.radius <= rich.radius).all()
    assert all("the budget was spent" in each for each in poor.reason)


def test_other_specifications_have_a_radius_too():
    subject, inputs, labels = problem("mlp", 6)
    target = (labels + 1) % CLASSES
    every = certified_radius(subject, inputs, labels, method="crown")
    one = certified_radius(subject, inputs, labels, method="crown", specification=target)
    assert (one.radius >= every.radius * 0.98).all()
    rows = torch.zeros(1, CLASSES, dtype=torch.float64)
    broken = certified_radius(subject, inputs, method="ibp", specification=rows)
    assert set(broken.reason) == {"the sample breaks the property"}


# --- the curve ----------------------------------------------------------------------------------

EPS = [0.0, 0.01, 0.03, 0.1, 0.3]


@pytest.mark.parametrize("method", ["ibp", "crown", "auto"])
def test_the_curve_is_what_a_verifier_says_at_each_radius(method):
    subject, inputs, labels = problem("mlp", 20)
    labels[::5] = (labels[::5] + 1) % CLASSES
    found = certified_accuracy(subject, inputs, labels, eps=EPS[::-1], method=method, budget=FEW)
    assert [each.eps for each in found] == EPS
    for point in found:
        result = verification.verify(
            subject, inputs, labels, eps=point.eps, method=method, budget=FEW
        )
        # A proof at one radius holds at every smaller one, so the curve knows at least as much.
        assert point.proven >= result.counts["proven"]
        assert point.falsified >= result.counts["falsified"]
        assert point.n == 20 == point.proven + point.falsified + point.unknown
        assert point.certified == point.proven / 20
        assert point.empirical == pytest.approx(1 - point.falsified / 20)
        low, high = point.certified_interval
        assert low <= point.certified <= high
    assert found.points[0].certified == 0.8
    assert 0 < found.points[1].certified <= 0.8


def test_the_curve_never_rises_and_never_crosses():
    subject, inputs, labels = problem("mlp", 8)
    radii = certified_radius(subject, inputs, labels, budget=FEW, tolerance=0.5)
    found = radii.accuracy(torch.linspace(0, 1, 60).tolist())
    assert len(found) == 60
    for before, after in pairwise(found):
        assert after.certified <= before.certified
        assert after.empirical <= before.empirical
    assert all(each.certified <= each.empirical for each in found)
    assert found.points[0].certified == 1
    at = radii.radius[3].item()
    here, beyond = radii.accuracy([at, at * 1.0001]).points
    assert here.proven == beyond.proven + 1


def test_only_the_radii_that_are_asked_about_are_tried(monkeypatch):
    tried = set()
    real = verification.radius._Search._tried

    def noted(self, name, batch, known, wanted):
        tried.update(wanted.values())
        return real(self, name, batch, known, wanted)

    monkeypatch.setattr(verification.radius._Search, "_tried", noted)
    certified_accuracy(*problem("mlp", 6), eps=EPS, budget=FEW)
    assert tried <= set(EPS)


def test_rows_are_plain_values():
    found = certified_accuracy(*problem("linear", 6), eps=torch.tensor([0.01, 0.02]), method="ibp")
    rows = json.loads(json.dumps(found.rows()))
    assert [row["eps"] for row in rows] == torch.tensor([0.01, 0.02]).tolist()
    assert rows[0]["n"] == 6
    assert rows[0]["unknown"] == 6 - rows[0]["proven"] - rows[0]["falsified"]


WRONG = {
    "norm": ({"norm": "l3"}, InputError, "norm must be one of 'linf', 'l2', 'l1'"),
    "method": ({"method": "crwn"}, InputError, "but 'crwn' came"),
    "largest": ({"largest": 0}, InputError, "largest must be greater than 0, but 0 came"),
    "largest type": ({"largest": "1"}, InputTypeError, "largest must be a number, but '1' came"),
    "units": ({"largest": 8.0}, InputError, "largest must not exceed 1, which reaches all valid"),
    "tolerance": ({"tolerance": 0}, InputError, "tolerance must be greater than 0, but 0 came"),
    "wide tolerance": ({"tolerance": 1.5}, InputError, "tolerance must be below 1, but 1.5 came"),
    "budget": ({"budget": 0}, InputError, "budget must be greater than 0, but 0 came"),
    "arithmetic": ({"arithmetic": "float16"}, InputError, "arithmetic must be one of"),
    "targets": ({"specification": torch.tensor([1])}, InputError, "specification must hold one"),
    "class": ({"specification": 99}, InputError, "specification must name classes from 0 to"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_refused_by_name(case):
    arguments, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        certified_radius(*problem("linear", 3), **arguments)


@pytest.mark.parametrize(
    ("eps", "error", "message"),
    [
        (0.1, InputTypeError, "eps must be several radii, but 0.1 came"),
        ([], InputError, "eps must be several radii, but none came"),
        ([0.1, -0.1], InputError, "eps must be at least 0, but -0.1 came"),
        ([float("nan")], InputError, "eps must be at least 0, but nan came"),
        ([0.1, 9.0], InputError, "eps must not exceed 1, which reaches all valid inputs"),
    ],
)
def test_wrong_radii_are_refused(eps, error, message):
    with pytest.raises(error, match=message):
        certified_accuracy(*problem("linear", 3), eps=eps)


def test_a_curve_ends_where_the_search_did():
    radii = certified_radius(*problem("linear", 3), method="ibp", largest=0.1)
    with pytest.raises(InputError, match=r"eps must be from 0 to 0\.1, but 0\.2 came"):
        radii.accuracy([0.05, 0.2])
    with pytest.raises(InputError, match="confidence must lie between 0 and 1, but 1 came"):
        radii.accuracy([0.05], confidence=1)
