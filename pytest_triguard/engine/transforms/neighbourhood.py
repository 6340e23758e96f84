"""Points drawn around the sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pytest_triguard.engine import draws
from pytest_triguard.engine.estimators import Copies
from pytest_triguard.engine.geometry import per_row
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.transforms.base import PointTransform
from pytest_triguard.validation import number


@dataclass(frozen=True, kw_only=True)
class Neighbourhood(PointTransform):
    """The gradient is taken at points drawn uniformly from a cube, not clipped to the range.

    Args:
        copies: Number of points.
        beta: Half a side of the cube, in units of eps.

    References:
        Zhu et al. 2023, "Boosting Adversarial Transferability via Gradient Relevance Attack",
        ICCV, section 3.2.
    """

    name: ClassVar[str] = "neighbourhood"

    copies: int = 20
    beta: float = 3.5

    def __post_init__(self) -> None:
        super().__post_init__()
        number("beta", self.beta, low=0)

    def apply(self, model: Model, copies: Copies) -> Tensor:
        """Return the points, `(m, C, H, W)`."""
        inputs, eps = copies.inputs, copies.context[0]
        noise = draws.uniform(copies.keys, inputs.shape[1:], dtype=inputs.dtype, low=-1.0)
        return inputs.addcmul(noise, per_row(eps, inputs), value=self.beta)
