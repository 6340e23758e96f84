"""Integrated gradients in one pass, for networks that scale with their input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pytest_triguard.attributions.gradient_x_input import GradientXInput
from pytest_triguard.facts import Facts


@dataclass(frozen=True, kw_only=True)
class FastIG(GradientXInput):
    """The input times the gradient, `x * d f_y / d x`, read as integrated gradients from zero.

    The two are equal where `f_y(t x) = t f_y(x)` for `t > 0`: networks without bias, of linear,
    ReLU, average- and max-pool layers, without normalisation of the inputs. On other networks the
    map is `gradient_x_input` and does not sum to the output.

    References:
        Hesse et al. 2021, "Fast Axiomatic Attribution for Neural Networks", arXiv:2111.07668,
        equation 6 (X-Gradient).
    """

    name: ClassVar[str] = "fast_ig"
    kind: ClassVar[str] = "integration"
    facts: ClassVar[Facts] = Facts(
        sign="signed", axioms=("complete without biases", "linear"), checked="Captum"
    )
