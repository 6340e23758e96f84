"""Hypothesis is needed for the strategies alone, and its absence is told in one sentence."""

import doctest
import subprocess
import sys

import pytest_triguard
from pytest_triguard import strategies

WITHOUT = """
import sys
sys.modules["hypothesis"] = None
import pytest_triguard, pytest_triguard.plugin
for statement in (
    "import pytest_triguard.strategies",
    "from pytest_triguard import strategies",
    "from pytest_triguard.strategies import perturbations",
    "pytest_triguard.strategies",
):
    try:
        exec(statement)
    except ModuleNotFoundError as error:
        print(f"{error.name}|{error}")
from pytest_triguard import *
"""


def test_without_hypothesis_every_import_says_what_to_do_and_all_else_works():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == 4 * [
        "hypothesis|pytest_triguard.strategies needs hypothesis, which is not installed; install "
        'it with: python -m pip install "pytest-triguard[hypothesis]"'
    ]


def test_it_is_reached_from_the_package_but_is_no_name_of_every_install():
    assert pytest_triguard.strategies is strategies
    assert "strategies" not in pytest_triguard.__all__


def test_the_names_are_documented_and_their_examples_run():
    assert sorted(strategies.__all__) == strategies.__all__
    finder = doctest.DocTestFinder(recurse=False)
    runner = doctest.DocTestRunner()
    for name in strategies.__all__:
        subject = getattr(strategies, name)
        assert subject.__doc__
        for example in finder.find(subject, name):
            runner.run(example)
    assert runner.summarize(verbose=False).failed == 0
    assert runner.tries > 10
