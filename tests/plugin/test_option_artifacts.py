"""--triguard-artifacts: where counterexamples go; made by the check that needs it."""

import pytest

PROBE = """
from pytest_triguard.settings import current_settings

def test_probe():
    with open("folder.txt", "w") as file:
        file.write(str(current_settings().artifacts))
"""


@pytest.fixture
def folder(project, run):
    def folder(*arguments):
        project.makepyfile(test_probe=PROBE)
        run(*arguments).assert_outcomes(passed=1)
        return (project.path / "folder.txt").read_text()

    return folder


def test_the_default_is_under_the_rootdir(folder, project):
    assert folder() == str(project.path / ".triguard" / "artifacts")
    assert not (project.path / ".triguard").exists()


def test_relative_to_where_pytest_was_called(folder, project):
    assert folder("--triguard-artifacts=deep/down") == str(project.path / "deep" / "down")
    assert not (project.path / "deep").exists()


def test_relative_to_the_ini_file(folder, project):
    project.makefile(".ini", pytest="[pytest]\ntriguard_artifacts = kept\n")
    assert folder() == str(project.path / "kept")


def test_a_file_in_the_way_is_refused(project, run):
    result = run("--triguard-artifacts=pytest.ini/deep")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: --triguard-artifacts: cannot make the folder *pytest.ini is not a folder"]
    )
