"""The `triguard_*` keys of the ini file that pytest chose, with typos found.

The file is read here because pytest only warns about an unknown key, because a key that is
misspelt would silently change a gate, and because native TOML values keep their types.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_triguard.errors import ConfigError, nearest

if TYPE_CHECKING:
    import pytest

_PREFIX = "triguard"
_TYPO = 0.8


def ini_values(config: pytest.Config, known: Iterable[str]) -> dict[str, tuple[object, str, Path]]:
    """Return the keys that are set, each with its value, its source and the folder of its paths.

    Args:
        config: The configuration of the run.
        known: The keys there are.

    Raises:
        ConfigError: If a key is unknown.
    """
    known = sorted(known)
    path = config.inipath
    folder = path.parent if path is not None else config.invocation_params.dir
    found: dict[str, tuple[object, str, Path]] = {}
    for label, values in ((str(path), _section(path)), ("-o", _overrides(config))):
        for key, value in values.items():
            if key in known:
                found[key] = value, f"{label}: {key}" if label != "-o" else f"-o {key}", folder
            elif _is_meant_for_us(key):
                raise ConfigError(
                    f"{label}: unknown key {key!r}{nearest(key, known)} (known: {', '.join(known)})"
                )
    return found


def _is_meant_for_us(key: str) -> bool:
    """Return whether a key carries the prefix, or one so close to it that it is a typo."""
    key = key.lower()
    head = key.replace("-", "_").partition("_")[0]
    return key.startswith(_PREFIX) or bool(difflib.get_close_matches(head, [_PREFIX], cutoff=_TYPO))


def _overrides(config: pytest.Config) -> dict[str, str]:
    pairs = (text.partition("=") for text in config.getoption("override_ini", None) or ())
    return {key: value for key, _, value in pairs}


def _section(path: Path | None) -> Mapping[str, Any]:
    """Return pytest's section of a file that pytest has already accepted."""
    if path is None or not path.is_file():
        return {}
    if path.suffix == ".toml":
        return _toml_section(path)
    import iniconfig

    parsed = iniconfig.IniConfig(str(path))
    name = "tool:pytest" if path.suffix == ".cfg" else "pytest"
    return dict(parsed[name].items()) if name in parsed else {}


def _toml_section(path: Path) -> Mapping[str, Any]:
    import tomllib

    import pytest

    document = tomllib.loads(path.read_text(encoding="utf-8"))
    tool = document.get("tool", {}).get("pytest", {})
    if "ini_options" in tool:
        return dict(tool["ini_options"])
    if pytest.version_tuple < (9,):  # only later versions read native TOML tables
        return {}
    return dict(tool or ({} if path.name == "pyproject.toml" else document.get("pytest", {})))
