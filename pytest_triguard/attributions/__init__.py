"""Explanations of predictions, one file per method.

A new attribution is one file with a class, and one line in the table below.
"""

from __future__ import annotations

from pytest_triguard.attributions.base import Attribution
from pytest_triguard.registry import Family

__all__ = ["Attribution", "get", "names"]

_FAMILY: Family[Attribution] = Family(
    "attribution",
    {
        "gradient_x_input": "pytest_triguard.attributions.gradient_x_input:GradientXInput",
        "integrated_gradients": (
            "pytest_triguard.attributions.integrated_gradients:IntegratedGradients"
        ),
        "saliency": "pytest_triguard.attributions.saliency:Saliency",
        "smoothgrad": "pytest_triguard.attributions.smoothgrad:SmoothGrad",
        "smoothgrad_squared": "pytest_triguard.attributions.smoothgrad:SmoothGradSquared",
    },
)

names = _FAMILY.names
get = _FAMILY.get
