"""The command of a failed check runs the same test again, from where pytest was called."""

import json
import os
import shlex
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="commands are quoted for a shell")

GATE = """
import pytest
from checks import check

def record():
    with open("{log}", "a") as file:
        print(__file__, file=file)

@pytest.mark.parametrize("case", ["a b's", 'x"$HOME`'])
def test_case(case):
    record()
    check(value=0.5)

class TestClass:
    @pytest.mark.xdist_group("first")
    @pytest.mark.xdist_group("second")
    def test_method(self):
        record()
        check(value=0.5)
"""


@pytest.fixture
def gate(project):
    text = GATE.format(log=project.path / "ran.txt")
    folder = project.path / "sub folder" / "tests"
    folder.mkdir(parents=True)
    (folder / "test_gate.py").write_text(text)
    (folder / "conftest.py").write_text(f"import sys\nsys.path.insert(0, {str(project.path)!r})\n")
    return project


def commands(folder):
    """Return the commands of the last run, by the node id of the test."""
    report = json.loads((folder / "report.json").read_text())
    return {each["nodeid"]: each["reproduce"] for each in report["checks"]}


def rerun(project, command):
    """Run a command through the shell and return the node ids of the checks that it made."""
    assert command.startswith(("pytest ", "python -m pytest "))
    program = f"{shlex.quote(sys.executable)} -m pytest -p no:randomly --triguard-json=report.json"
    log = project.path / "ran.txt"
    log.unlink(missing_ok=True)
    project.run("sh", "-c", f"{program} {command.partition('pytest ')[2]}")
    assert len(log.read_text().splitlines()) == 1, "one test has run"
    return list(commands(Path.cwd()))


def check_all(project):
    """Run every command of a report again; each runs its own test and nothing else."""
    found = commands(Path.cwd())
    assert len(found) == 3
    for nodeid, command in found.items():
        assert rerun(project, command) == [nodeid], command


def test_from_the_rootdir(gate, run):
    run("--triguard-json=report.json")
    check_all(gate)


def test_from_another_folder(gate, run, monkeypatch):
    monkeypatch.chdir(gate.path / "sub folder")
    run("--triguard-json=report.json", "tests")
    check_all(gate)


def test_with_groups_on_workers(gate, run_apart):
    pytest.importorskip("xdist")
    run_apart("--triguard-json=report.json", "-n", "2", "--dist", "loadgroup")
    found = commands(gate.path)
    method = [nodeid for nodeid in found if nodeid.endswith("test_method")]
    assert method == ["sub folder/tests/test_gate.py::TestClass::test_method"]
    assert rerun(gate, found[method[0]]) == method


@pytest.fixture
def command(project, run):
    """Return the command for the one test of a project after a run with some arguments."""

    def command(*arguments, runner=run):
        if not (project.path / "test_gate.py").exists():
            project.makepyfile(
                test_gate="from checks import check\ndef test_gate(): check(value=0.5)"
            )
        runner("--triguard-json=report.json", *arguments)
        (found,) = commands(project.path).values()
        return found.partition("pytest ")[2]

    return command


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "--triguard-seed=0"),
        (("--triguard-device=cpu",), "--triguard-device=cpu --triguard-seed=0"),
        (("--triguard-seed=7",), "--triguard-seed=7"),
        (("--triguard-samples=9",), "--triguard-seed=0 --triguard-samples=9"),
        (("--triguard-confidence=0.9",), "--triguard-seed=0 --triguard-confidence=0.9"),
        (("--triguard-confidence=none",), "--triguard-seed=0 --triguard-confidence=none"),
        (("--triguard-chunk=3",), "--triguard-seed=0 --triguard-chunk=3"),
        (("-c", "pytest.ini"), "--triguard-seed=0 -c pytest.ini"),
        (("--rootdir=.",), "--triguard-seed=0 --rootdir=."),
        (("-o", "triguard_samples=8"), "--triguard-seed=0 -o triguard_samples=8"),
        (("-p", "colorsys"), "--triguard-seed=0 -p colorsys"),
        (("-W", "ignore::UserWarning"), "--triguard-seed=0 -W ignore::UserWarning"),
        (("--import-mode=append",), "--triguard-seed=0 --import-mode=append"),
        (("--import-mode", "append", "test_gate.py"), "--triguard-seed=0 --import-mode append"),
        (("--runxfail", "test_gate.py"), "--triguard-seed=0 --runxfail"),
        (("-x", "-v", "--tb=no", "-k", "gate"), "--triguard-seed=0"),
    ],
)
def test_what_decides_is_carried_along(command, arguments, expected):
    assert command(*arguments) == f"test_gate.py::test_gate {expected}"


def test_a_worker_carries_the_same(command, run_apart):
    pytest.importorskip("xdist")
    arguments = ("--triguard-samples=9", "-o", "triguard_seed=4")
    assert command(*arguments, "-n", "2", runner=run_apart) == (
        "test_gate.py::test_gate --triguard-seed=4 --triguard-samples=9 -o triguard_seed=4"
    )


def test_a_doctest_is_found_again(project, run):
    project.makepyfile(
        library="""
        def it():
            '''
            >>> from checks import check
            >>> check(value=0.5)
            '''
        """
    )
    run("--triguard-json=report.json", "--doctest-modules", "library.py")
    (before,) = commands(project.path).items()
    (project.path / "report.json").unlink()
    run("--triguard-json=report.json", *shlex.split(before[1].partition("pytest ")[2]))
    assert list(commands(project.path).items()) == [before]


@pytest.mark.parametrize("form", [("--checkpoint=b c.pt",), ("--checkpoint", "b c.pt")])
def test_options_of_a_conftest_are_carried_along(project, command, form):
    project.makeconftest(
        """
        def pytest_addoption(parser):
            parser.addoption("--checkpoint", default="a.pt")
        """
    )
    words = shlex.split(command(*form))
    assert words[2:] == list(form)


def test_a_selection_that_replaces_that_of_the_ini_file_is_carried_along(project, command):
    project.makefile(".ini", pytest="[pytest]\naddopts = -m 'not slow'\nmarkers = slow: x\n")
    project.makepyfile(
        test_gate="""
        import pytest
        from checks import check

        @pytest.mark.slow
        def test_gate(): check(value=0.5)
        """
    )
    assert command("-m", "slow").endswith(" -m slow")


def test_what_the_ini_file_adds_comes_again_by_itself(project, command):
    project.makefile(
        ".ini",
        pytest="[pytest]\naddopts = --strict-markers -p colorsys -o triguard_seed=3 -m 'not slow'\n"
        "markers = slow: x\n",
    )
    assert command() == "test_gate.py::test_gate --triguard-seed=3"


def test_the_ini_file_is_named_where_a_rerun_would_find_another(project, run):
    (project.path / "nested").mkdir()
    (project.path / "nested" / "tox.ini").write_text("[pytest]\n")
    (project.path / "nested" / "test_nested.py").write_text(
        "from checks import check\ndef test_nested(): check(value=0.5)\n"
    )
    (project.path / "conftest.py").write_text("")
    run("--triguard-json=report.json")
    (found,) = commands(project.path).values()
    assert found.endswith("nested/test_nested.py::test_nested --triguard-seed=0 -c pytest.ini")


def test_the_rootdir_is_named_where_a_rerun_would_find_another(project, run):
    other = project.path.parent / f"{project.path.name}-other"
    (other / "deep").mkdir(parents=True)
    (other / "conftest.py").write_text("")
    (other / "deep" / "test_deep.py").write_text(
        f"import sys\nsys.path.insert(0, {str(project.path)!r})\n"
        "from checks import check\ndef test_deep(): check(value=0.5)\n"
    )
    run("--triguard-json=report.json", f"--rootdir={other}", "-c", os.devnull, str(other))
    (found,) = commands(project.path).values()
    assert f"--rootdir={other}" in found


def test_it_is_not_made_before_it_is_asked_for(project, run, monkeypatch):
    from pytest_triguard.reproduce import Reproducer

    def refuse(*_):
        raise AssertionError("made")

    monkeypatch.setattr(Reproducer, "command", refuse)
    project.makepyfile(test_idle="def test_idle(): pass")
    run().assert_outcomes(passed=1)
