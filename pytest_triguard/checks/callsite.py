"""The user's line: checks are told apart by it, and errors about arguments point at it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import ParamSpec, TypeVar

from pytest_triguard.errors import TriGuardError
from pytest_triguard.settings import Site

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_PACKAGE = f"{Path(__file__).parent.parent}{os.sep}"


def call_site() -> Site:
    """Return where the first frame outside this package is."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    code, place = frame.f_code, frame.f_lasti // 2
    # The instruction itself varies with how the interpreter makes the call; its place does not.
    line, _, column, _ = next(islice(code.co_positions(), place, None))
    return code.co_filename, frame.f_lineno if line is None else line, column


def points_at_caller(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let errors that are raised on purpose end at the line of the caller.

    They say in their message what is wrong with the call; where in this package that was found
    out helps nobody who reads them.
    """

    @wraps(function)
    def called(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        __tracebackhide__ = True
        try:
            return function(*args, **kwargs)
        except TriGuardError as error:
            raise error.with_traceback(None)  # noqa: B904 - it is the same error

    return called
