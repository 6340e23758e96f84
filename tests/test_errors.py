"""Errors can be caught as what they are, copied between processes, and hint at what was meant."""

import copy
import pickle

import pytest

import pytest_triguard
from pytest_triguard.errors import (
    InputError,
    InputTypeError,
    ModelError,
    TriGuardError,
    TriGuardFailure,
    first_line,
    nearest,
    unknown_name,
)
from tests.test_record import record


@pytest.mark.parametrize(
    ("error", "builtin"),
    [(InputError, ValueError), (InputTypeError, TypeError), (ModelError, ValueError)],
)
def test_an_error_is_the_builtin_one_too(error, builtin):
    assert issubclass(error, builtin)
    assert issubclass(error, TriGuardError)


def test_a_failed_check_is_a_failed_assertion_and_no_error():
    assert issubclass(TriGuardFailure, AssertionError)
    assert not issubclass(TriGuardFailure, TriGuardError)


def pickled(failure):
    return pickle.loads(pickle.dumps(failure))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_a_failure_takes_its_record_along(copied):
    failure = TriGuardFailure("robust accuracy 0.5\n  judged", record())
    found = copied(failure)
    assert type(found) is TriGuardFailure
    assert str(found) == str(failure)
    assert found.record == failure.record


def test_a_failure_is_shown_by_the_name_it_is_imported_by():
    shown = f"{TriGuardFailure.__module__}.{TriGuardFailure.__qualname__}"
    assert shown == "pytest_triguard.TriGuardFailure"
    assert pytest_triguard.TriGuardFailure is TriGuardFailure


def test_hints_are_given_for_what_is_near_alone():
    assert nearest("pdg", ["fgsm", "pgd"]) == "; did you mean 'pgd'?"
    assert nearest("square", ["fgsm", "pgd"]) == ""


def test_an_unknown_name_is_answered_with_the_known_ones():
    error = unknown_name("attack", "pdg", ["pgd", "bim"])
    assert isinstance(error, InputError)
    assert str(error) == "unknown attack 'pdg'; did you mean 'pgd'? (known: bim, pgd)"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n expected\n something else"), "expected"),
        (ValueError("one"), "one"),
        (NotImplementedError(), "NotImplementedError"),
    ],
)
def test_an_error_is_told_in_one_line(error, line):
    assert first_line(error) == line
