"""Families of methods: found by name, imported when asked for, wrong names answered with help."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from pytest_triguard import metrics
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.registry import Family

FAMILY = Family("thing", {"beta": "fractions:Fraction", "alpha": "tests.nowhere:Nothing"})


def refused(error, message):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def test_names_are_sorted():
    assert FAMILY.names() == ("alpha", "beta")


def test_a_method_is_made_with_its_hyperparameters():
    assert FAMILY.get("beta", numerator=3, denominator=4) * 4 == 3


def test_a_module_is_imported_only_when_its_method_is_asked_for():
    code = (
        "import sys; from pytest_triguard import attacks; "
        "assert 'pytest_triguard.attacks.pgd' not in sys.modules; attacks.get('pgd'); "
        "assert 'pytest_triguard.attacks.pgd' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_answered_with_the_nearest():
    with refused(InputError, "unknown thing 'bta'; did you mean 'beta'? (known: alpha, beta)"):
        FAMILY.get("bta")
    with refused(InputError, "unknown thing 'zzz' (known: alpha, beta)"):
        FAMILY.get("zzz")


def test_the_one_name_that_begins_so_is_nearer_than_one_that_looks_alike():
    with pytest.raises(InputError) as caught:
        metrics.get("topk")
    start = "unknown metric 'topk'; did you mean 'topk_intersection'? (known: "
    assert str(caught.value).startswith(start)


def test_a_name_must_be_a_string():
    with refused(InputTypeError, "the name of a thing must be a string, but 7 came"):
        FAMILY.get(7)


def test_an_unknown_hyperparameter_is_answered_with_the_nearest():
    with pytest.raises(InputError) as caught:
        FAMILY.get("beta", numerater=3)
    start = "thing 'beta' has no hyperparameter 'numerater'; did you mean 'numerator'? (known: num"
    assert str(caught.value).startswith(start)
