"""--triguard-json: a report that is written whole or not at all, or refused before any test."""

import json
import os
import subprocess
import sys
from datetime import datetime

import pytest

from pytest_triguard.record import Record


@pytest.fixture
def gate(project):
    project.makepyfile(
        test_gate="""
        from checks import check

        def test_passes(): check()
        def test_fails(): check(value=0.5)
        def test_idle(): open("ran.txt", "w").close()
        """
    )
    return project


def read(folder, name="report.json"):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_schema(gate, run):
    assert run("--triguard-json=report.json", "--triguard-seed=3").ret == 1
    report = read(gate.path)
    assert list(report) == ["schema_version", "run", "checks", "comparisons"]
    assert report["schema_version"] == 1
    about = report["run"]
    assert set(about) == {"device", "seed", "versions", "commit", "started", "seconds"}
    assert (about["device"], about["seed"]) == ("cpu", 3)
    assert {"python", "pytest", "pytest-triguard", "torch"} <= set(about["versions"])
    assert datetime.fromisoformat(about["started"]).tzinfo is not None
    assert about["seconds"] > 0
    passed, failed = report["checks"]
    assert passed["nodeid"] == "test_gate.py::test_passes"
    assert (passed["verdict"], failed["verdict"]) == ("passed", "failed")
    # What a baseline keeps of every sample stays out of the report.
    assert Record.from_dict(passed).to_dict() == passed | {"per_sample": None}
    assert "per_sample" not in passed


def test_a_run_without_checks_leaves_an_empty_list(project, run):
    project.makepyfile(test_idle="def test_idle(): pass")
    run("--triguard-json=report.json")
    report = read(project.path)
    assert (report["checks"], report["run"]["device"]) == ([], None)


def test_the_commit_is_stated(gate, run):
    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        gate.run("git", *command)
    head = gate.run("git", "rev-parse", "HEAD").outlines[0]
    run("--triguard-json=report.json")
    assert read(gate.path)["run"]["commit"] == head


def test_without_git_there_is_no_commit(gate, run, monkeypatch):
    monkeypatch.setenv("PATH", "")
    result = run("--triguard-json=report.json")
    assert read(gate.path)["run"]["commit"] is None
    assert result.stderr.str() == ""


def test_the_path_is_relative_to_where_pytest_was_called(gate, run, monkeypatch):
    (gate.path / "sub").mkdir()
    monkeypatch.chdir(gate.path / "sub")
    run("--triguard-json=here.json", str(gate.path))
    assert (gate.path / "sub" / "here.json").exists()


def test_the_path_in_an_ini_file_is_relative_to_that_file(gate, run, monkeypatch):
    gate.makefile(".ini", pytest="[pytest]\ntriguard_json = report.json\n")
    (gate.path / "sub").mkdir()
    monkeypatch.chdir(gate.path / "sub")
    run(str(gate.path))
    assert (gate.path / "report.json").exists()


def test_the_path_may_begin_with_a_tilde(gate, run, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    run("--triguard-json=~/report.json")
    assert (tmp_path / "report.json").exists()


def test_an_earlier_report_is_replaced_and_nothing_else_is_left(gate, run):
    (gate.path / "report.json").write_text("old")
    before = {path.name for path in gate.path.iterdir()}
    run("--triguard-json=report.json", "-p", "no:cacheprovider")
    after = {path.name for path in gate.path.iterdir()} - {"__pycache__"}
    assert after - before == {"ran.txt"}
    assert read(gate.path)["checks"]


def test_missing_folders_are_made(gate, run):
    run("--triguard-json=new/deeper/report.json")
    assert read(gate.path / "new" / "deeper")["checks"]


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("pytest.ini/report.json", "pytest.ini is not a folder"),
        ("folder", "is a folder, expected the path of a file"),
        (os.devnull, "is not a regular file"),
    ],
)
@pytest.mark.parametrize("source", ["option", "ini"])
def test_a_path_that_cannot_be_written_is_refused(gate, run, path, problem, source):
    (gate.path / "folder").mkdir()
    arguments = [f"--triguard-json={path}"]
    name = "--triguard-json"
    if source == "ini":
        gate.makefile(".ini", pytest=f"[pytest]\ntriguard_json = {path}\n")
        arguments, name = [], "pytest.ini: triguard_json"
    before = sorted(gate.path.rglob("*"))
    result = run(*arguments, "-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *{name}: *{problem}*"])
    assert sorted(gate.path.rglob("*")) == before


def test_a_folder_that_refuses_files_is_refused(gate, run, monkeypatch):
    import tempfile

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    result = run("--triguard-json=report.json", "-p", "no:faulthandler", "-s")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --triguard-json: cannot write into *: Permission denied"])


def test_a_refusal_is_told_once(gate, run_apart, mode):
    result = run_apart("--triguard-json=pytest.ini/report.json", *mode)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert len([line for line in result.errlines if line]) == 1
    assert not (gate.path / "ran.txt").exists()


def test_a_report_that_is_lost_at_the_end_turns_a_good_run_bad(project, run):
    project.makepyfile(
        test_gate="""
        import shutil
        from checks import check

        def test_gate():
            check()
            shutil.rmtree("out")
            open("out", "w").close()
        """
    )
    (project.path / "out").mkdir()
    result = run("--triguard-json=out/report.json")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines(["triguard: the JSON report is lost: *", "*1 passed*"])


def test_a_usage_error_leaves_no_report(project, run):
    project.makepyfile(
        test_gate="""
        import pytest

        @pytest.mark.triguard(sample=3)
        def test_gate(): pass
        """
    )
    assert run("--triguard-json=report.json").ret == pytest.ExitCode.USAGE_ERROR
    assert not (project.path / "report.json").exists()


@pytest.mark.parametrize(
    "looking", ["--collect-only", "--cache-show", "--setup-plan", "--setup-only", "--fixtures"]
)
def test_looking_around_leaves_the_report_of_the_last_run(gate, run, looking):
    report = gate.path / "report.json"
    report.write_text("of the last run")
    assert run("--triguard-json=report.json", "--triguard-min-checks=9", looking).ret == 0
    assert report.read_text() == "of the last run"


def test_a_link_stays_a_link(gate, run):
    (gate.path / "link.json").symlink_to(gate.path / "target.json")
    run("--triguard-json=link.json")
    assert (gate.path / "link.json").is_symlink()
    assert read(gate.path, "target.json")["checks"]


ANOTHER = """
import subprocess, sys
from checks import check

def test_gate():
    check("ours")

def test_another_run():
    {meanwhile}
"""


def test_another_run_that_wrote_the_report_meanwhile_keeps_it(project, run, mode):
    (project.path / "report.json").write_text("old")
    (project.path / "report-2.json").write_text("kept")
    (project.path / "other").mkdir()
    (project.path / "other" / "test_other.py").write_text(
        "from checks import check\ndef test_gate(): check('theirs')\n"
    )
    meanwhile = (
        "command = [sys.executable, '-m', 'pytest', '-q', 'other', '--triguard-json=report.json']; "
        "assert subprocess.run(command).returncode == 0"
    )
    project.makepyfile(test_gate=ANOTHER.format(meanwhile=meanwhile))
    result = run("--triguard-json=report.json", *mode, "test_gate.py")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    theirs, ours = project.path / "report.json", project.path / "report-3.json"
    result.stdout.fnmatch_lines(
        [
            f"- generated JSON report: {ours} -",
            f"triguard: another run has written {theirs} meanwhile, so the JSON report of this one "
            f"is {ours}",
        ]
    )
    names = [read(project.path, path.name)["checks"][0]["name"] for path in (theirs, ours)]
    assert names == ["theirs", "ours"]
    assert (project.path / "report-2.json").read_text() == "kept"


@pytest.mark.parametrize("code", [0, 1])
def test_a_report_that_was_written_meanwhile_does_not_hide_a_failure(project, run, code):
    project.makepyfile(
        test_gate=ANOTHER.format(meanwhile=f"open('report.json', 'w').close(); assert {code} == 0")
    )
    expected = pytest.ExitCode.TESTS_FAILED if code else pytest.ExitCode.INTERNAL_ERROR
    assert run("--triguard-json=report.json").ret == expected
    assert read(project.path, "report-2.json")["checks"]


def test_a_report_that_was_removed_meanwhile_is_written(project, run):
    (project.path / "report.json").write_text("old")
    project.makepyfile(test_gate=ANOTHER.format(meanwhile="import os; os.remove('report.json')"))
    assert run("--triguard-json=report.json").ret == 0
    assert read(project.path)["checks"]


def test_runs_that_end_at_once_lose_nothing(project):
    """Four runs write one report; each report is somewhere, and whole."""
    project.makepyfile(
        test_gate="""
        import os
        from checks import check
        def test_gate(): check(os.environ["RUN"])
        """
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
    started = [
        subprocess.Popen(
            [*command, "--triguard-json=report.json"],
            cwd=project.path,
            env=os.environ | {"RUN": f"run {number}"},
            stdout=subprocess.DEVNULL,
        )
        for number in range(4)
    ]
    codes = [process.wait() for process in started]
    reports = [read(project.path, path.name) for path in project.path.glob("*.json")]
    names = {each["checks"][0]["name"] for each in reports}
    assert names <= {f"run {number}" for number in range(4)}
    assert len(reports) == len(names) == 1 + codes.count(pytest.ExitCode.INTERNAL_ERROR)
    assert list(project.path.glob(".*.tmp")) == []
