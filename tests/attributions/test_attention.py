"""Attention rollout and gradient-weighted attention: matrices multiplied up by hand."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_triguard import attributions
from pytest_triguard.classifier import Classifier
from pytest_triguard.errors import InputError, InputTypeError, ModelError
from pytest_triguard.running import running
from tests.attributions.table import close
from tests.module_state import state_of
from tests.networks import CLASSES, Failing, bare, images, network, problem

NAMES = ("attention_rollout", "attention_gradient")
BOTH = pytest.mark.parametrize("name", NAMES)


def attended(block, tokens, probe):
    """Return what a block gives, and its attention, to which a probe of zeros is added."""
    layer, normal = block.attention, block.before(tokens)
    (n, count, size), heads = tokens.shape, layer.num_heads
    query, key, value = (
        part.view(n, count, heads, size // heads).transpose(1, 2)
        for part in functional.linear(normal, layer.in_proj_weight, layer.in_proj_bias).chunk(3, 2)
    )
    attention = (query @ key.mT / (size // heads) ** 0.5).softmax(-1) + probe
    mixed = (attention @ value).transpose(1, 2).reshape(n, count, size)
    tokens = tokens + layer.out_proj(mixed)
    return tokens + block.mlp(block.between(tokens)), attention


def by_hand(module, inputs, targets):
    """Return the attention of both layers of the transformer, and its gradients."""
    probes = [torch.zeros(len(inputs), 2, 13, 13).double().requires_grad_() for _ in range(2)]
    patches = module.patches(inputs).flatten(2).mT
    tokens = torch.cat([module.first.expand(len(inputs), -1, -1), patches], 1) + module.places
    found = []
    for block, probe in zip(module.blocks, probes, strict=True):
        tokens, attention = attended(block, tokens, probe)
        found.append(attention.detach())
    logits = module.head(module.norm(tokens)[:, 0])
    assert torch.allclose(logits, module(inputs))
    return found, torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), probes)


def enlarged(rows, shape):
    """Return relevance `(n, h, w)` as a map."""
    large = functional.interpolate(rows.unsqueeze(1), shape[2:], mode="bilinear")
    return (large / shape[1]).expand(shape)


@BOTH
def test_the_map_is_the_row_of_the_class_token_in_the_product(name):
    subject, inputs, targets = problem("transformer", 5)
    attention, gradients = by_hand(bare(subject), inputs, targets)
    one = torch.eye(13).double()
    if name == "attention_rollout":
        first, second = ((one + each.mean(1)) / 2 for each in attention)
    else:
        first, second = (
            one + (each * gradient).clamp_min(0).mean(1)
            for each, gradient in zip(attention, gradients, strict=True)
        )
    row = (second @ first)[:, 0, 1:].view(-1, 4, 3)
    found = attributions.get(name)(subject, inputs, targets)
    assert close(found, enlarged(row, inputs.shape), 1e-9)


def test_a_rollout_of_uniform_attention_is_uniform():
    module = network("transformer")
    with torch.no_grad():
        for block in module.blocks:
            block.attention.in_proj_weight.zero_()
    found = attributions.get("attention_rollout")(Classifier(module), images((3, 8, 6), 2), 0)
    expected = torch.full_like(found, (1 / 4 + 1 / 2) / 13 / 3)  # (I + U)^2 / 4 = (I + 3 U) / 4
    assert torch.allclose(found, expected)


class Encoder(nn.Module):
    """Torch's own encoder, whose fused kernel runs all of a layer at once, and a mean of tokens."""

    def __init__(self, batch_first=True):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, 2)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, CLASSES)
        self.batch_first = batch_first

    def forward(self, inputs):
        tokens = self.patches(inputs).flatten(2)
        tokens = self.encoder(tokens.mT if self.batch_first else tokens.permute(2, 0, 1))
        return self.head(tokens.mean(int(self.batch_first)))


@BOTH
def test_no_fused_kernel_hides_attention_and_without_a_class_token_rows_are_averaged(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        module = Encoder().double().eval()
    other = Encoder(batch_first=False).double()
    other.load_state_dict(module.state_dict())
    inputs = images((3, 4, 6), 3)
    found = attributions.get(name)(Classifier(module), inputs, 1)
    assert close(attributions.get(name)(Classifier(other), inputs, 1), found)
    if name == "attention_rollout":
        tokens, matrix = module.patches(inputs).flatten(2).mT, torch.eye(6).double()
        for layer in module.encoder.layers:
            attention = layer.self_attn(tokens, tokens, tokens)[1]
            matrix = (torch.eye(6) + attention) / 2 @ matrix
            tokens = layer(tokens)
        assert close(found, enlarged(matrix.mean(1).view(-1, 2, 3).detach(), inputs.shape))


# --- MaxViT -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def maxvit():
    models = pytest.importorskip("torchvision.models")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        module = models.maxvit.MaxVit((16, 16), 4, 2, [4, 4], [1, 1], 2, 0.0, num_classes=CLASSES)
        for each in module.parameters():
            each.add_(torch.randn_like(each) / 2)
    return module.double().eval().requires_grad_(False)


def explicit(layer, seen):
    """Return the forward pass of MaxViT's attention, which keeps its matrices."""

    def forward(values):
        rows, windows, places, size = values.shape
        split = (rows, windows, places, layer.n_heads, layer.head_dim)
        query, key, value = (
            part.reshape(split).transpose(2, 3) for part in layer.to_qkv(values).chunk(3, -1)
        )
        scores = query @ key.mT * layer.scale_factor + layer.get_relative_positional_bias()
        attention = scores.softmax(-1).requires_grad_()
        seen.append(attention)
        return layer.merge((attention @ value).transpose(2, 3).reshape(rows, windows, places, size))

    return forward


def windows_of(kind, size, partition):
    """Return for each window of a square picture the places in it, row by row."""
    count, steps = size // partition, range(partition)
    groups = [(row, column) for row in range(count) for column in range(count)]
    if kind == "window":
        corners = [(row * partition, column * partition) for row, column in groups]
        return [[(r + i) * size + c + j for i in steps for j in steps] for r, c in corners]
    return [
        [(r + i * count) * size + c + j * count for i in steps for j in steps] for r, c in groups
    ]


@BOTH
def test_on_maxvit_windows_and_grids_are_matrices_over_places(name, maxvit, monkeypatch):
    inputs, seen = images((3, 16, 16), 2, seed=3), []
    found = attributions.get(name)(Classifier(maxvit), inputs, 1)
    for module in maxvit.modules():
        if type(module).__name__ == "RelativePositionalMultiHeadAttention":
            monkeypatch.setattr(module, "forward", explicit(module, seen))
    gradients = torch.autograd.grad(maxvit(inputs)[:, 1].sum(), seen)
    total = {}
    for size in (4, 2):
        total[size] = torch.eye(size * size).double().expand(2, -1, -1)
        for kind in ("window", "grid"):
            attention, gradient = seen.pop(0), gradients[4 - len(seen) - 1]
            weights = attention if name == "attention_rollout" else (attention * gradient).relu()
            matrix = torch.zeros_like(total[size])
            for number, places in enumerate(windows_of(kind, size, 2)):
                index = torch.tensor(places)
                matrix[:, index[:, None], index] = weights[:, number].mean(1).detach()
            matrix = matrix + torch.eye(size * size)
            total[size] = matrix / (2 if name == "attention_rollout" else 1) @ total[size]
    finer = torch.zeros(4, 16).double()  # each place of 2 x 2 covers four of 4 x 4
    for place in range(16):
        finer[place // 8 * 2 + place % 4 // 2, place] = 1 / 4
    rows = (torch.full((1, 4), 1 / 4).double() @ total[2] @ finer @ total[4]).view(-1, 4, 4)
    if name != "attention_rollout":
        rows = rows - 1 / 16
    assert close(found, enlarged(rows, inputs.shape), 1e-9)


def test_places_of_maxvit_share_all_the_relevance(maxvit):
    inputs = images((3, 16, 16), 2)
    found = attributions.get("attention_rollout")(Classifier(maxvit), inputs, 1)
    means = functional.avg_pool2d(found.sum(1, keepdim=True), 4)
    assert torch.allclose(means.sum((1, 2, 3)), torch.ones(2).double(), rtol=0.02)


# --- what it costs, and what it leaves ----------------------------------------------------------


@pytest.mark.parametrize(("name", "backward"), [(NAMES[0], 0), (NAMES[1], 3)])
def test_one_forward_pass_is_all_and_nothing_before_attention_is_differentiated(name, backward):
    subject, inputs, targets = problem("transformer", 3)
    module, seen = subject.module, []
    module.patches.register_forward_hook(lambda *args: seen.append(args[2].requires_grad))
    with running(subject, inputs, targets=targets) as run:
        for _ in attributions.get(name).stream(run.model, run.samples):
            pass
        passes = run.model.passes
    assert (passes.forward, passes.backward) == (3, backward)
    assert not any(seen)


@BOTH
def test_a_caller_gets_the_weights_it_asks_for(name):
    class Asking(nn.MultiheadAttention):
        def forward(self, query, key, value, **_):
            heads = super().forward(query, key, value, average_attn_weights=False)
            mean = super().forward(query, key, value)
            assert torch.allclose(heads[1].mean(1), mean[1])
            assert super().forward(query, key, value, need_weights=False)[1] is None
            return mean

    module = network("transformer")
    module.blocks[0].attention.__class__ = Asking
    attributions.get(name)(Classifier(module), images((3, 8, 6), 2), 1)


@BOTH
def test_windows_are_left_as_they_came_after_an_error(name, maxvit):
    module = nn.Sequential(maxvit, Failing(nn.Identity(), calls=1))
    before = state_of(module)
    with pytest.raises(RuntimeError, match="on fire"):
        attributions.get(name)(Classifier(module), images((3, 16, 16), 2), 1)
    assert state_of(module) == before


# --- what is refused ----------------------------------------------------------------------------


class Tokens(nn.Module):
    """Attention of the first pixels over the first pixels, and the mean of what they get."""

    def __init__(self, queries, keys):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.attention = nn.MultiheadAttention(3, 1, batch_first=True)
        self.queries, self.keys = queries, keys

    def forward(self, inputs):
        tokens = inputs.flatten(2).mT
        keys = tokens[:, : self.keys]
        return self.attention(tokens[:, : self.queries], keys, keys)[0].mean(1)


@BOTH
@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(72, 3)), {}, "needs attention through nn.Multihea"),
        (
            Tokens(4, 9),
            {},
            "needs self-attention of each sample over the same tokens in all",
        ),
        (Tokens(11, 11), {}, "patches must be given as (rows, columns), for 11 tokens are not the"),
        (
            Tokens(24, 24),
            {"patches": (5, 5)},
            "patches must be at most as many as the 24 token",
        ),
    ],
)
def test_what_has_no_attention_over_patches_is_refused(name, module, options, message):
    with pytest.raises((ModelError, InputError), match=re.escape(message)):
        attributions.get(name, **options)(Classifier(module.double()), images((3, 4, 6), 2), 1)


def test_patches_that_are_named_may_have_other_tokens_before_them():
    module, inputs = Tokens(24, 24).double(), images((3, 4, 6), 2)
    first, second = (
        attributions.get("attention_rollout", patches=patches)(Classifier(module), inputs, 1)
        for patches in ((4, 6), (2, 11))
    )
    assert torch.allclose(first.sum((1, 2, 3)), torch.ones(2).double())
    assert not close(first, second, 0.1)


@pytest.mark.parametrize(
    ("patches", "error", "message"),
    [
        (3, InputTypeError, "patches must be a pair (rows, columns), but 3 came"),
        ((3,), InputTypeError, "patches must be a pair (rows, columns), but (3,) came"),
        ((3, 0), InputError, "patches must be at least 1, but 0 came"),
    ],
)
def test_bad_patches_are_refused(patches, error, message):
    for name in NAMES:
        with pytest.raises(error, match=re.escape(message)):
            attributions.get(name, patches=patches)


@BOTH
def test_patches_are_refused_where_places_are_known(name, maxvit):
    with pytest.raises(InputError, match="patches must be left out where attention knows the pla"):
        attributions.get(name, patches=(4, 4))(Classifier(maxvit), images((3, 16, 16), 2), 1)
