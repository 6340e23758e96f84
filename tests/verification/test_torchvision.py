"""Torchvision's networks are bounded as they are: nothing rewritten, nothing left out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_triguard import Classifier, verification

models = pytest.importorskip("torchvision.models")
METHODS = ["ibp", "crown_ibp"]
CLASSES = 10

SMALL = {
    "resnet18": (lambda: models.resnet.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], CLASSES), 32),
    "mobilenet_v3_large": (
        lambda: models.MobileNetV3(
            [
                models.mobilenetv3.InvertedResidualConfig(8, 3, 16, 8, True, "RE", 2, 1, 0.5),
                models.mobilenetv3.InvertedResidualConfig(8, 5, 24, 16, True, "HS", 2, 1, 0.5),
            ],
            last_channel=32,
            num_classes=CLASSES,
        ),
        32,
    ),
    "densenet121": (
        lambda: models.DenseNet(8, (2, 2), 16, num_classes=CLASSES),
        32,
    ),
    "vit_b_16": (
        lambda: models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=CLASSES),
        32,
    ),
}
WHOLE = {
    "resnet18": (lambda: models.resnet18(weights=None, num_classes=CLASSES), 64),
    "resnet50": (lambda: models.resnet50(weights=None, num_classes=CLASSES), 64),
    "resnet101": (lambda: models.resnet101(weights=None, num_classes=CLASSES), 64),
    "mobilenet_v3_large": (
        lambda: models.mobilenet_v3_large(weights=None, num_classes=CLASSES),
        64,
    ),
    "densenet121": (lambda: models.densenet121(weights=None, num_classes=CLASSES), 64),
    "vgg16": (lambda: models.vgg16(weights=None, num_classes=CLASSES), 64),
    "inception_v3": (
        lambda: models.inception_v3(
            weights=None, num_classes=CLASSES, transform_input=True, init_weights=False
        ),
        75,
    ),
    "vit_b_16": (lambda: models.vit_b_16(weights=None, num_classes=CLASSES), 224),
}


def built(build, size):
    """Return a network with random weights, its batch statistics taken from random images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build()
        for each in module.modules():
            if isinstance(each, nn.BatchNorm2d):
                each.momentum = None
            if isinstance(each, models.VisionTransformer):
                nn.init.normal_(each.heads.head.weight, std=0.1)
        if any(isinstance(each, nn.BatchNorm2d) for each in module.modules()):
            if hasattr(module, "AuxLogits"):
                module.AuxLogits = None
                module.aux_logits = False
            with torch.no_grad():
                module.train()(torch.rand(8, 3, size, size))
    return module.eval()


def bounded(module, size, method, eps):
    """Bound a network around one image; its outputs at points of the box are inside."""
    generator = torch.Generator().manual_seed(1)
    clean = torch.rand(1, 3, size, size, generator=generator)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    low, high = verification.bounds(Classifier(module), clean - eps, clean + eps, method=method)
    noise = 2 * torch.rand(3, *clean.shape[1:], generator=generator).double() - 1
    points = (clean - eps).double() + eps * (1 + torch.cat([noise, noise[:1].sign()]))
    points = points.clamp((clean - eps).double(), (clean + eps).double())
    after = module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    with torch.no_grad():
        logits = module.double()(points)
    module.float()
    assert low.isfinite().all()
    assert high.isfinite().all()
    assert (logits >= low - 1e-9).all()
    assert (logits <= high + 1e-9).all()
    return low, high


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SMALL)
def test_small_networks_of_every_family_are_bounded(name, method):
    build, size = SMALL[name]
    module = built(build, size)
    inner = bounded(module, size, method, 1e-6)
    outer = bounded(module, size, method, 1e-4)
    assert (outer[1] - outer[0] > inner[1] - inner[0]).all()


@pytest.mark.parametrize("name", ["vit_b_16", "mobilenet_v3_large"])
def test_back_substitution_is_tighter_than_intervals(name):
    build, size = SMALL[name]
    module = built(build, size)
    wide = bounded(module, size, "ibp", 1e-6)
    narrow = bounded(module, size, "crown_ibp", 1e-6)
    assert (narrow[0] >= wide[0]).all()
    assert (narrow[1] <= wide[1]).all()
    assert (narrow[1] - narrow[0]).mean() < 0.9 * (wide[1] - wide[0]).mean()


def test_a_certificate_of_a_vision_transformer():
    """At a small radius CROWN proves what the network predicts."""
    build, size = SMALL["vit_b_16"]
    module = built(build, size)
    clean = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    subject = Classifier(module)
    result = verification.verify(subject, clean, subject(clean).argmax(1), eps=1e-5, method="crown")
    assert result.status == ("proven",)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", WHOLE)
def test_networks_are_bounded_unmodified(name, method):
    build, size = WHOLE[name]
    bounded(built(build, size), size, method, 1e-6)
