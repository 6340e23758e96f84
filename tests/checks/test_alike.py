"""Maps that should be alike, and maps that should not."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from pytest_triguard import (
    Classifier,
    TriGuardFailure,
    assert_explanations_agree,
    assert_passes_sanity_check,
    attacks,
    attributions,
    metrics,
)
from pytest_triguard.attributions.randomization import randomized
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.facts import Facts
from tests.module_state import state_of
from tests.networks import problem


def test_agreement_is_the_metric_of_both_maps():
    given = problem("conv")
    found = assert_explanations_agree(
        *given, methods=("saliency", "gradient_x_input"), metric="cosine", at_most=1.0
    )
    first, second = (attributions.get(name)(*given) for name in ("saliency", "gradient_x_input"))
    expected = metrics.get("cosine")(first, second)
    assert torch.allclose(torch.from_numpy(found.values), expected, rtol=1e-9)
    assert found.passes == {"forward": 16, "backward": 16}
    assert found.parameters["second"]["attribution"] == "gradient_x_input"


def test_a_method_agrees_with_itself():
    found = assert_explanations_agree(
        *problem("smooth"), methods=("saliency", "saliency"), at_least=1.0
    )
    assert found.value == 1.0


def test_the_twin_has_other_parameters_of_the_same_scale_and_the_same_buffers():
    subject, _, _ = problem("conv")
    before = state_of(subject.module)
    twin = randomized(subject, seed=3)
    assert state_of(subject.module) == before
    assert twin.bounds == subject.bounds
    for (name, own), other in zip(
        subject.module.named_parameters(), twin.module.parameters(), strict=True
    ):
        if own.numel() > 30:
            assert torch.allclose(own.std(), other.std(), rtol=0.5), name
        assert not torch.equal(own, other), name
    for own, other in zip(subject.module.buffers(), twin.module.buffers(), strict=True):
        assert torch.equal(own, other)
    drawn, again, other = (
        randomized(subject, seed=seed).module.state_dict()["0.weight"] for seed in (3, 3, 4)
    )
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, other)


def test_only_the_last_layer_can_be_drawn_anew():
    subject, _, _ = problem("conv")
    twin = randomized(subject, layers="last")
    changed = [
        name
        for (name, own), other in zip(
            subject.module.named_parameters(), twin.module.parameters(), strict=True
        )
        if not torch.equal(own, other)
    ]
    assert changed == ["7.weight", "7.bias"]


def test_a_map_of_the_input_alone_fails_and_the_gradient_passes():
    given = problem("smooth", 20)
    assert_passes_sanity_check(*given, attribution="saliency", at_most=0.6)
    flat = Classifier(copy.deepcopy(given[0].module))
    for parameter in flat.module.parameters():
        nn.init.constant_(parameter, 0.01)  # so that the twin is the network
    with pytest.raises(TriGuardFailure, match=r"mean Spearman rank correlation .* is not <= 0\.6"):
        assert_passes_sanity_check(flat, *given[1:], attribution="gradient_x_input", at_most=0.6)


def test_the_class_that_is_explained_is_that_of_the_network_itself():
    subject, inputs, labels = problem("conv")
    found = assert_passes_sanity_check(
        subject, inputs, labels, attribution="saliency", at_most=1.0, seed=5
    )
    twin = randomized(subject, seed=5)
    maps = [attributions.get("saliency")(each, inputs, labels) for each in (subject, twin)]
    expected = metrics.get("spearman")(*maps)
    assert torch.allclose(torch.from_numpy(found.values), expected, rtol=1e-9)
    predicted = assert_passes_sanity_check(
        subject, inputs, attribution="saliency", at_most=1.0, seed=5
    )
    classes = subject(inputs).argmax(1)
    maps = [attributions.get("saliency")(each, inputs, classes) for each in (subject, twin)]
    expected = metrics.get("spearman")(*maps)
    assert torch.allclose(torch.from_numpy(predicted.values), expected, rtol=1e-9)
    assert found.passes == {"forward": 16, "backward": 16}


def naa_at(layer):
    attack = attacks.get("naa", eps=0.1, steps=2, layer=layer)
    return attributions.get("attexplore_plus_plus", attack=attack, output="logit")


@pytest.mark.parametrize(
    "method", [lambda layer: attributions.get("grad_cam", layer=layer), naa_at], ids=["cam", "naa"]
)
def test_a_layer_given_as_a_module_stands_for_its_like_in_the_twin(method):
    given = problem("conv")
    found, expected = (
        assert_passes_sanity_check(
            *given, attribution=method(layer), at_most=1.0, undefined_at_most=1.0
        )
        for layer in (given[0].module[2], "2")
    )
    assert np.isfinite(expected.values).any()
    assert np.array_equal(found.values, expected.values, equal_nan=True)


class Edges(attributions.Attribution):
    """Shows the image, whatever the network."""

    name, kind, facts = "edges", "gradient", Facts(sign="signed")
    passes_per_sample = 1

    def explain(self, model, batch):
        return batch.inputs - 0.5


class Trained(nn.Module):
    """A linear network fitted to labels that a few pixels decide, or to permuted ones."""

    def __init__(self, inputs, labels):
        super().__init__()
        self.head = nn.Linear(inputs[0].numel(), 2).double()
        flat, wanted = inputs.flatten(1) - 0.5, 2.0 * nn.functional.one_hot(labels, 2) - 1
        ridge = flat.mT @ flat + torch.eye(flat.shape[1])
        with torch.no_grad():
            self.head.weight.copy_(torch.linalg.solve(ridge, flat.mT @ wanted.double()).mT)

    def forward(self, inputs):
        return self.head(inputs.flatten(1))


def test_the_labels_can_be_what_is_randomised():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(200, 1, 3, 4, generator=generator).double()
    labels = (inputs[:, 0, 0].sum(1) > 2).long()
    shuffled = labels[torch.randperm(200, generator=generator)]
    subject, other = (Classifier(Trained(inputs, each)) for each in (labels, shuffled))
    given = subject, inputs[:30], labels[:30]
    before = state_of(other.module)
    found = assert_passes_sanity_check(*given, attribution="saliency", at_most=0.6, against=other)
    maps = [attributions.get("saliency")(each, *given[1:]) for each in (subject, other)]
    expected = metrics.get("spearman")(*maps)
    assert torch.allclose(torch.from_numpy(found.values), expected, rtol=1e-9)
    assert found.parameters["against"] == other.fingerprint()
    assert "layers" not in found.parameters
    assert found.passes == {"forward": 60, "backward": 60}
    assert state_of(other.module) == before
    with pytest.raises(TriGuardFailure, match="maps of one class by the network and by the one gi"):
        assert_passes_sanity_check(*given, attribution=Edges(), at_most=0.6, against=other)


@pytest.mark.parametrize(
    ("against", "layers", "error", "message"),
    [
        ("self", "all", InputError, "against must be another classifier, but the one under test"),
        (3, "all", InputTypeError, "against must be a Classifier, but 3 came"),
        ("residual", "last", InputError, "layers must be left out where against brings the other"),
        ("narrow", "all", InputError, "against must have the bounds of the classifier, .0, 1., bu"),
        ("three", "all", InputError, "against must have the 4 classes of the classifier, but 3 ca"),
    ],
)
def test_a_network_that_cannot_be_compared_with_is_refused(against, layers, error, message):
    given = problem("linear", 4)
    others = {
        "self": given[0],
        "residual": problem("residual", 1)[0],
        "narrow": Classifier(given[0].module, bounds=(0.0, 2.0)),
        "three": Classifier(nn.Sequential(nn.Flatten(), nn.Linear(24, 3)).double()),
    }
    with pytest.raises(error, match=message):
        assert_passes_sanity_check(
            *given,
            attribution="saliency",
            at_most=0.5,
            layers=layers,
            against=others.get(against, against),
        )


def test_wrong_arguments_are_refused():
    given = problem("linear")
    with pytest.raises(InputTypeError, match="methods must be two attributions, but 'saliency'"):
        assert_explanations_agree(*given, methods="saliency", at_least=0.5)
    with pytest.raises(InputError, match="methods must be two attributions, but 1 came"):
        assert_explanations_agree(*given, methods=("saliency",), at_least=0.5)
    with pytest.raises(InputError, match="at_least must be given for spearman"):
        assert_explanations_agree(*given, methods=("saliency", "saliency"), at_most=0.5)
    with pytest.raises(InputError, match="metric must be a similarity, but cosine came"):
        assert_passes_sanity_check(*given, attribution="saliency", metric="cosine", at_most=0.5)
    with pytest.raises(InputError, match="layers must be one of 'all', 'last', but 'first' came"):
        assert_passes_sanity_check(*given, attribution="saliency", layers="first", at_most=0.5)
    bare = Classifier(nn.Sequential(nn.Flatten()))
    with pytest.raises(InputError, match="the module must have parameters to randomize"):
        randomized(bare)
