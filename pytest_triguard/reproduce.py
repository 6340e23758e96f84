"""The command that reruns one test: same test, same settings, from the folder pytest ran in.

Everything that the run took from the command line and that decides which test runs, with which
settings, is carried along; what comes from an ini file or the environment comes again by itself.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from pytest_triguard.settings import Settings

_INI_NAMES = (
    "pytest.toml",
    ".pytest.toml",
    "pytest.ini",
    ".pytest.ini",
    "pyproject.toml",
    "tox.ini",
    "setup.cfg",
)
_DECIDING = frozenset(
    {
        *("doctest_modules", "doctest_glob", "doctest_ignore_import_errors"),
        *("import_mode", "confcutdir", "noconftest", "runxfail"),
    }
)
"""Options of pytest itself without which a test may not be found, or end otherwise."""


def quote(argument: str) -> str:
    """Quote one argument for the shell of this platform."""
    if sys.platform == "win32":
        return subprocess.list2cmdline([argument])
    return shlex.quote(argument)


def plain_nodeid(item: pytest.Item) -> str:
    """Return the node id of a test without the `@group` that pytest-xdist may append."""
    parent = item.parent
    plain = item.nodeid if parent is None else f"{parent.nodeid}::{item.name}"
    return plain if item.nodeid.startswith(plain) else item.nodeid


@dataclass(kw_only=True)
class Reproducer:
    """Makes the commands of one run.

    Attributes:
        config: The configuration of the run.
        settings: The settings of the run, before any marker.
        known: Names of the options that were known before any conftest.py was read.
    """

    config: pytest.Config
    settings: Settings
    known: frozenset[str] = frozenset()
    _frame: tuple[str, str] | None = None
    _places: dict[Path, tuple[str, str]] = field(default_factory=dict)

    def command(self, item: pytest.Item) -> str:
        """Return the command that reruns a test, quoted for the shell."""
        if self._frame is None:
            words = [*self._settings(), *self._carried()]
            self._frame = self._program(), " ".join(map(quote, words))
        if item.path not in self._places:
            self._places[item.path] = (
                _relative(item.path, self.config.invocation_params.dir),
                "".join(f" {quote(each)}" for each in self._configuration(item.path)),
            )
        program, arguments = self._frame
        path, configuration = self._places[item.path]
        names = plain_nodeid(item).partition("::")[2]
        target = quote(f"{path}::{names}" if names else path)
        return f"{program} {target} {arguments}{configuration}"

    def _program(self) -> str:
        """Return `pytest`, or `python -m pytest` if that is what put the folder on the path."""
        workerinput = getattr(self.config, "workerinput", {})
        program = workerinput.get("mainargv", sys.argv)[0]
        return "python -m pytest" if Path(program).name == "__main__.py" else "pytest"

    def _settings(self) -> list[str]:
        device = self.settings.device
        shown = [] if device is None else [f"--triguard-device={device}"]
        shown.append(f"--triguard-seed={self.settings.seed}")
        for name in ("samples", "confidence", "chunk", "baseline"):
            value = self.config.getoption(f"triguard_{name}", None)
            if value is not None:
                shown.append(f"--triguard-{name}={'none' if value is False else value}")
        return shown

    def _carried(self) -> list[str]:
        """Return the other arguments that decide what runs."""
        option, typed = self.config.getoption, self._typed()
        carried: list[str] = []
        for name in option("plugins", None) or ():
            if not name.startswith("no:") and (name in typed or f"-p{name}" in typed):
                carried += ["-p", name]
        for text in option("override_ini", None) or ():  # pytest adds some of its own
            if any(word.endswith(text) for word in typed):
                carried += ["-o", text]
        for text in option("pythonwarnings", None) or ():
            if text in typed or f"-W{text}" in typed or f"--pythonwarnings={text}" in typed:
                carried += ["-W", text]
        standing = [
            *self.config.getini("addopts"),
            *shlex.split(os.environ.get("PYTEST_ADDOPTS", "")),
        ]
        for flag, dest in (("-m", "markexpr"), ("-k", "keyword")):
            carried += _overridden(flag, option(dest, ""), standing)
        return carried + self._options()

    def _options(self) -> list[str]:
        """Return the arguments for options that a conftest.py registered, and a few of pytest's."""
        custom = vars(self.config.option).keys() - self.known if self.known else set()
        places = set(self.config.getoption("file_or_dir", None) or ())
        carried: list[str] = []
        for argument, following in pairwise([*self._typed(), "-"]):
            name, equals, _ = argument.partition("=")
            if not name.startswith("--") or name[2:].replace("-", "_") not in custom | _DECIDING:
                continue
            carried.append(argument)
            if not equals and not following.startswith("-") and following not in places:
                carried.append(following)
        return carried

    def _typed(self) -> list[str]:
        """Return the arguments of the command line, as they were typed."""
        return [os.fspath(each) for each in self.config.invocation_params.args]

    def _configuration(self, path: Path) -> list[str]:
        """Return `-c` and `--rootdir` where they were given or a rerun would not find the same."""
        config = self.config
        given = config.getoption("inifilename", None)
        rootdir = config.getoption("rootdir", None)
        arguments = [f"--rootdir={rootdir}"] if rootdir else []
        folder = config.invocation_params.dir
        if given:
            return ["-c", str(given), *arguments]
        if config.inipath is not None:
            found = _finds(path, config.inipath)
            return arguments if found else ["-c", _relative(config.inipath, folder), *arguments]
        if not rootdir and config.rootpath not in (folder, *folder.parents):
            return [f"--rootdir={_relative(config.rootpath, folder)}"]
        return arguments


def _overridden(flag: str, value: str, standing: Sequence[str]) -> list[str]:
    """Return a selection that replaces the one of `addopts`, which would come again otherwise."""
    usual = [
        following if word == flag else word[len(flag) :]
        for word, following in pairwise([*standing, ""])
        if word.startswith(flag)
    ]
    return [flag, value] if usual and usual[-1] != value else []


def _finds(path: Path, inipath: Path) -> bool:
    """Return whether a search upwards from a test meets the ini file before any other."""
    if inipath.parent not in path.parents:
        return False
    between = path.parents[: path.parents.index(inipath.parent)]
    return not any((folder / name).is_file() for folder in between for name in _INI_NAMES)


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # Windows: another drive
        return path.as_posix()
