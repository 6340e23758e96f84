"""The tutorial, followed to the letter in an empty folder.

Blocks with a caption are files, `shell` blocks are typed, and the `text` block after them is what
a reader will see. Only the environment is not made: the tests run in one already.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, fences

PAGE = DOCS / "tutorial.md"
FOLDER = "/home/you/gate"
TOLERANCE = 0.08
"""How far a measured rate may lie from the one that is shown: training differs by platform."""

pytest.importorskip("sklearn")

ON_CI = ("CI", "BUILD_NUMBER")
"""Where one of these is set, pytest prints more than it does at home."""

NUMBER = re.compile(r"\d+(?:\.\d+)?")
RATE = re.compile(r"(?<![\w.+-])[01]\.\d{3}\b")
VERDICTS = ("passed", "failed", "inconclusive")


def plain(line):
    """Return a line with its numbers, and what depends on their width, blurred."""
    return re.sub(r"([ =_-])\1*", r"\1", NUMBER.sub("#", line)).strip(" =_")


def environment(folder):
    """Return the variables of a shell in which the environment of this run is active."""
    binaries = Path(sys.executable).parent
    at_home = {name: value for name, value in os.environ.items() if name not in ON_CI}
    return at_home | {
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "PYTEST_ADDOPTS": "-p no:randomly -p no:cacheprovider",
        "PYTHONDONTWRITEBYTECODE": "1",  # a file that is rewritten within a second is read anew
        "COLUMNS": "80",
        "HOME": str(folder),
    }


def type_in(command, folder):
    """Run one line of a shell; return its exit code and what it printed."""
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    return done.returncode, done.stdout.replace(str(folder), FOLDER)


def compare(shown, printed):
    """Fail unless the lines that are shown came out, in their order, and the rates are near."""
    rest = iter(printed.splitlines())
    for line in shown.splitlines():
        if not line.strip() or line == "...":
            continue
        match = next((each for each in rest if plain(each) == plain(line)), None)
        assert match is not None, f"the page shows {line!r}, which did not come out:\n{printed}"
        if line.strip().endswith(VERDICTS):
            expected, came = (list(map(float, RATE.findall(each))) for each in (line, match))
            assert came == pytest.approx(expected, abs=TOLERANCE), (line, match)


def is_installation(command):
    return command.startswith(("python3 -m venv", ". .venv", "pip install"))


@pytest.mark.slow
def test_following_the_tutorial_shows_what_it_shows(tmp_path):
    folder = tmp_path / "gate"
    folder.mkdir()
    blocks = [*fences(PAGE), None]
    typed = 0
    for block, following in pairwise(blocks):
        if block.caption:
            (folder / block.caption).write_text(block.text, encoding="utf-8")
        elif block.language == "shell":
            shown = following.text if following and following.language == "text" else ""
            commands = [each for each in block.text.splitlines() if not is_installation(each)]
            for command in commands:
                code, printed = type_in(command, folder)
                red = command == commands[-1] and re.search(r"\d failed", shown) is not None
                assert code == int(red), f"line {block.line}: {command}\n{printed}"
                typed += 1
            if shown:
                compare(shown, printed)
    assert typed == 6


def test_the_tutorial_names_the_packages_it_needs():
    command = next(
        line
        for block in fences(PAGE)
        if block.language == "shell"
        for line in block.text.splitlines()
        if line.startswith("pip install")
    )
    packages = command.removeprefix("pip install ").split()
    assert packages[0] == "pytest-triguard"
    imported = {
        line.split()[1].partition(".")[0]
        for block in fences(PAGE)
        if block.caption
        for line in block.text.splitlines()
        if line.startswith(("import ", "from "))
    }
    needed = {name for name in imported if name not in sys.stdlib_module_names} - {"model"}
    brought = {"pytest", "torch", "pytest_triguard"}
    others = {"sklearn" if each == "scikit-learn" else each for each in packages[1:]}
    assert needed - brought == others
    for package in packages:
        assert metadata.version(package)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("3 checks: 3 passed", "3 checks: 2 passed, 1 failed"),
        ("a\nb", "b\na"),
        ("  accuracy 0.924 >= 0.87 passed", "  accuracy 0.824 >= 0.87 passed"),
        ("E   counts  231 not falsified", "E   counts  231 proven"),
    ],
)
def test_an_output_that_is_another_is_noticed(shown, printed):
    with pytest.raises(AssertionError):
        compare(shown, printed)
