"""A twin of a network with random parameters, which explanations should tell from the network."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pytest_triguard.classifier import Classifier
from pytest_triguard.engine import draws
from pytest_triguard.engine.precision import at_least_single
from pytest_triguard.errors import InputError
from pytest_triguard.validation import one_of

LAYERS = ("all", "last")


@torch.no_grad()
def randomized(classifier: Classifier, *, layers: str = "all", seed: int = 0) -> Classifier:
    """Return a copy of a classifier whose parameters are drawn anew.

    Each parameter is drawn from the normal distribution with its own mean and standard deviation,
    so that signals keep their scale; one whose values are all equal stays. Buffers stay too.

    Args:
        classifier: The classifier; it is left as it is.
        layers: `"all"`, or `"last"`: only the last module that has parameters of its own.
        seed: Seed of the draws.

    Raises:
        InputError: If `layers` is unknown, or the module has no parameters to draw.

    References:
        Adebayo et al. 2018, "Sanity Checks for Saliency Maps", arXiv:1810.03292, section 3
        (cascading randomization of all layers, and of the last).
    """
    one_of("layers", layers, LAYERS)
    module = copy.deepcopy(classifier.module)
    owners = [each for each in module.modules() if any(True for _ in each.parameters(False))]
    if not owners:
        raise InputError("the module must have parameters to randomize, but it has none")
    chosen = {id(each) for owner in owners[-1:] for each in owner.parameters(False)}
    for name, parameter in module.named_parameters():
        if layers == "all" or id(parameter) in chosen:
            _redraw(name, parameter, seed)
    mean, std = classifier.normalization or (None, None)
    return Classifier(
        module,
        bounds=classifier.bounds,
        mean=mean,
        std=std,
        classes=classifier.classes,
    )


def _redraw(name: str, parameter: nn.Parameter, seed: int) -> None:
    values = at_least_single(parameter.detach())
    spread = values.std(correction=0)
    key = torch.tensor([draws.id_key(name)], device=values.device)
    keys = draws.row_keys(key, seed=seed, method="randomization")
    drawn = draws.normal(keys, values.shape, dtype=values.dtype)[0]
    parameter.copy_(values.mean() + spread * drawn)
