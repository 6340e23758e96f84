"""Class activation maps and FullGrad: layers, signs, and what the parts sum to."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_triguard import attributions
from pytest_triguard.classifier import Classifier
from pytest_triguard.engine.samples import Batch
from pytest_triguard.errors import InputError, InputTypeError, ModelError
from tests.attributions.table import close
from tests.module_state import state_of
from tests.networks import SHAPES, bare, images, network, problem

CAMS = pytest.mark.parametrize("name", ["grad_cam", "guided_grad_cam"])


def batch_of(inputs, targets):
    rows = tuple(range(len(inputs)))
    return Batch(rows, rows, torch.tensor(rows), inputs, targets=targets)


class Pooled(nn.Module):
    """Convolution, ReLU written in place, mean over places, linear head."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.features = nn.Conv2d(2, 4, 3, padding=1)
            self.head = nn.Linear(4, 3)
        self.double()

    def forward(self, inputs):
        return self.head(functional.relu_(self.features(inputs)).mean((2, 3)))


# --- Grad-CAM -----------------------------------------------------------------------------------


def test_behind_a_mean_over_places_the_map_is_the_class_activation_map():
    module, inputs = Pooled(), images((2, 6, 8), 3)
    found = attributions.get("grad_cam", layer="features", relu=False)(
        Classifier(module), inputs, 1
    )
    features = module.features(inputs).detach()
    mask = (features > 0).double().mean((2, 3), keepdim=True) / 48
    expected = (module.head.weight[1].detach().view(1, 4, 1, 1) * mask * features).sum(1)
    assert torch.allclose(found.sum(1), expected)
    assert torch.equal(found[:, 0], found[:, 1])


def test_negative_values_are_kept_or_set_to_zero_before_the_map_is_enlarged():
    subject, inputs, targets = problem("smooth", 4)
    layer = bare(subject)[:3]
    features = layer(inputs)
    both = [
        attributions.get("grad_cam", relu=relu)(subject, inputs, targets) for relu in (False, True)
    ]
    weights = bare(subject)[4].weight[targets].view_as(features).mean((2, 3), keepdim=True)
    small = (weights * features).sum(1, keepdim=True)
    for found, expected in zip(both, (small, small.relu()), strict=True):
        large = functional.interpolate(expected, inputs.shape[2:], mode="bilinear")
        assert close(found, (large / 3).expand_as(found), 1e-9)
    assert both[0].min() < 0


@CAMS
def test_a_layer_is_named_or_given_or_the_last_with_places(name):
    subject, inputs, targets = problem("conv", 3)
    by_name, by_module, last = (
        attributions.get(name, layer=layer)(subject, inputs, targets)
        for layer in ("5", subject.module[5], None)
    )
    assert torch.equal(by_name, by_module)
    assert torch.equal(by_name, last)
    other = attributions.get(name, layer="2")(subject, inputs, targets)
    assert not close(other, last, 0.1)


def test_only_what_comes_behind_the_layer_is_differentiated():
    subject, inputs, targets = problem("conv", 3)
    seen = []

    class Spy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return values.clone()

        @staticmethod
        def backward(ctx, gradient):
            seen.append(gradient)
            return gradient

    module = bare(subject)
    module.insert(0, nn.Identity())
    module[0].forward = Spy.apply
    with Classifier(module).prepared() as model:
        attributions.get("grad_cam", layer="6").explain(model, batch_of(inputs, targets))
        assert (model.passes.forward, model.passes.backward) == (3, 0)
    assert seen == []


BAD_LAYERS = [
    (
        "features",
        InputError,
        "layer must name a module of the classifier, but 'features' came (the",
    ),
    (
        "6",
        InputError,
        "layer must give an output (N, C, h, w), but '6' gave a Tensor of shape (2, 1",
    ),
    (nn.ReLU(), InputError, "layer must be a module of the classifier, but a ReLU that is no part"),
    (3, InputTypeError, "layer must be a module or its dotted name, but 3 came"),
]


@CAMS
@pytest.mark.parametrize(("layer", "error", "message"), BAD_LAYERS, ids=lambda each: str(each)[:9])
def test_a_layer_that_cannot_be_used_is_refused_and_nothing_is_left_behind(
    name, layer, error, message
):
    module, inputs = network("conv"), images(SHAPES["conv"], 2)
    before = state_of(module)
    with pytest.raises(error, match=re.escape(message)):
        attributions.get(name, layer=layer)(Classifier(module), inputs, 1)
    assert state_of(module) == before


@CAMS
def test_a_network_without_places_is_refused(name):
    subject, inputs, targets = problem("linear", 2)
    message = (
        f"{name} needs a layer with an output (N, C, h, w) of more than one place, but the mod"
    )
    with pytest.raises(ModelError, match=re.escape(message)):
        attributions.get(name)(subject, inputs, targets)


class Heads(nn.Module):
    """Tokens mixed by attention whose matrices, or whose keys, go through a module."""

    def __init__(self, *, seen, patches):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.patches, self.head = patches, nn.Linear(6, 3)
        self.seen, self.matrices, self.keys = seen, nn.Identity(), nn.Identity()
        self.double()

    def forward(self, inputs):
        tokens = self.patches(inputs).flatten(2).mT  # (N, T, 6)
        heads = tokens.unflatten(2, (2, 3)).transpose(1, 2)
        keys = self.keys(heads) if self.seen == "keys" else heads
        matrices = (heads @ keys.mT).softmax(3)
        if self.seen == "matrices":
            matrices = self.matrices(matrices)
        return self.head((matrices @ heads).transpose(1, 2).flatten(2).mean(1))


@CAMS
@pytest.mark.parametrize("seen", ["matrices", "keys"])
def test_attention_is_not_taken_for_places(name, seen):
    inputs = images((2, 8, 6), 3)
    subject = Classifier(Heads(seen=seen, patches=nn.Conv2d(2, 6, 2, stride=2)))
    found = attributions.get(name)(subject, inputs, 1)
    assert torch.equal(found, attributions.get(name, layer="patches")(subject, inputs, 1))
    without = Heads(seen=seen, patches=nn.Sequential(nn.Unfold(2, stride=2), nn.Conv1d(8, 6, 1)))
    with pytest.raises(ModelError, match=f"^{name} needs a layer with an output .* layer=NAME"):
        attributions.get(name)(Classifier(without), inputs, 1)


class Windows(nn.Module):
    """Attention inside the halves of an image, which become samples of their own."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.patches, self.head = nn.Conv2d(2, 3, 2, stride=2), nn.Linear(3, 3)
        self.halves = nn.Identity()
        self.double()

    def forward(self, inputs):
        patches = self.patches(inputs)
        halves = torch.cat(patches.chunk(2, 2)).flatten(2).mT
        matrices = self.halves((halves @ halves.mT).softmax(2).unsqueeze(1)).squeeze(1)
        first, second = (matrices @ halves).mean(1).chunk(2)
        return self.head(first + second)


@CAMS
def test_a_layer_with_other_rows_than_samples_is_no_default_and_refused(name):
    subject, inputs = Classifier(Windows()), images((2, 8, 6), 3)
    found = attributions.get(name)(subject, inputs, 1)
    assert torch.equal(found, attributions.get(name, layer="patches")(subject, inputs, 1))
    message = "layer must give one row for each of 3 inputs, but a Tensor of shape (6, 1, 6, 6)"
    with pytest.raises(InputError, match=re.escape(message)):
        attributions.get(name, layer="halves")(subject, inputs, 1)


def test_a_module_behind_a_pooling_without_one_is_the_last_with_places():
    class Dropped(Pooled):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout()

        def forward(self, inputs):
            pooled = functional.max_pool2d(functional.relu(self.features(inputs)), 2)
            return self.head(self.dropout(pooled).mean((2, 3)))

    subject, inputs = Classifier(Dropped()), images((2, 6, 8), 3)
    found = attributions.get("grad_cam", relu=False)(subject, inputs, 1)
    named = attributions.get("grad_cam", relu=False, layer="dropout")(subject, inputs, 1)
    assert torch.equal(found, named)


def test_a_module_given_as_layer_is_recorded_by_its_kind():
    assert attributions.get("grad_cam", layer=nn.ReLU()).parameters()["layer"] == "ReLU"


def test_it_does_not_matter_how_a_relu_is_written():
    class Written(Pooled):
        def __init__(self, relu):
            super().__init__()
            self.relu = relu

        def forward(self, inputs):
            return self.head(self.relu(self.features(inputs)).mean((2, 3)))

    ways = [functional.relu, torch.relu, torch.Tensor.relu, functional.relu_, nn.ReLU(inplace=True)]
    inputs = images((2, 6, 8), 3)
    method = attributions.get("guided_grad_cam", layer="features", relu=False)
    maps = [method(Classifier(Written(way)), inputs, 1) for way in ways]
    plain = attributions.get("saliency")(Classifier(Written(functional.relu)), inputs, 1)
    activation = attributions.get("grad_cam", layer="features", relu=False)
    product = plain * activation(Classifier(Written(functional.relu)), inputs, 1) * 2
    assert not close(maps[0], product, 0.1)
    assert all(close(each, maps[0], 1e-12) for each in maps)


# --- FullGrad -----------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [("bias",), ("weight",), ("weight", "bias")])
def test_a_normalisation_may_lack_a_weight_or_a_bias(missing):
    layer = nn.BatchNorm2d(4)
    with torch.no_grad():
        for factor, each in enumerate((layer.weight, layer.bias, layer.running_mean), start=2):
            each.copy_(torch.linspace(-1, factor, 4))
    for name in missing:
        setattr(layer, name, None)
    module = nn.Sequential(nn.Conv2d(2, 4, 1), layer, nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    subject = Classifier(module.double())
    error = attributions.get("fullgrad").completeness_error(subject, images((2, 3, 4), 3), 1)
    assert error.max() < 1e-9


class OneByOne(Pooled):
    """Calls its layers on one sample at a time."""

    def __init__(self, *, transformed):
        super().__init__()
        self.transformed = transformed

    def forward(self, inputs):
        if self.transformed:
            return torch.vmap(lambda each: super(OneByOne, self).forward(each[None])[0])(inputs)
        return torch.cat([super(OneByOne, self).forward(each[None]) for each in inputs])


@pytest.mark.parametrize(
    ("transformed", "message"),
    [
        (False, "fullgrad needs layers that give one row for each of 3 inputs, but a Conv2d gave"),
        (True, "the module must call its layers on whole batches to let them be watched, but its"),
    ],
)
def test_layers_that_are_called_for_each_sample_are_refused(transformed, message):
    subject = Classifier(OneByOne(transformed=transformed))
    with pytest.raises(ModelError, match=f"^{message}"):
        attributions.get("fullgrad")(subject, images((2, 6, 8), 3), 1)


def test_a_layer_inside_a_transform_is_refused():
    subject = Classifier(OneByOne(transformed=True))
    message = "^the module must call its layers on whole batches to let them be watched, but its Co"
    with pytest.raises(ModelError, match=message):
        attributions.get("grad_cam", layer="features")(subject, images((2, 6, 8), 3), 1)


@pytest.mark.parametrize("name", ["linear", "conv", "residual", "bias_free"])
def test_the_parts_sum_to_the_output_of_a_piecewise_linear_network(name):
    subject, inputs, targets = problem(name, 4)
    error = attributions.get("fullgrad").completeness_error(subject, inputs, targets)
    assert error.max() < 1e-9
    channels = SHAPES[name][0]
    moved = Classifier(subject.module, mean=[0.4] * channels, std=[0.3] * channels)
    assert attributions.get("fullgrad").completeness_error(moved, inputs).max() < 1e-9


def test_the_parts_do_not_sum_to_the_output_of_a_smooth_network():
    subject, inputs, targets = problem("smooth", 4)
    assert attributions.get("fullgrad").completeness_error(subject, inputs, targets).min() > 1e-3


class Tokens(nn.Module):
    """Linear layers on every place of an image, the second of one half of each image at a time."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.first, self.second = nn.Linear(2, 5), nn.Linear(5, 3)
        self.double()

    def forward(self, inputs):
        places = functional.relu(self.first(inputs.permute(0, 2, 3, 1)))
        halves = places.flatten(1, 2).view(2 * len(inputs), -1, 5)
        return self.second(halves).view(len(inputs), -1, 3).mean(1)


def test_linear_layers_count_in_the_sum_wherever_they_are_applied_and_add_nothing_to_the_map():
    inputs, targets = images((2, 4, 6), 3), torch.tensor([0, 1, 2])
    subject, method = Classifier(Tokens()), attributions.get("fullgrad")
    assert method.completeness_error(subject, inputs, targets).max() < 1e-12
    gradients = attributions.get("gradient_x_input")(subject, inputs, targets).abs()
    least, largest = (each.view(-1, 1, 1, 1) for each in torch.aminmax(gradients.flatten(1), dim=1))
    expected = ((gradients - least) / (largest - least)).mean(1, keepdim=True)
    assert close(method(subject, inputs, targets), expected.expand_as(inputs), 1e-12)


def test_what_overwrites_an_output_does_not_change_its_part():
    subject, inputs, targets = problem("conv", 4)
    module = bare(subject)
    for each in module:
        if isinstance(each, nn.ReLU):
            each.inplace = True
    found, expected = (
        attributions.get("fullgrad")(Classifier(each), inputs, targets)
        for each in (module, bare(subject))
    )
    assert close(found, expected, 1e-12)


@pytest.mark.parametrize("mode", ["canonical", "reference"])
def test_the_map_adds_up_rescaled_parts(mode):
    subject, inputs, targets = problem("conv", 3)
    module = bare(subject)
    leaf = inputs.clone().requires_grad_()
    hidden, outputs = leaf, []
    for each in module:
        hidden = each(hidden)
        outputs.append(hidden)
    total = outputs[-1].gather(1, targets.unsqueeze(1)).sum()
    slopes = torch.autograd.grad(total, [leaf, outputs[0], outputs[1], outputs[4]])
    norm = module[1]
    shift = norm.bias - norm.weight * norm.running_mean / (norm.running_var + norm.eps).sqrt()
    biases = [inputs, *(each.view(1, -1, 1, 1) for each in (module[0].bias, shift, module[4].bias))]
    expected = 0
    for slope, bias in zip(slopes, biases, strict=True):
        part = (slope * bias).abs()
        part = part - part.amin((1, 2, 3), keepdim=True)
        part = part / (part.amax((1, 2, 3), keepdim=True) + (1e-6 if mode == "reference" else 0))
        aligned = mode == "reference"
        large = functional.interpolate(part, (8, 6), mode="bilinear", align_corners=aligned)
        expected = expected + large.sum(1, keepdim=True) / 3
    found = attributions.get("fullgrad", mode=mode)(subject, inputs, targets)
    assert close(found, expected.expand_as(found), 1e-9)


@pytest.mark.parametrize("name", ["grad_cam", "guided_grad_cam"])
def test_a_report_tells_why_a_class_activation_can_be_zero(name):
    told = "zero where the activation is negative (relu=False keeps it)"
    assert told in attributions.get(name).describe()
    assert told not in attributions.get(name, relu=False).describe()
