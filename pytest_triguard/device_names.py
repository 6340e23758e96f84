"""How a device is spelt: a type, or a type and an index. Imports no torch."""

from __future__ import annotations

import re

from pytest_triguard.errors import ConfigError

_NAME = re.compile(r"([a-z][a-z0-9_]*)(?::(0|[1-9][0-9]*))?")


def split(name: str) -> tuple[str, int | None]:
    """Return the type and the index of a device name, such as `("cuda", 1)` for `cuda:1`.

    Args:
        name: Device name; whether such a device exists is not judged here.

    Returns:
        The type, and the index or None where the name has none.

    Raises:
        ConfigError: If the name is not spelt like a device.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigError(
            f"{name!r} is not a device name: expected a type in lower case such as cpu or cuda, "
            "or a type and an index such as cuda:1"
        )
    kind, index = match.groups()
    return kind, None if index is None else int(index)


def parse(name: str) -> str:
    """Return a device name unchanged if it is spelt like one; a type for option parsers.

    Raises:
        ConfigError: If the name is not spelt like a device.
    """
    split(name)
    return name
