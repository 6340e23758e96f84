"""The recommended setup of each method."""

from __future__ import annotations

import pytest
import torch

from pytest_triguard import attributions
from pytest_triguard.errors import InputTypeError
from tests.attributions.table import every_row

EXPECTED = {
    "cam": ("probability", False),
    "gradient": ("logit", True),
    "integration": ("logit", False),
}


@every_row
def test_a_method_is_set_up_by_its_kind_and_keeps_its_other_choices(row):
    method = row.method(output="contrast", seed=3)
    if method.kind not in EXPECTED:
        assert method.kind in ("attention", "difference")
        return
    setup = attributions.consistent_setup(method)
    found = setup.attribution.parameters()
    assert (found.pop("output"), setup.absolute) == EXPECTED[method.kind]
    assert found.pop("relu", False) is False
    for name, value in found.items():
        assert method.parameters()[name] == value


def test_maps_are_read_as_they_are_meant():
    maps = torch.tensor([-1.0, 2.0])
    gradient, integral = (
        attributions.consistent_setup(attributions.get(name))
        for name in ("saliency", "integrated_gradients")
    )
    assert gradient.read(maps).tolist() == [1.0, 2.0]
    assert integral.read(maps).tolist() == [-1.0, 2.0]


def test_what_is_no_method_has_no_setup():
    with pytest.raises(InputTypeError, match="method must be an attribution, but 'saliency' came"):
        attributions.consistent_setup("saliency")
