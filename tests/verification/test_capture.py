"""The exact module is bounded, or what stands in the way is named."""

from __future__ import annotations

import operator
from contextlib import contextmanager

import pytest
import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.nn.utils.parametrizations import weight_norm

from pytest_triguard import Classifier, verification
from pytest_triguard.errors import ModelError
from pytest_triguard.verification import cascade
from pytest_triguard.verification.capture import capture

METHODS = ["auto", "ibp"]
methods = pytest.mark.parametrize("method", METHODS)


class Body(nn.Module):
    """A network whose middle is given as a function of the hidden value."""

    def __init__(self, middle, **modules):
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.middle = Middle(middle, modules)
        self.last = nn.Linear(4, 3)

    def forward(self, inputs):
        return self.last(self.middle(self.first(inputs.flatten(1))))


class Middle(nn.Module):
    def __init__(self, function, modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, hidden):
        return self.function(self, hidden)


def verified(module, method="ibp", **arguments):
    """Verify a module in a tiny ball around some inputs, labelled as it predicts."""
    torch.manual_seed(0)
    inputs = torch.rand(5, 1, 2, 3)
    subject = Classifier(module)
    labels = subject(inputs).argmax(1)
    return verification.verify(subject, inputs, labels, eps=1e-6, method=method, **arguments)


def reason(module, method="ibp"):
    result = verified(module, method)
    assert result.status == ("unsupported",) * 5
    assert (result.margin == -torch.inf).all()
    assert [stage.name for stage in result.stages] == ["clean"]
    assert len(set(result.reason)) == 1
    return result.reason[0]


def overwritten(self, hidden):
    other = hidden
    hidden += 1
    return other + hidden


def overwritten_view(self, hidden):
    other = hidden.view(-1, 2, 2)
    hidden.mul_(2)
    return other.flatten(1) + hidden


def result_ignored(self, hidden):
    functional.relu(hidden, inplace=True)
    return hidden


def result_by_name_ignored(self, hidden):
    self.act(input=hidden)
    return hidden


def squared(self, hidden):
    other = hidden
    hidden **= 2
    return other + hidden


def branching(self, hidden):
    return hidden if (hidden > -1e9).all() else -hidden


def pretending(self, hidden):
    return hidden * (2.0 if isinstance(hidden, fx.Proxy) else 1.0)


def counted(self, hidden):
    return hidden * torch.arange(4).add_(hidden.size(1))


def grown(self, hidden):
    shift = self.shift * hidden.size(1)
    shift += 1
    return hidden + shift


UNSUPPORTED = {
    "module": (
        Body(lambda self, x: self.act(x), act=nn.Softshrink()),
        "Softshrink in module 'middle.act'",
    ),
    "function": (Body(lambda self, x: torch.cos(x)), "cos in module 'middle'"),
    "method": (Body(lambda self, x: x.cumsum(1)), "cumsum in module 'middle'"),
    "attribute": (Body(lambda self, x: x.T.T), "'T'"),
    "slope": (
        Body(lambda self, x: functional.leaky_relu(x, -0.5)),
        "leaky_relu in module 'middle' is not covered: negative_slope=-0.5",
    ),
    "argument": (
        Body(lambda self, x: torch.div(x, 2, rounding_mode="floor")),
        "div in module 'middle' is not covered: got an unexpected keyword argument 'rounding_mode'",
    ),
    "two values": (
        Body(lambda self, x: x.clamp(min=x.mean(1, keepdim=True))),
        "clamp in module 'middle' is not covered: it has an argument that depends on the input",
    ),
    "control flow": (Body(branching), "cannot be captured as a graph"),
    "in place": (Body(overwritten), "iadd in module 'middle' overwrites a value in place"),
    "in place of a view": (Body(overwritten_view), "mul_ in module 'middle' overwrites a value"),
    "result ignored": (Body(result_ignored), "relu in module 'middle' overwrites a value"),
    "result by name ignored": (
        Body(result_by_name_ignored, act=nn.ReLU(inplace=True)),
        "ReLU in module 'middle.act' overwrites a value",
    ),
    "power in place": (Body(squared), "ipow in module 'middle' overwrites a value"),
    "not a function of the input": (Body(pretending), "does not compute what the module computes"),
    "constant": (Body(counted), "add_ in module 'middle' overwrites a constant"),
    "constant operand": (
        Body(grown, shift=torch.zeros(4)),
        "iadd in module 'middle' overwrites a constant",
    ),
    "padding": (
        nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), nn.Flatten()),
        "Conv2d in module '0' is not covered: padding_mode='reflect'",
    ),
    "half precision": (
        Body(lambda self, x: x.double().float()),
        "double in module 'middle'",
    ),
}


@methods
@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_cannot_be_bounded_is_named_with_its_path(case, method):
    module, words = UNSUPPORTED[case]
    assert words in reason(module, method)


@pytest.mark.parametrize("case", ["module", "not a function of the input"])
def test_bounds_name_it_too(case):
    module, words = UNSUPPORTED[case]
    box = torch.zeros(1, 1, 2, 3)
    with pytest.raises(ModelError, match=words):
        verification.bounds(Classifier(module), box, box, method="ibp")


def test_a_misclassified_sample_is_falsified_whatever_the_module():
    module, _ = UNSUPPORTED["module"]
    subject, inputs = Classifier(module), torch.rand(3, 1, 2, 3)
    labels = (subject(inputs).argmax(1) + torch.tensor([0, 1, 0])) % 3
    result = verification.verify(subject, inputs, labels, eps=0.1)
    assert result.status == ("unsupported", "falsified", "unsupported")


class Difference(nn.Module):
    """Ten times the difference of two pixels, and what is made of it, as two logits.

    A pixel up and the other down moves it; both up, or both down, leave it as it is.
    """

    def __init__(self, act, logits):
        super().__init__()
        self.act = act
        self.logits = logits

    def forward(self, inputs):
        value = 10 * (inputs[:, :, :, :1] - inputs[:, :, :, 1:])
        return torch.cat([each.amax((2, 3)) for each in self.logits(value, self.act(value))], 1)


def changed(module, **attributes):
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


@pytest.mark.parametrize(
    ("act", "logits", "image", "move"),
    [
        (
            changed(nn.ReLU6(), max_val=3.0),
            lambda value, found: (found, value - 0.05),
            [0.6, 0.31],
            [0.02, -0.02],
        ),
        (
            changed(nn.ZeroPad2d((0, 1, 0, 0)), value=3.0),
            lambda value, found: (value + 0.05, found),
            [0.62, 0.31],
            [-0.02, 0.02],
        ),
    ],
    ids=["ReLU6", "ZeroPad2d"],
)
@pytest.mark.parametrize("method", ["ibp", "crown", "branch_and_bound"])
def test_what_was_set_on_a_module_counts_where_no_probed_point_shows_it(
    act, logits, image, move, method
):
    subject = Classifier(Difference(act, logits).eval())
    inputs, labels = torch.tensor(image).view(1, 1, 1, 2), torch.tensor([0])
    assert subject(inputs).argmax(1) == labels
    assert subject(inputs + torch.tensor(move)).argmax(1) != labels
    result = verification.verify(subject, inputs, labels, eps=0.03, method=method)
    assert result.status[0] in ("unknown", "falsified")


class Asking(nn.Module):
    """Asks what kind of object a value is: a tensor is capped, what is traced instead is not."""

    def __init__(self, asks):
        super().__init__()
        self.asks = asks

    def forward(self, value):
        return torch.where(value > 3.0, 3.0, value) if self.asks(value) else value


@pytest.mark.parametrize(
    "asks",
    [
        torch.is_tensor,
        lambda value: isinstance(value, torch.Tensor),
        lambda value: type(value) is torch.Tensor,
    ],
    ids=["is_tensor", "isinstance", "type"],
)
@pytest.mark.parametrize("method", ["crown", "branch_and_bound"])
def test_a_module_that_goes_another_way_while_it_is_traced_is_refused(asks, method):
    subject = Classifier(Difference(Asking(asks), lambda value, found: (found, value - 0.05)))
    inputs, labels = torch.tensor([0.6, 0.31]).view(1, 1, 1, 2), torch.tensor([0])
    # No point that the graph is held against shows it: both pixels up, or both down.
    assert subject(inputs).argmax(1) == subject(inputs + 0.03).argmax(1) == labels
    assert subject(inputs + torch.tensor([0.02, -0.02])).argmax(1) != labels
    result = verification.verify(subject, inputs, labels, eps=0.03, method=method)
    assert result.status == ("unsupported",)
    assert "may ask what kind of object a value is" in result.reason[0]


@pytest.mark.parametrize("kind", ["hook", "pre-hook", "own forward", "global", "global pre-hook"])
def test_a_module_that_does_more_than_its_class_says_is_not_trusted(kind):
    module = Body(lambda self, x: self.act(x), act=nn.ReLU())
    act = module.middle.act
    if kind == "hook":
        act.register_forward_hook(lambda module, inputs, output: output * 2)
    elif kind == "pre-hook":
        act.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    elif kind == "own forward":
        act.forward = lambda hidden: hidden * 2
    if kind.startswith("global"):
        with hooked_everywhere(kind):
            assert "Linear in module 'first' has a hook or a forward of its own" in reason(module)
        return
    assert "ReLU in module 'middle.act' has a hook or a forward of its own" in reason(module)


@contextmanager
def hooked_everywhere(kind):
    """Hook every module there is, to do nothing."""
    register = (
        register_module_forward_hook if kind == "global" else register_module_forward_pre_hook
    )
    handle = register(lambda *arguments: None)
    try:
        yield
    finally:
        handle.remove()


def test_a_module_with_a_method_of_its_own_is_not_trusted():
    first = nn.Conv2d(1, 3, (2, 3))
    plain = first._conv_forward

    def gained(inputs, weight, bias):
        return plain(inputs, weight, bias) * (1 + (inputs > 2).sum())  # no valid input is

    first._conv_forward = gained
    told = reason(nn.Sequential(first, nn.Flatten()))
    assert "Conv2d in module '0' has a hook or a forward of its own" in told


def test_hooks_of_modules_that_are_traced_through_are_in_the_graph():
    module = Body(lambda self, x: x)
    module.middle.register_forward_hook(lambda module, inputs, output: output * -1)
    assert verified(module).status == ("proven",) * 5


class Doubled(nn.Linear):
    def forward(self, inputs):
        return 2 * super().forward(inputs)


def test_a_subclass_is_taken_for_what_it_computes():
    module = nn.Sequential(nn.Flatten(), Doubled(6, 3))
    result = verified(module)
    assert result.status == ("proven",) * 5
    plain = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    plain[1].load_state_dict(module[1].state_dict())
    assert torch.allclose(result.margin, 2 * verified(plain).margin, rtol=1e-4)


def test_a_parametrised_weight_is_the_weight_it_makes():
    module = nn.Sequential(nn.Flatten(), weight_norm(nn.Linear(6, 3)))
    plain = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    with torch.no_grad():
        module[1].parametrizations.weight.original0.mul_(1.5)
        plain[1].weight.copy_(module[1].weight)
        plain[1].bias.copy_(module[1].bias)
    assert torch.equal(verified(module).margin, verified(plain).margin)


@pytest.mark.parametrize(
    "middle",
    [
        lambda self, x: functional.relu(x, inplace=True),
        lambda self, x: x.relu_().add_(1).mul_(0.5),
        lambda self, x: operator.ipow(x, 2),
        lambda self, x: x.view(-1, 2, 2).clamp_(min=0).flatten(1),
        lambda self, x: x + torch.arange(4) * x.size(1),
    ],
    ids=["relu", "methods", "power", "of a view", "with constants"],
)
def test_in_place_operators_whose_value_is_read_once_are_bounded(middle):
    assert verified(Body(middle)).status == ("proven",) * 5


class Arguments(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 3)])

    def forward(self, inputs, mask=None, *, scale=2):
        hidden = inputs.flatten(1)
        if mask is not None:
            hidden = hidden * mask
        for layer in self.layers:
            hidden = layer(hidden) * scale
        return {"logits": hidden}["logits"]


def test_arguments_left_at_their_defaults_and_loops_over_layers_are_followed():
    assert verified(Arguments()).status == ("proven",) * 5


def test_a_forward_that_keeps_what_it_saw_is_not_left_with_a_trace():
    def keeping(self, hidden):
        self.seen, self.new = hidden, hidden * torch.arange(4)
        return self.new

    module = Body(keeping, seen=None).eval()
    capture(module)
    assert module.middle.seen is None
    assert not hasattr(module.middle, "new")
    assert "_tensor_constant0" not in vars(module)


def test_a_graph_that_strays_later_is_found_by_the_logits_it_must_hold(monkeypatch):
    """The check of the first samples passes here, so each sample's own logits have to tell."""
    monkeypatch.setattr(cascade, "refuse_unfaithful", lambda network, model, points: None)
    result = verified(Body(pretending))
    assert result.status == ("unsupported",) * 5
    assert (result.margin == -torch.inf).all()
    assert "the graph is not the module" in result.reason[0]


def test_logits_in_another_dtype_are_not_bounded():
    class Casting(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(6, 3)

        def forward(self, inputs):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.last(inputs.flatten(1))

    assert "the module computes in torch.bfloat16" in reason(Casting())


def test_half_precision_is_unsupported():
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).bfloat16()
    inputs = torch.rand(2, 1, 2, 3).bfloat16()
    labels = Classifier(module)(inputs).argmax(1)
    result = verification.verify(Classifier(module), inputs, labels, eps=0.01)
    assert result.status == ("unsupported", "unsupported")
    assert "torch.bfloat16" in result.reason[0]


# --- values of unusual shapes ---------------------------------------------------------------------


class Scalars(nn.Module):
    """Works on one number for each sample on the way."""

    def __init__(self, one):
        super().__init__()
        self.one = one
        self.last = nn.Linear(6, 3)

    def forward(self, inputs):
        return self.last(inputs.flatten(1)) + self.one(inputs).unsqueeze(1)


NUMBERS = {
    "sum": lambda inputs: inputs.sum((1, 2, 3)),
    "mean": lambda inputs: torch.relu(inputs.mean((1, 2, 3)) - 0.5),
    "getitem": lambda inputs: torch.relu(inputs[:, 0, 0, 0] - 0.5),
}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("operator_name", NUMBERS)
def test_one_number_for_each_sample_is_bounded_by_intervals_alone(operator_name, norm):
    torch.manual_seed(0)
    subject, inputs = Classifier(Scalars(NUMBERS[operator_name])), torch.rand(4, 1, 2, 3)
    labels = subject(inputs).argmax(1)
    result = verification.verify(subject, inputs, labels, eps=1e-4, norm=norm, method="ibp")
    assert "proven" in result.status
    for method in ("crown_ibp", "crown", "alpha_crown"):
        result = verification.verify(subject, inputs, labels, eps=0.05, norm=norm, method=method)
        assert set(result.status) == {"unsupported"}
        assert f"operator {operator_name} at the top of the module gives one" in result.reason[0]
    result = verification.verify(subject, inputs, labels, eps=0.3, norm=norm, budget=5)
    assert "unsupported" not in result.status
    with pytest.raises(ModelError, match="gives one number for each sample"):
        verification.bounds(subject, inputs, inputs, method="crown")


@methods
def test_a_constant_that_stretches_a_matrix_product_is_named(method):
    class Stretched(nn.Module):
        def __init__(self):
            super().__init__()
            self.several = nn.Parameter(torch.randn(5, 6, 3))

        def forward(self, inputs):
            return (inputs.flatten(1)[:, None, None] @ self.several).mean((1, 2))

    assert "operator matmul at the top of the module is not covered" in reason(
        Stretched(), method=method
    )
