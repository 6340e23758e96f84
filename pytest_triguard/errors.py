"""What can go wrong, by name.

Every message names the argument, what came, and what was expected.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_triguard.record import Record


class TriGuardError(Exception):
    """Base class of every error raised on purpose, failed checks aside."""


class ConfigError(TriGuardError):
    """A wrong option, ini key, marker or report path; pytest ends with exit code 4."""


class InputError(TriGuardError, ValueError):
    """An argument of a check, or its data, has a wrong value."""


class InputTypeError(TriGuardError, TypeError):
    """An argument of a check, or its data, has a wrong type."""


class ModelError(TriGuardError, ValueError):
    """The module under test breaks what a classifier promises."""


class NotDifferentiable(ModelError):
    """The module computes its logits, and autograd refuses to go back through it."""


class TriGuardWarning(UserWarning):
    """Something the user should know, although the check went on."""


class TriGuardFailure(AssertionError):
    """A check whose gate failed, or could not decide.

    Attributes:
        record: What the check did and found.
    """

    # Tracebacks and reports begin with this name; the short one is where users import it from.
    __module__ = "pytest_triguard"

    def __init__(self, message: str, record: Record) -> None:
        super().__init__(message)
        self.record = record

    def __reduce__(self) -> tuple[type[TriGuardFailure], tuple[str, Record]]:
        return type(self), (str(self), self.record)


def first_line(error: Exception) -> str:
    """Return what an error says in one line; its type, where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint such as `; did you mean 'pgd'?`, or an empty string."""
    names = list(known)
    longer = [each for each in names if each.startswith(name)] if len(name) > 2 else []
    close = longer if len(longer) == 1 else difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Return the error for a name that is not in a table of names."""
    choices = sorted(known)
    hint = nearest(name, choices)
    return InputError(f"unknown {kind} {name!r}{hint} (known: {', '.join(choices)})")
