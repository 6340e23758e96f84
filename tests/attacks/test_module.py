"""The module is left as it came."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_triguard import attacks
from pytest_triguard.classifier import Classifier
from tests.attacks.table import TABLE, every_row, one_case, same
from tests.module_state import state_of
from tests.networks import SHAPES, Failing, bare, images, problem, used_module
from tests.sessions import with_settings
from tests.simulated_accelerator import simulated_accelerator


@one_case
def test_the_module_is_left_as_it_came(case):
    module, inputs = used_module(), images(SHAPES["conv"], 3)
    labels = torch.tensor([0, 1, 2])
    data = DataLoader(TensorDataset(inputs, labels), batch_size=2)
    before = state_of(module)
    case.attack()(Classifier(module), data, targets=1 if case.targeted else None)
    assert state_of(module) == before
    with simulated_accelerator(), with_settings(device="sim"):
        case.attack()(Classifier(module), data, targets=1 if case.targeted else None)
    assert state_of(module) == before


class Overwriting(nn.Module):
    """A network that centres its inputs, in place or not."""

    def __init__(self, inner: nn.Module, *, in_place: bool) -> None:
        super().__init__()
        self.inner = inner
        self.in_place = in_place

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs.sub_(0.1) if self.in_place else inputs - 0.1)


@pytest.mark.parametrize("device", ["cpu", "sim"])
@pytest.mark.parametrize("name", ["bim", "square", "naa"])
def test_a_module_that_overwrites_its_inputs_is_given_copies(name, device):
    subject, inputs, labels = problem("conv", 4)
    row = next(each for each in TABLE if each.name == name)
    before, found = inputs.clone(), []
    for in_place in (True, False):
        changed = Classifier(Overwriting(bare(subject), in_place=in_place))
        with simulated_accelerator(), with_settings(device=device):
            found.append(attacks.get(name, **row.few)(changed, inputs, labels))
    assert torch.equal(inputs, before)
    assert same(*found)


@pytest.mark.parametrize("device", ["cpu", "sim"])
@every_row
def test_the_module_is_left_as_it_came_after_an_exception(row, device):
    module = Failing(used_module(), calls=5)
    inputs, labels = images(SHAPES["conv"], 3), torch.tensor([0, 1, 2])
    before = state_of(module)
    with (
        simulated_accelerator(),
        with_settings(device=device, chunk=1),
        pytest.raises(RuntimeError, match="on fire"),
    ):
        attacks.get(row.name, **row.few | row.whole)(Classifier(module), inputs, labels)
    assert state_of(module) == before
