"""Branch and bound over boxes with few inputs: what it decides, and how its proofs are checked."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from torch import nn

from pytest_triguard import Classifier
from pytest_triguard.verification import Budget, ProofTree, boxes, recheck, verify
from pytest_triguard.verification.intervals import Interval
from tests.verification.soundness import without_attacks

BUDGET = Budget(domains=400, steps=3)


def network(activation, inputs=3, width=10, layers=2, seed=0):
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        hidden = [
            layer
            for before, after in pairwise([inputs] + [width] * layers)
            for layer in (nn.Linear(before, after), activation())
        ]
        module = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 3)).double()
        for layer in hidden[::2]:
            layer.weight.mul_(3)
        module[-1].bias.sub_(module(torch.rand(99, inputs, dtype=torch.float64)).mean(0))
        return Classifier(module)


def problem(activation, count=4, inputs=3, **arguments):
    subject = network(activation, inputs, **arguments)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 1, 1, inputs, generator=generator, dtype=torch.float64)
    return subject, images, subject(images).argmax(1)


def searched(subject, inputs, labels, **arguments):
    given = {"method": "branch_and_bound", "budget": BUDGET} | arguments
    with without_attacks():
        return verify(subject, inputs, labels, **given)


def relu_inputs(subject):
    return sum(each.out_features for each in list(subject.module)[1:-1:2])


# --- boxes --------------------------------------------------------------------------------------


def box(*ends):
    lower, upper = torch.tensor(ends, dtype=torch.float64).T.view(2, 1, 1, 1, -1)
    return Interval(lower, upper)


def test_halves_cover_the_box():
    whole, steps = box((0, 1), (0.3, 0.3), (-1, 0.1)), torch.tensor([[2, 0, 2]])
    parts = [
        boxes.halved(whole, steps, torch.tensor([each])) for each in product((1, -1), repeat=3)
    ]
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(200, 1, 1, 3, generator=generator, dtype=torch.float64)
    points = whole.lower + share * (whole.upper - whole.lower)
    held = [((points >= part.lower) & (points <= part.upper)).flatten(1).all(1) for part in parts]
    assert (torch.stack(held).sum(0) == 1).all()
    corner = parts[0]
    assert corner.lower.flatten().tolist() == pytest.approx([0.5, 0.3, -0.175])
    assert corner.upper.flatten().tolist() == [1, 0.3, 0.1]


def test_nothing_is_halved_on_neither_side():
    whole = box((0, 1), (0, 2))
    part = boxes.halved(whole, torch.tensor([[0, 1]]), torch.tensor([[0, -1]]))
    assert part.upper.flatten().tolist() == [1, 1]


def test_the_input_that_changes_a_row_most_is_halved_and_in_the_end_every_one():
    whole, slopes = box((0, 1), (0, 0.5), (0.2, 0.2), (0, 1)), torch.tensor([1.0, 5.0, 9.0, 0.0])
    rows = slopes.double().view(1, 1, 1, 4)
    assert boxes.varying(whole).tolist() == [3]
    halvings = []
    for _ in range(12):
        place = boxes.steepest(whole, rows)
        halvings += place.tolist()
        whole = boxes.halved(whole, place[:, None], torch.ones_like(place)[:, None])
    assert halvings[0] == 1
    assert set(halvings) == {0, 1, 3}


def test_a_box_without_a_number_inside_is_not_halved():
    least = torch.finfo(torch.float64).eps
    whole = box((1, 1 + least), (0.5, 0.5))
    assert boxes.varying(whole).tolist() == [0]
    assert boxes.steepest(whole, torch.ones(1, 1, 1, 2, dtype=torch.float64)).tolist() == [-1]


# --- what is decided ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "seed", "eps"), [(nn.Tanh, 1, 0.1), (nn.Sigmoid, 3, 0.12), (nn.GELU, 2, 0.03)]
)
def test_smooth_networks_are_decided_that_no_bound_alone_decides(activation, seed, eps):
    subject, inputs, labels = problem(activation, 12, seed=seed)
    before = verify(subject, inputs, labels, eps=eps, method="alpha_crown", budget=BUDGET)
    after = searched(subject, inputs, labels, eps=eps)
    assert "unknown" not in after.status
    grid = torch.linspace(-1, 1, 15, dtype=torch.float64)
    offsets = torch.cartesian_prod(grid, grid, grid).view(-1, 1, 1, 3)
    for place, status in enumerate(after.status):
        points = (inputs[place] + eps * offsets).clamp(0, 1)
        logits = subject(points)
        own = logits[:, labels[place]]
        apart = own[:, None] - logits
        apart[:, labels[place]] = torch.inf
        least = float(apart.amin())
        assert (status == "proven") == (least > 0)
        assert float(after.margin[place]) <= least
    late = {one for one, two in zip(after.status, before.status, strict=True) if two == "unknown"}
    assert late == {"proven", "falsified"}


def test_it_takes_fewer_parts_than_splits_of_relus(monkeypatch):
    """The same budget of parts decides a deep network of two inputs, or does not."""
    subject, inputs, labels = problem(nn.ReLU, 6, 2, width=24, layers=3, seed=2)
    budget = Budget(domains=24, steps=3)
    halved = searched(subject, inputs, labels, eps=0.1, budget=budget)
    monkeypatch.setattr(boxes, "FEW", 0)
    relus = searched(subject, inputs, labels, eps=0.1, budget=budget)
    assert halved.counts["unknown"] < relus.counts["unknown"]


def test_a_tie_ends_the_search():
    """The least margin is 0: no part around it is ever proven or broken."""

    class Bowl(nn.Module):
        def forward(self, inputs):
            height = (inputs.flatten(1) - 0.4).square().sum(1, keepdim=True)
            return torch.cat([height, 0 * height], 1)

    inputs = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)
    result = searched(
        Classifier(Bowl()), inputs, torch.tensor([0]), eps=0.3, budget=Budget(steps=1)
    )
    assert result.status == ("unknown",)
    assert -1e-12 < result.margin.item() <= 0


# --- what it does not depend on, and what can be checked ----------------------------------------


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_nothing_depends_on_the_neighbours(activation):
    """Boxes that are halved beside balls in which too many inputs vary, and a point."""
    subject, inputs, labels = problem(activation, 5, 18, width=12)
    reach = torch.full_like(inputs, 0.03)
    reach[0, ..., 2:] = 0
    reach[1, ..., 3:] = 0
    reach[:2] *= 10
    reach[3] = 0
    lower, upper = (inputs - reach).clamp(0, 1), (inputs + reach).clamp(0, 1)

    def run(places):
        found = searched(
            subject,
            inputs[places],
            labels[places],
            eps=None,
            lower=lower[places],
            upper=upper[places],
            budget=Budget(domains=12, steps=2),
        )
        return list(zip(found.status, found.margin.tolist(), strict=True))

    together = run([0, 1, 2, 3, 4])
    for place in range(5):
        ((status, margin),) = run([place])
        assert (status, margin) == (together[place][0], pytest.approx(together[place][1], abs=1e-9))


@pytest.mark.parametrize(("activation", "width", "layers"), [(nn.Tanh, 10, 2), (nn.ReLU, 24, 3)])
def test_a_proof_by_halves_is_checked_without_a_search(activation, width, layers):
    subject, inputs, labels = problem(activation, 6, width=width, layers=layers)
    result = searched(subject, inputs, labels, eps=0.06, certificates=True)
    relus = relu_inputs(subject) if activation is nn.ReLU else 0
    halved = [
        each
        for each in result.certificates
        if each and any(max(tree.splits) >= relus for tree in each.trees)
    ]
    assert halved
    for each in halved:
        found = recheck(each, subject, inputs)
        assert found.holds, found.reason
        assert found.margin == pytest.approx(each.margin, abs=1e-9)
    deepest = max(halved, key=lambda each: max(len(tree.splits) for tree in each.trees))
    whole = tuple(ProofTree(tree.row, (-1,), ((),)) for tree in deepest.trees)
    forged = type(deepest).from_dict(
        deepest.to_dict() | {"trees": [tree_values(each) for each in whole]}
    )
    forged = type(forged).from_dict(forged.to_dict() | {"checksum": forged.summed()})
    assert not recheck(forged, subject, inputs).holds


def tree_values(tree):
    return {"row": tree.row, "splits": list(tree.splits), "multipliers": [[]]}


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.08), ("l1", 0.1)])
def test_balls_are_not_halved(norm, eps):
    subject, inputs, labels = problem(nn.ReLU, 2, width=24, layers=3)
    result = searched(subject, inputs, labels, eps=eps, norm=norm, certificates=True)
    splits = [
        place
        for each in result.certificates
        if each
        for tree in each.trees
        for place in tree.splits
    ]
    assert max(splits) >= 0
    assert max(splits) < relu_inputs(subject)
