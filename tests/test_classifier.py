"""The classifier: what it is made of, and that the module inside is left as it came."""

from __future__ import annotations

import copy
import random
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from pytest_triguard.classifier import Classifier
from pytest_triguard.errors import ConfigError, InputError, InputTypeError, ModelError
from tests.module_state import state_of
from tests.networks import SHAPES, bare, classifier, images, network, used_module
from tests.sessions import with_settings
from tests.simulated_accelerator import simulated_accelerator

X = images(SHAPES["conv"], 3)

# --- what it is ---------------------------------------------------------------------------------


def test_a_classifier_gives_the_logits_of_its_module_in_evaluation_mode():
    subject = classifier("conv")
    assert subject.module.training
    assert torch.equal(subject(X), bare(subject)(X))
    assert subject.module.training


def test_gradients_flow_to_the_inputs_and_to_nothing_else():
    subject, points = classifier("conv"), X.clone().requires_grad_()
    subject(points).sum().backward()
    assert points.grad.abs().sum() > 0
    assert all(each.grad is None for each in subject.module.parameters())


def test_a_classifier_knows_its_dtype_device_and_classes():
    subject = Classifier(network("conv", torch.float32), classes=["a", "b", 3, "d"])
    assert subject.dtype == torch.float32
    assert subject.device == torch.device("cpu")
    assert subject.classes == ("a", "b", "3", "d")
    assert Classifier(nn.Flatten()).dtype is None
    assert Classifier(nn.Flatten()).device == torch.device("cpu")
    assert repr(subject) == "Classifier(Sequential, bounds=((0.0,), (1.0,)))"


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((0, 1), ((0.0,), (1.0,))),
        ([-1.0, 1.0], ((-1.0,), (1.0,))),
        (((0, 0, -1), (1, 2, 1)), ((0.0, 0.0, -1.0), (1.0, 2.0, 1.0))),
        ((0, (1, 2, 3)), ((0.0, 0.0, 0.0), (1.0, 2.0, 3.0))),
        ((torch.tensor([0.0, 0.5]), 1), ((0.0, 0.5), (1.0, 1.0))),
    ],
)
def test_bounds_are_numbers_or_one_number_per_channel(bounds, expected):
    assert Classifier(nn.Flatten(), bounds=bounds).bounds == expected


def test_mean_and_std_are_numbers_or_one_number_per_channel():
    assert Classifier(nn.Flatten(), mean=0.5, std=0.25).normalization == ((0.5,), (0.25,))
    colour = Classifier(nn.Flatten(), mean=(0.1, 0.2, 0.3), std=torch.tensor([0.5, 1, 2]))
    assert colour.normalization == ((0.1, 0.2, 0.3), (0.5, 1.0, 2.0))


PAIR = "bounds must be a pair (low, high), but"
TOGETHER = "mean and std must be given together, but"
REFUSED = {
    "module": ({"module": 3}, InputTypeError, "module must be a torch.nn.Module, but 3 came"),
    "bounds-number": ({"bounds": 1.0}, InputTypeError, f"{PAIR} 1.0 came"),
    "bounds-three": ({"bounds": (0, 1, 2)}, InputTypeError, f"{PAIR} (0, 1, 2) came"),
    "bounds-text": ({"bounds": "01"}, InputTypeError, f"{PAIR} '01' came"),
    "bounds-nan": (
        {"bounds": (0, float("nan"))},
        InputError,
        "bounds must be a finite number, but nan came",
    ),
    "bounds-none": (
        {"bounds": (None, 1)},
        InputTypeError,
        "bounds must be a number, but None came",
    ),
    "bounds-inverted": (
        {"bounds": (1, 0)},
        InputError,
        "bounds must rise from low to high, but (1, 0) came",
    ),
    "bounds-empty": (
        {"bounds": (0, 0)},
        InputError,
        "bounds must rise from low to high, but (0, 0) came",
    ),
    "bounds-channels": (
        {"bounds": ((0, 0), (1, 1, 1))},
        InputError,
        "bounds must name as many channels below as above, but 2 and 3 came",
    ),
    "mean-alone": ({"mean": 0.5}, InputError, f"{TOGETHER} std is missing"),
    "std-alone": ({"std": 0.5}, InputError, f"{TOGETHER} mean is missing"),
    "std-zero": ({"mean": 0.5, "std": 0}, InputError, "std must be greater than 0, but 0 came"),
    "std-negative": (
        {"mean": 0.5, "std": (0.5, -0.1)},
        InputError,
        "std must be greater than 0, but -0.1 came",
    ),
    "mean-channels": (
        {"mean": (0, 0), "std": (1, 1, 1)},
        InputError,
        "mean and std must name as many channels, but 2 and 3 came",
    ),
    "mean-empty": (
        {"mean": [], "std": []},
        InputError,
        "mean must have one number per channel, but an empty list came",
    ),
    "mean-text": (
        {"mean": "0.5", "std": 1},
        InputTypeError,
        "mean must be a number, but '0.5' came",
    ),
}


@pytest.mark.parametrize(("options", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_a_bad_argument_is_refused_by_name(options, error, message):
    with pytest.raises(error) as caught:
        Classifier(**{"module": nn.Flatten()} | options)
    assert str(caught.value) == message


# --- held and given back ------------------------------------------------------------------------


def test_inside_the_module_is_frozen_and_evaluating():
    module = used_module()
    with Classifier(module).prepared() as model:
        assert model.module is module
        assert not any(each.training for each in module.modules())
        assert not any(each.requires_grad for each in module.parameters())
        assert all(each.grad is None for each in module.parameters())


@pytest.mark.parametrize("device", ["cpu", "sim"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, None])
def test_afterwards_everything_is_as_before(device, error):
    module = used_module()
    before = state_of(module)
    with simulated_accelerator():
        try:
            with Classifier(module).prepared(device=device) as model:
                module(X.to(model.device))
                torch.rand(3), np.random.rand(3), random.random()
                if error is not None:
                    raise error("stop")
        except (RuntimeError, KeyboardInterrupt):
            pass
    assert state_of(module) == before


class Careless(nn.Module):
    """Changes its buffers whenever it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("total", torch.zeros(3))
        self.register_buffer("last", None)
        self.register_buffer("mask", torch.ones(1).expand(3))  # cannot be written to

    def forward(self, inputs):
        self.count += 1
        self.total = self.total + 1
        return self.layer(inputs.flatten(1)) * self.mask


@pytest.mark.parametrize("device", ["cpu", "sim"])
def test_buffers_that_change_inside_are_put_back(device):
    module = Careless()
    before = state_of(module)
    with simulated_accelerator(), Classifier(module).prepared(device=device) as model:
        model.logits(torch.zeros(2, 1, 2, 2, device=model.device))
    assert state_of(module) == before
    assert module.count == 0


class Caching(nn.Module):
    """Makes a buffer, and fills another, when it first runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("filled", None)

    def forward(self, inputs):
        if self.filled is None:
            self.filled = torch.ones(3)
            self.register_buffer("made", torch.ones(3))
        return self.layer(inputs.flatten(1)) * self.filled


def test_buffers_that_are_made_inside_are_taken_away():
    module = Caching()
    before = state_of(module)
    with Classifier(module).prepared() as model:
        model.logits(torch.zeros(2, 1, 2, 2))
        assert module.made is not None
    assert state_of(module) == before
    assert module.filled is None


def _scripted(module):
    return torch.jit.script(module)


def _frozen(module):
    return torch.jit.freeze(torch.jit.script(module.eval()))


def _exported(module):
    rows = torch.export.Dim("rows")
    program = torch.export.export(module.eval(), (X,), dynamic_shapes=({0: rows},))
    return nn.Sequential(program.module(), nn.Dropout(0.5))


class Fixed(nn.Sequential):
    """Has its mode built in, as what torch.export makes."""

    def train(self, mode=True):
        raise NotImplementedError("Calling train() is not supported yet.")


def _fixed(module):
    return nn.Sequential(Fixed(module.eval()), nn.Dropout(0.5))


@pytest.mark.parametrize(
    "made", [_scripted, _frozen, _fixed, pytest.param(_exported, marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_module_made_by_torch_runs_as_what_it_was_made_of(made):
    module = made(network("conv"))
    for each in module.parameters():
        each.grad = torch.ones_like(each)
    before = None if made is _frozen else state_of(module)
    points = X.clone().requires_grad_()
    logits = Classifier(module)(points)
    torch.testing.assert_close(logits, bare(classifier("conv"))(X))
    logits.sum().backward()
    assert points.grad.abs().sum() > 0
    assert before is None or state_of(module) == before


def _lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))


def _lazy_statistics():
    return nn.LazyBatchNorm2d(affine=False)


def _without_values():
    return nn.Linear(4, 3, device="meta")


def _made_for_inference():
    with torch.inference_mode():
        return nn.Linear(4, 3)


LAZY = "is lazy and not initialised; pass one batch through the module first"
UNUSABLE = {
    _lazy: f"parameter '1.weight' {LAZY}",
    _lazy_statistics: f"buffer 'running_mean' {LAZY}",
    _without_values: "parameter 'weight' is on the meta device and has no values; load the weights "
    "first",
    _made_for_inference: "parameter 'weight' was made in torch.inference_mode(); build and load "
    "the module outside of it",
}


@pytest.mark.parametrize("made", UNUSABLE)
@pytest.mark.parametrize("use", [Classifier.fingerprint, lambda each: each(X)])
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_module_that_is_not_ready_is_refused_by_name(made, use):
    module = made()
    with pytest.raises(ModelError) as caught:
        use(Classifier(module))
    assert str(caught.value) == f"the module must be ready to run, but its {UNUSABLE[made]}"
    assert module.training
    assert all(each.requires_grad for each in module.parameters())


def test_training_goes_on_after_a_check_as_if_there_had_been_none():
    checked, unchecked = (classifier("smooth").module for _ in range(2))
    targets = torch.tensor([0, 1, 2])
    inputs = images(SHAPES["smooth"], 3)
    for module in (checked, unchecked):
        for _ in range(3):
            module.zero_grad()
            nn.functional.cross_entropy(module(inputs), targets).backward()
            if module is checked:
                with simulated_accelerator():
                    Classifier(module)(inputs)
                    with Classifier(module).prepared(device="sim") as model:
                        model.logits(inputs.to("sim"))
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter -= 0.1 * parameter.grad
    pairs = zip(checked.parameters(), unchecked.parameters(), strict=True)
    assert all(torch.equal(*each) for each in pairs)


def test_shared_parameters_stay_shared():
    layer = nn.Linear(4, 4)
    module = nn.Sequential(nn.Flatten(), layer, layer)
    with simulated_accelerator(), Classifier(module).prepared(device="sim"):
        pass
    assert module[1].weight is module[2].weight is layer.weight


def test_a_classifier_can_be_used_inside_its_own_use():
    subject = classifier("conv")
    before = state_of(subject.module)
    with subject.prepared():
        with subject.prepared() as inner:
            inner.logits(X)
        subject(X)
        assert not subject.module.training
    assert state_of(subject.module) == before


def test_one_module_cannot_be_on_two_devices_at_once():
    subject = classifier("conv")
    before = state_of(subject.module)
    with (
        simulated_accelerator(),
        subject.prepared(device="cpu"),
        pytest.raises(ModelError, match="in use on cpu and cannot be used on sim:0 at the same"),
        subject.prepared(device="sim"),
    ):
        pass
    assert state_of(subject.module) == before


def test_threads_may_share_a_classifier():
    subject = classifier("conv")
    before, expected, found = state_of(subject.module), bare(subject)(X), []

    def work():
        found.extend([subject(X) for _ in range(20)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(found) == 80
    assert all(torch.equal(each, expected) for each in found)
    assert state_of(subject.module) == before


def test_the_device_is_that_of_the_session_or_the_modules_own():
    subject = classifier("conv")
    with simulated_accelerator():
        with subject.prepared() as model:
            assert model.device == torch.device("cpu")
        with with_settings(device="sim"):
            with subject.prepared() as model:
                assert model.device == torch.device("sim", 0)
                assert subject.device == torch.device("sim", 0)
            with subject.prepared(device="cpu") as model:
                assert model.device == torch.device("cpu")
    with with_settings(device="sim"), pytest.raises(ConfigError, match=r"available here: cpu$"):
        subject.prepared().__enter__()


def test_a_module_on_an_accelerator_stays_there():
    with simulated_accelerator():
        module = network("conv").to("sim")
        before = state_of(module)
        subject = Classifier(module)
        assert subject(X).device == torch.device("sim", 0)
        assert state_of(module) == before
        with subject.prepared(device="cpu") as model:
            model.logits(X)
        assert state_of(module) == before


class Making(nn.Module):
    """Makes a tensor of its own, for which it names no device."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs):
        return self.layer(inputs.flatten(1)) * torch.ones(3)


@contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


def test_a_default_device_is_for_the_module_and_for_nothing_else():
    module = Making()
    inputs = torch.rand(2, 1, 2, 2)
    expected = Classifier(module)(inputs)
    with simulated_accelerator(), default_device("sim"):
        with Classifier(module.to("sim")).prepared() as model:
            assert torch.ones(()).device == torch.device("cpu")
            assert torch.equal(model.logits(inputs.to("sim")).cpu(), expected)
        assert torch.ones(()).device == torch.device("sim", 0)


def test_a_module_on_two_devices_is_refused_and_left_alone():
    with simulated_accelerator():
        module = network("conv")
        module[0].to("sim")
        before = state_of(module)
        message = "must lie on one device, but its parameters are on cpu, sim:0"
        with pytest.raises(ModelError, match=message):
            Classifier(module)(X)
        assert state_of(module) == before


# --- fingerprint --------------------------------------------------------------------------------


def test_the_fingerprint_is_that_of_the_content():
    first, second = (Classifier(network("conv")) for _ in range(2))
    assert first.fingerprint() == second.fingerprint()
    moved = copy.deepcopy(first.module).eval()
    assert Classifier(moved).fingerprint() == first.fingerprint()


def _zero_weight(module):
    with torch.no_grad():
        module[0].weight[0, 0, 0, 0] = 0


def _zero_statistic(module):
    module[1].running_mean[0] = 0


def _other_layer(module):
    module[2] = nn.Softplus()


def _new_tensor(module):
    module[0].weight = nn.Parameter(module[0].weight.detach() * 2)


def _behind_the_back(module):
    module[0].weight.data.mul_(2)


@pytest.mark.parametrize(
    "change", [_zero_weight, _zero_statistic, _other_layer, _new_tensor, _behind_the_back]
)
def test_the_fingerprint_follows_every_change(change):
    subject = classifier("conv")
    before = subject.fingerprint()
    assert subject.fingerprint() == before
    change(subject.module)
    assert subject.fingerprint() != before
    assert Classifier(copy.deepcopy(subject.module)).fingerprint() == subject.fingerprint()


def test_the_fingerprint_tells_bounds_and_normalisation_apart():
    module = network("conv")
    options = [{}, {"bounds": (-1, 1)}, {"mean": 0.5, "std": 0.5}, {"mean": 0.5, "std": 0.25}]
    assert len({Classifier(module, **each).fingerprint() for each in options}) == 4


@pytest.mark.parametrize("device", ["cpu", "sim"])
def test_a_check_does_not_change_the_fingerprint_nor_make_it_be_taken_anew(device, monkeypatch):
    subject = classifier("conv")
    before = subject.fingerprint()
    monkeypatch.setattr(Classifier, "_hash", lambda self: "taken anew")
    with simulated_accelerator(), subject.prepared(device=device) as model:
        model.logits(X.to(model.device))
    assert subject.fingerprint() == before


def test_a_buffer_that_is_not_saved_counts_too():
    first, second = nn.Flatten(), nn.Flatten()
    for module, value in ((first, 1.0), (second, 2.0)):
        module.register_buffer("scale", torch.tensor([value]), persistent=False)
    assert Classifier(first).fingerprint() != Classifier(second).fingerprint()
