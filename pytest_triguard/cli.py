"""The command line beside pytest: `python -m pytest_triguard COMMAND`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TextIO

from pytest_triguard.errors import nearest
from pytest_triguard.listing import FAMILIES, Listed, methods
from pytest_triguard.reporting import wrapped

_TITLES = ("name", "passes", "sign", "axioms", "source", "checked against")


def main(arguments: Sequence[str], output: TextIO) -> int:
    """Run a command.

    Args:
        arguments: What the user typed behind the name of the program.
        output: Where the result goes.

    Returns:
        The exit code, 0; 1 where nobody reads the output to its end.

    Raises:
        SystemExit: With code 2 and a message on standard error, if an argument is wrong; with code
            0 after `--help`.
    """
    given = _parser().parse_args(arguments)
    families = [given.family] if given.family else list(FAMILIES)
    listed = [each for family in families for each in methods(family)]
    lines = _as_json(listed) if given.json else _as_text(listed, shutil.get_terminal_size().columns)
    try:
        output.writelines(f"{line}\n" for line in lines)
        output.flush()
    except BrokenPipeError:  # what is still buffered must not fail once more at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pytest_triguard", description="What pytest-triguard has to offer."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    command = commands.add_parser(
        "methods",
        help="list every method with its cost, sign, axioms and source",
        description="List every method: passes per sample with default hyperparameters, sign, "
        "axioms, source, and the independent implementation it is tested against.",
    )
    command.add_argument(
        "--family", metavar="NAME", type=_family, help=f"only one of {', '.join(FAMILIES)}"
    )
    command.add_argument("--json", action="store_true", help="as JSON, with full references")
    return parser


def _family(name: str) -> str:
    if name not in FAMILIES:
        raise argparse.ArgumentTypeError(
            f"unknown family {name!r}{nearest(name, FAMILIES)} (known: {', '.join(FAMILIES)})"
        )
    return name


def _as_json(listed: Sequence[Listed]) -> Iterator[str]:
    yield json.dumps([asdict(each) for each in listed], indent=2)


def _as_text(listed: Sequence[Listed], width: int) -> Iterator[str]:
    families = dict.fromkeys(each.family for each in listed)
    for place, family in enumerate(families):
        if place:
            yield ""
        yield family
        yield "-" * len(family)
        rows = [_row(each) for each in listed if each.family == family]
        yield from wrapped.table(_TITLES, rows, width)


def _row(method: Listed) -> list[str]:
    return [
        method.name,
        method.cost,
        method.sign,
        ", ".join(method.axioms),
        method.source or "this project",
        method.checked or "no",
    ]
