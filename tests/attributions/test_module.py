"""The module is left as it came."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pytest_triguard.classifier import Classifier
from tests.attributions.table import every_row
from tests.module_state import state_of
from tests.networks import Failing, images, shape_of, used_module
from tests.sessions import with_settings
from tests.simulated_accelerator import simulated_accelerator


@pytest.mark.parametrize("device", ["cpu", "sim"])
@every_row
def test_the_module_is_left_as_it_came(row, device):
    module, inputs = used_module(row.home), images(shape_of(row.home), 3)
    data = DataLoader(TensorDataset(inputs, torch.tensor([0, 1, 2])), batch_size=2)
    before = state_of(module)
    with simulated_accelerator(), with_settings(device=device):
        row.method()(Classifier(module), data)
    assert state_of(module) == before


@pytest.mark.parametrize("device", ["cpu", "sim"])
@every_row
def test_the_module_is_left_as_it_came_after_an_exception(row, device):
    module, inputs = Failing(used_module(row.home), calls=6), images(shape_of(row.home), 4)
    before = state_of(module)
    with (
        simulated_accelerator(),
        with_settings(device=device, chunk=1),
        pytest.raises(RuntimeError, match="on fire"),
    ):
        row.method()(Classifier(module), inputs, 0)
    assert state_of(module) == before
