"""A family of methods: names to lazily imported classes."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from pytest_triguard.errors import InputError, InputTypeError, nearest, unknown_name
from pytest_triguard.validation import describe

Method = TypeVar("Method")


class Family(Generic[Method]):
    """Methods of one kind by name; a method's module is imported when it is first asked for.

    Args:
        kind: What the family holds, for messages, such as `attack`.
        table: Name to `package.module:Class`.
    """

    def __init__(self, kind: str, table: Mapping[str, str]) -> None:
        self._kind = kind
        self._table = dict(table)

    def names(self) -> tuple[str, ...]:
        """Return the names of the family, sorted."""
        return tuple(sorted(self._table))

    def find(self, name: str) -> type:
        """Return the class of the method of that name, which must be known."""
        module, _, attribute = self._table[name].partition(":")
        found: type = getattr(importlib.import_module(module), attribute)
        return found

    def get(self, name: str, **hyperparameters: Any) -> Method:
        """Return the method of that name with the given hyperparameters.

        Raises:
            InputTypeError: If `name` is no string.
            InputError: If the name or a hyperparameter is unknown, or a value is refused.
        """
        if not isinstance(name, str):
            article = "an" if self._kind[0] in "aeiou" else "a"
            raise InputTypeError(
                f"the name of {article} {self._kind} must be a string, but {describe(name)} came"
            )
        if name not in self._table:
            raise unknown_name(self._kind, name, self._table)
        factory: Any = self.find(name)
        # Reading a signature takes longer than making most methods.
        known = inspect.signature(factory).parameters if hyperparameters else {}
        for key in hyperparameters:
            if key not in known:
                raise InputError(
                    f"{self._kind} {name!r} has no hyperparameter {key!r}{nearest(key, known)} "
                    f"(known: {', '.join(known)})"
                )
        method: Method = factory(**hyperparameters)
        return method
