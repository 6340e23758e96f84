"""The fixtures of the plugin, and the two that a model repository defines itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pytest_triguard.runtime import RUNTIME
from pytest_triguard.settings import Settings, current_settings


@dataclass(frozen=True, kw_only=True)
class TriGuard:
    """What the plugin knows about the running test.

    Attributes:
        settings: All settings in force, with the markers of the test.
        device: Device that was asked for, else `cpu`.
        seed: Seed of every random draw.
        artifacts: Folder for counterexamples, pictures and certificates; made when first needed.
    """

    settings: Settings
    device: str
    seed: int
    artifacts: Path | None


@pytest.fixture
def triguard() -> TriGuard:
    """Settings, device, seed and artifacts folder of the running test."""
    settings = current_settings()
    return TriGuard(
        settings=settings,
        device=settings.device or "cpu",
        seed=settings.seed,
        artifacts=settings.artifacts,
    )


@pytest.fixture(scope="session")
def triguard_device(pytestconfig: pytest.Config) -> str:
    """Device of --triguard-device or its ini twin, else cpu."""
    return pytestconfig.stash[RUNTIME].place().device or "cpu"


@pytest.fixture(scope="session")
def triguard_seed(pytestconfig: pytest.Config) -> int:
    """Seed of --triguard-seed or its ini twin, else 0."""
    return pytestconfig.stash[RUNTIME].settings.seed


@pytest.fixture(scope="session")
def triguard_classifier() -> Any:
    """Classifier under test; define a fixture of this name in your conftest.py."""
    _undefined("triguard_classifier", "Classifier(load_my_model(), bounds=(0.0, 1.0))")


@pytest.fixture(scope="session")
def triguard_data() -> Any:
    """Images and labels to test on; define a fixture of this name in your conftest.py."""
    _undefined("triguard_data", "load_my_images(), load_my_labels()")


def _undefined(name: str, value: str) -> NoReturn:
    pytest.fail(
        f"the fixture {name} is not defined: define a fixture of that name in conftest.py, such as"
        f'\n\n    @pytest.fixture(scope="session")\n    def {name}():\n        return {value}',
        pytrace=False,
    )
