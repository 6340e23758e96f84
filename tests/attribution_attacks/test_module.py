"""The module is left as it came."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pytest_triguard.classifier import Classifier
from tests.attribution_attacks.table import every_row
from tests.module_state import state_of
from tests.networks import SHAPES, Failing, images, used_module
from tests.sessions import with_settings
from tests.simulated_accelerator import simulated_accelerator


@pytest.mark.parametrize("device", ["cpu", "sim"])
@every_row
def test_the_module_is_left_as_it_came(row, device):
    module, inputs = used_module(), images(SHAPES["conv"], 3)
    data = DataLoader(TensorDataset(inputs, torch.tensor([0, 1, 2])), batch_size=2)
    before = state_of(module)
    with simulated_accelerator(), with_settings(device=device):
        row.attack(steps=2)(Classifier(module), data)
    assert state_of(module) == before


@pytest.mark.parametrize("calls", [7, 8, 9])
@every_row
def test_the_module_is_left_as_it_came_after_an_exception(row, calls):
    module, inputs = Failing(used_module(), calls=calls), images(SHAPES["conv"], 4)
    before = state_of(module)
    with with_settings(chunk=4), pytest.raises(RuntimeError, match="on fire"):
        row.attack()(Classifier(module), inputs, 0)
    assert state_of(module) == before
