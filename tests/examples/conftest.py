"""Examples are run as a user would run them: in a copy, by a pytest of its own."""

import shutil
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
QUIET = "-p no:randomly -p no:rerunfailures -p no:timeout -p no:cacheprovider"
"""Plugins left out of those runs, so that they are the same wherever they are started."""


@pytest.fixture
def example(request, pytester, monkeypatch):
    """A copy of the example the module names; its trained networks are kept where it keeps them."""
    monkeypatch.setenv("PYTEST_ADDOPTS", QUIET)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two workers share what may be two cores
    folder = EXAMPLES / request.module.EXAMPLE
    shutil.copytree(folder, pytester.path, dirs_exist_ok=True)
    shutil.rmtree(pytester.path / ".cache", ignore_errors=True)
    (folder / ".cache").mkdir(exist_ok=True)
    (pytester.path / ".cache").symlink_to(folder / ".cache", target_is_directory=True)
    return pytester
