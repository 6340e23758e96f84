"""The setup in which methods of a kind are comparable: output, and how maps are read."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from pytest_triguard.attributions.base import Attribution
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.validation import describe

_SETUPS = {
    "cam": ("probability", False),
    "gradient": ("logit", True),
    "integration": ("logit", False),
}


@dataclass(frozen=True)
class Setup:
    """A method and the way its maps are read.

    Attributes:
        attribution: The method, explaining the output that goes with its kind.
        absolute: Whether the absolute values of its maps are meant, or the maps as they are.
    """

    attribution: Attribution
    absolute: bool

    def read(self, maps: Tensor) -> Tensor:
        """Return maps `(N, C, H, W)` as they are meant: absolute, or as they are."""
        return maps.abs() if self.absolute else maps


def consistent_setup(method: Attribution) -> Setup:
    """Return the setup in which a method does best, by kind.

    Class activation maps explain the probability and are read with their sign (so without the
    ReLU); gradients explain the logit and are read as absolute values; integrals explain the logit
    and are read with their sign.

    Args:
        method: The method, from `attributions.get`.

    Raises:
        InputTypeError: If it is no attribution.
        InputError: If it is of none of these kinds, such as occlusion.

    References:
        Yang et al. 2024, "Backdoor-based Explainable AI Benchmark for High Fidelity Evaluation of
        Attribution Methods", arXiv:2405.02344.

    Example:
        >>> from pytest_triguard import attributions
        >>> setup = attributions.consistent_setup(attributions.get("saliency"))
        >>> setup.attribution.output, setup.absolute
        ('logit', True)
    """
    if not isinstance(method, Attribution):
        raise InputTypeError(
            f"method must be an attribution, but {describe(method)} came; "
            "attributions.get(name, ...) makes one"
        )
    if method.kind not in _SETUPS:
        raise InputError(
            f"method must be of a kind with a recommended setup ({', '.join(_SETUPS)}), but "
            f"{method.name} came, which is of the kind {method.kind}"
        )
    output, absolute = _SETUPS[method.kind]
    changed: dict[str, Any] = {"output": output}
    if "relu" in {each.name for each in fields(method)}:
        changed["relu"] = False
    return Setup(replace(method, **changed), absolute)
