"""The workflows type what the README tells a newcomer to type."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "tests.yml"

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


def test_the_workflow_may_read_and_nothing_else():
    text = WORKFLOW.read_text(encoding="utf-8")
    assert re.search(r"^permissions:\n  contents: read\n\n", text, re.MULTILINE)
    assert text.count("permissions:") == 1
    assert "secrets." not in text
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")
