"""Explanations of predictions, one file per method.

A new attribution is one file with a class, and one line in the table below.
"""

from __future__ import annotations

from pytest_triguard.attributions.base import Attribution
from pytest_triguard.attributions.lines import recalibrated
from pytest_triguard.attributions.setups import Setup, consistent_setup
from pytest_triguard.registry import Family

__all__ = ["Attribution", "Setup", "consistent_setup", "get", "names", "recalibrated"]

_FAMILY: Family[Attribution] = Family(
    "attribution",
    {
        "agi": "pytest_triguard.attributions.agi:AGI",
        "attention_gradient": "pytest_triguard.attributions.attention_gradient:AttentionGradient",
        "attention_rollout": "pytest_triguard.attributions.attention_rollout:AttentionRollout",
        "attexplore": "pytest_triguard.attributions.attexplore:AttEXplore",
        "attexplore_plus_plus": (
            "pytest_triguard.attributions.attexplore_plus_plus:AttEXplorePlusPlus"
        ),
        "big": "pytest_triguard.attributions.big:BIG",
        "deeplift": "pytest_triguard.attributions.deeplift:DeepLIFT",
        "expected_gradients": "pytest_triguard.attributions.expected_gradients:ExpectedGradients",
        "fast_ig": "pytest_triguard.attributions.fast_ig:FastIG",
        "fullgrad": "pytest_triguard.attributions.fullgrad:FullGrad",
        "grad_cam": "pytest_triguard.attributions.grad_cam:GradCAM",
        "gradient_x_input": "pytest_triguard.attributions.gradient_x_input:GradientXInput",
        "guided_grad_cam": "pytest_triguard.attributions.guided_grad_cam:GuidedGradCAM",
        "guided_ig": "pytest_triguard.attributions.guided_ig:GuidedIG",
        "ig_sg": "pytest_triguard.attributions.ig_sg:IGSG",
        "ig_sq": "pytest_triguard.attributions.ig_sg:IGSQ",
        "ig_uniform": "pytest_triguard.attributions.ig_uniform:IGUniform",
        "integrated_gradients": (
            "pytest_triguard.attributions.integrated_gradients:IntegratedGradients"
        ),
        "lpi": "pytest_triguard.attributions.lpi:LPI",
        "mfaba": "pytest_triguard.attributions.mfaba:MFABA",
        "occlusion": "pytest_triguard.attributions.occlusion:Occlusion",
        "saliency": "pytest_triguard.attributions.saliency:Saliency",
        "smoothgrad": "pytest_triguard.attributions.smoothgrad:SmoothGrad",
        "smoothgrad_squared": "pytest_triguard.attributions.smoothgrad:SmoothGradSquared",
        "unigrad": "pytest_triguard.attributions.unigrad:UniGrad",
    },
)

names = _FAMILY.names
get = _FAMILY.get
