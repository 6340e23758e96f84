"""Command line options and their ini twins: read, validated once, and turned into `Settings`.

Options that change how a run works have an ini twin `triguard_NAME`; those for one run do not.
Values are checked here rather than by pytest, so that an error names the option or the key.
Nothing in this module imports torch.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pytest_triguard.errors import ConfigError, nearest
from pytest_triguard.settings import Settings

if TYPE_CHECKING:
    import pytest

LARGEST_SEED = 2**63 - 1
DEFAULT_ARTIFACTS = ".triguard/artifacts"

JUNIT = ("properties", "none")
"""Whether a test in the JUnit file has its numbers as properties. The schema that the xUnit plugin
of Jenkins holds a file against does not know properties of a test."""

_PREFIX = "--triguard-"
_OFF = frozenset({"none", "false", "off"})


def read_device(value: object) -> str:
    """Return a device name whose spelling is right; whether it exists is judged later.

    Raises:
        ValueError: If `value` is not spelt like a device.
    """
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a device name: use cpu, cuda, cuda:1 or mps, as text")
    from pytest_triguard import device_names

    try:
        return device_names.parse(value.strip())
    except ConfigError as error:
        raise ValueError(str(error)) from error


def read_seed(value: object) -> int:
    """Return a seed, a whole number from 0 to 2^63 - 1.

    Raises:
        ValueError: If `value` is anything else.
    """
    number = _whole(value)
    if number is None or not 0 <= number <= LARGEST_SEED:
        raise ValueError(f"{value!r} is not a seed: use a whole number from 0 to 2^63 - 1")
    return number


def read_count(value: object) -> int:
    """Return a number of samples or rows, a whole number of at least 1.

    Raises:
        ValueError: If `value` is anything else.
    """
    number = _whole(value)
    if number is None or number < 1:
        raise ValueError(f"{value!r} is not a count: use a whole number of at least 1")
    return number


def read_confidence(value: object) -> float | Literal[False]:
    """Return a two-sided confidence, or False where the sample claim is asked for.

    Raises:
        ValueError: If `value` is neither a number strictly between 0 and 1 nor a word for "off".
    """
    if value is False or (isinstance(value, str) and value.strip().lower() in _OFF):
        return False
    number = _number(value)
    if number is None or not 0.0 < number < 1.0:
        raise ValueError(
            f"{value!r} is not a confidence: use a number between 0 and 1, such as 0.95, "
            "or none to judge the given samples only"
        )
    return number


def read_junit(value: object) -> str:
    """Return what of a check the JUnit file has beside the failure.

    Raises:
        ValueError: If `value` is not one of the choices.
    """
    if value not in JUNIT:
        raise ValueError(f"{value!r} is not a choice: use {' or '.join(JUNIT)}")
    return str(value)


def read_path(value: object) -> str:
    """Return a path as text, with `~` expanded.

    Raises:
        ValueError: If `value` is not a path.
    """
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError(f"{value!r} is not a path")
    return os.path.expanduser(value.strip())


def _whole(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return int(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def read_folder(value: object) -> str | Literal[False]:
    """Return the path of a folder, or False where none is asked for.

    Raises:
        ValueError: If `value` is neither a path nor a word for "off".
    """
    if value is False or (isinstance(value, str) and value.strip().lower() in _OFF):
        return False
    return read_path(value)


class Option(NamedTuple):
    """One option of the command line, and its ini twin.

    Attributes:
        name: Last part of `--triguard-NAME` and, with underscores, of `triguard_NAME`.
        metavar: Placeholder of the value in `pytest --help`.
        help: What it does, with the default.
        read: Turns what the user wrote into a plain value, or raises `ValueError`.
        ini: Whether there is an ini twin.
    """

    name: str
    metavar: str
    help: str
    read: Callable[[object], Any]
    ini: bool = True

    @property
    def flag(self) -> str:
        """The option as the command line spells it."""
        return f"{_PREFIX}{self.name}"

    @property
    def key(self) -> str:
        """The option as the ini file spells it."""
        return f"triguard_{self.name.replace('-', '_')}"

    def from_command_line(self, text: str) -> Any:
        """Read a value of the command line; an error lists the valid choices."""
        try:
            return self.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error


OPTIONS = (
    Option(
        "device",
        "NAME",
        "device to run checks on: cpu, cuda, cuda:N, mps or another accelerator that torch knows; "
        "plain cuda under pytest-xdist spreads the workers over the visible devices "
        "(default: the device of the model under test)",
        read_device,
    ),
    Option("seed", "N", "seed of every random draw (default: 0)", read_seed),
    Option(
        "samples",
        "N",
        "check a seeded random subset of N samples (default: all samples)",
        read_count,
    ),
    Option(
        "confidence",
        "P",
        "judge the population at this two-sided confidence, such as 0.95, or none for the given "
        "samples only (default: none)",
        read_confidence,
    ),
    Option("json", "PATH", "write a JSON report of all checks to PATH (default: none)", read_path),
    Option(
        "artifacts",
        "DIR",
        "folder for counterexamples, pictures and certificates, made when needed "
        f"(default: {DEFAULT_ARTIFACTS} under the rootdir)",
        read_path,
    ),
    Option(
        "junit",
        "WHAT",
        "give each test in the JUnit file the numbers of its checks as properties, or none where "
        "the file is validated strictly: properties or none (default: properties)",
        read_junit,
    ),
    Option(
        "baseline",
        "DIR",
        "compare every check with its baseline in this folder of JSON files, or none to compare "
        "with none (default: none)",
        read_folder,
    ),
    Option(
        "chunk",
        "N",
        "rows per forward pass, to repeat a run exactly (default: the fastest, found by timing)",
        read_count,
        ini=False,
    ),
    Option(
        "min-checks",
        "N",
        "fail the run if fewer than N checks decided, that is passed or failed (default: none)",
        read_count,
        ini=False,
    ),
)
FLAGS = {
    "update": "write the baselines of the checks whose thresholds hold instead of comparing with "
    "them; others stay as they are; refused where the environment variable CI is set",
    "update-force": "the same, also where the environment variable CI is set",
}
"""Options without a value and without an ini twin, as they decide what is committed."""

BY_KEY = {option.key: option for option in OPTIONS if option.ini}


def add_options(parser: pytest.Parser) -> None:
    """Register the options and their ini twins."""
    group = parser.getgroup("triguard", "triguard: safety gates for image classifiers")
    for option in OPTIONS:
        group.addoption(
            option.flag,
            dest=option.key,
            metavar=option.metavar,
            help=option.help,
            type=option.from_command_line,
            default=None,
        )
    for name, text in FLAGS.items():
        group.addoption(f"{_PREFIX}{name}", dest=_dest(name), action="store_true", help=text)
    for option in OPTIONS:
        if option.ini:
            parser.addini(option.key, f"{option.help}; same as {option.flag}", default=None)


def check_spelling(parser: pytest.Parser, args: Sequence[str]) -> None:
    """Refuse options that begin like ours and that nobody knows, with the nearest name.

    Args:
        parser: The parser, when every plugin and conftest.py has added its options.
        args: The command line, that of the ini file included.

    Raises:
        ConfigError: If there is one.
    """
    if not any(each.startswith(_PREFIX) for each in args):
        return
    known = [*(option.name for option in OPTIONS), *FLAGS]
    for each in parser.parse_known_and_unknown_args(args)[1]:
        if each.startswith(_PREFIX):
            name = each.removeprefix(_PREFIX).partition("=")[0]
            hint = nearest(name, known).replace(" '", f" '{_PREFIX}")
            raise ConfigError(f"unknown option {_PREFIX}{name}{hint}")


def _dest(name: str) -> str:
    return f"triguard_{name.replace('-', '_')}"


class Given(NamedTuple):
    """A value that was asked for.

    Attributes:
        value: The plain value, read and checked.
        source: Where it was asked for, as an error names it.
        folder: What a relative path is relative to.
    """

    value: Any
    source: str
    folder: Path

    @property
    def path(self) -> Path:
        """The value as an absolute path."""
        return Path(os.path.abspath(self.folder / self.value))


def given_options(config: pytest.Config) -> dict[str, Given]:
    """Return what the command line and the ini file ask for, by name of the option.

    The command line wins over `-o key=value`, which wins over the ini file.

    Raises:
        ConfigError: If the ini file has an unknown key or a wrong value.
    """
    given: dict[str, Given] = {}
    if config.inipath is not None or config.getoption("override_ini", None):
        from pytest_triguard.inifile import ini_values

        for key, (value, source, folder) in ini_values(config, BY_KEY).items():
            given[BY_KEY[key].name] = Given(_read(BY_KEY[key], value, source), source, folder)
    for option in OPTIONS:
        value = config.getoption(option.key, None)
        if value is not None:
            given[option.name] = Given(value, option.flag, config.invocation_params.dir)
    for name in FLAGS:
        if config.getoption(_dest(name), False):
            given[name] = Given(True, f"{_PREFIX}{name}", config.invocation_params.dir)
    return given


def _read(option: Option, value: object, source: str) -> Any:
    try:
        return option.read(value)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error


def settings_from(given: Mapping[str, Given], rootdir: Path) -> Settings:
    """Return the settings of a session, before any marker.

    Args:
        given: What was asked for, by name of the option.
        rootdir: Folder that holds the default folder for artifacts.
    """
    values = {name: each.value for name, each in given.items()}
    baseline = given.get("baseline")
    return Settings(
        device=values.get("device"),
        seed=values.get("seed", 0),
        samples=values.get("samples"),
        confidence=values.get("confidence") or None,
        chunk=values.get("chunk"),
        artifacts=given["artifacts"].path if "artifacts" in given else rootdir / DEFAULT_ARTIFACTS,
        json=given["json"].path if "json" in given else None,
        baseline=baseline.path if baseline is not None and baseline.value else None,
        update=any(name in given for name in FLAGS),
    )


def check_paths(given: Mapping[str, Given]) -> None:
    """Check that the report and the artifacts can be written; leave nothing behind.

    Raises:
        ConfigError: If a path cannot be written.
    """
    if "json" in given:
        _check_file(given["json"])
    if "artifacts" in given:
        _check_folder(given["artifacts"].path, given["artifacts"].source)


def check_baselines(given: Mapping[str, Given], typed: Collection[str]) -> None:
    """Check that the baselines can be read and, where they are to be updated, written.

    Args:
        given: What was asked for, by name of the option.
        typed: The arguments of the command line itself.

    Raises:
        ConfigError: If a file in the folder is no baseline, or they must not be updated.
    """
    update = next((given[name] for name in FLAGS if name in given), None)
    if update is not None and update.source not in typed:
        raise ConfigError(
            f"{update.source} must be typed on the command line, for a gate that always updates "
            "its baseline compares with nothing: remove it from addopts"
        )
    if "baseline" not in given or not given["baseline"].value:
        if update is not None:
            raise ConfigError(
                f"{update.source} needs a folder to write to: --triguard-baseline=DIR or the ini "
                "key triguard_baseline"
            )
        return
    if update is not None:
        if os.environ.get("CI") and "update-force" not in given:
            raise ConfigError(
                f"{update.source} is refused where the environment variable CI is set, for a gate "
                "must not move its own baseline: update it where you can review the change, or "
                "use --triguard-update-force"
            )
        _check_folder(given["baseline"].path, given["baseline"].source)
    from pytest_triguard.baseline import check_folder

    try:
        check_folder(given["baseline"].path)
    except ConfigError as error:
        raise ConfigError(f"{given['baseline'].source}: {error}") from error


def _check_file(given: Given) -> None:
    path, source = given.path, given.source
    if path.is_dir():
        raise ConfigError(f"{source}: {path} is a folder, expected the path of a file")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{source}: {path} is not a regular file, so it cannot be replaced")
    _check_folder(path.parent, source)


def _check_folder(path: Path, source: str) -> None:
    """Check that a folder can be written to, or made."""
    existing = path
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise ConfigError(f"{source}: cannot make the folder {path}: {existing} is not a folder")
    _check_writable(existing, source)


def _check_writable(folder: Path, source: str) -> None:
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{source}: cannot write into {folder}: {reason}") from error
