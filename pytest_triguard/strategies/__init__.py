"""Hypothesis strategies for property tests of image classifiers.

They need hypothesis, which only this part of the package uses: nothing else imports it.
"""

from __future__ import annotations

try:
    import hypothesis as _hypothesis  # noqa: F401 - before the modules that need it
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "pytest_triguard.strategies needs hypothesis, which is not installed; install it with: "
        'python -m pip install "pytest-triguard[hypothesis]"',
        name="hypothesis",
    ) from None

from pytest_triguard.strategies.balls import perturbations
from pytest_triguard.strategies.corruption import Corruption, corruptions
from pytest_triguard.strategies.networks import RandomNetwork, random_networks
from pytest_triguard.strategies.patch import Patch, patches
from pytest_triguard.strategies.starts import adversarial_starts

__all__ = [
    "Corruption",
    "Patch",
    "RandomNetwork",
    "adversarial_starts",
    "corruptions",
    "patches",
    "perturbations",
    "random_networks",
]
