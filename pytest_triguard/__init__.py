"""Safety gates for image classifiers, as ordinary pytest tests.

Importing this package imports neither torch nor numpy nor captum: names are resolved on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_triguard.errors import TriGuardFailure as TriGuardFailure
    from pytest_triguard.record import Verdict as Verdict

__version__ = "0.1.0"

_HOMES = {
    "TriGuardFailure": "pytest_triguard.errors",
    "Verdict": "pytest_triguard.record",
}

__all__ = ["TriGuardFailure", "Verdict"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
