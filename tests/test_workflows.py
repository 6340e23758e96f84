"""The workflows type what the README tells a newcomer to type."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".github" / "workflows"
WORKFLOW = FOLDER / "tests.yml"

if not WORKFLOW.exists():
    pytest.skip("the source distribution has no workflows", allow_module_level=True)


def commands():
    lines = map(str.strip, WORKFLOW.read_text(encoding="utf-8").splitlines())
    return [line.removeprefix("run: ") for line in lines]


def test_unix_runs_the_test_command_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = re.search(r"<!-- test-command -->\n```shell\n(.+)\n```", readme)[1]
    assert command in commands()
    assert "bash .ci/run" in commands(), "which reads it from the README"


def test_windows_runs_its_form_of_the_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^On Windows, type `(.+\[test\].+)`", readme, re.MULTILINE)
    assert command in commands()
    assert command.endswith(r"Scripts\pytest -n 2")


@pytest.mark.parametrize("name", ["tests.yml", "nightly.yml"])
def test_a_workflow_may_read_and_nothing_else(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert re.search(r"^permissions:\n  contents: read\n\n", text, re.MULTILINE)
    assert text.count("permissions:") == 1
    assert "secrets." not in text
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")


def test_the_night_says_how_many_random_networks_and_which():
    """By the variables that the test of the verifier reads, and ten thousand unless told."""
    text = (FOLDER / "nightly.yml").read_text(encoding="utf-8")
    source = (ROOT / "tests" / "verification" / "test_soundness.py").read_text(encoding="utf-8")
    for name in re.findall(r'os\.environ\.get\("(TRIGUARD_\w+)"', source):
        assert re.search(rf"{name}[:=]", text)
    assert "|| '10000'" in text
    assert "pytest -m slow" in text
