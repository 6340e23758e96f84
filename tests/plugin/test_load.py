"""Loading the plugin is cheap, and a run that does not use it does not see it."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "captum", "scipy")
PROBE = f"""
import sys
import pytest

code = pytest.main(sys.argv[1:])
print("loaded:", [name for name in {HEAVY} if name in sys.modules])
sys.exit(code)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--help",),
        ("--markers",),
        ("--triguard-device=cpu", "--triguard-seed=3"),
        ("--fixtures", "--triguard-device=cuda"),
        ("--collect-only", "--triguard-device=cuda"),
    ],
)
def test_nothing_heavy_is_imported(project, arguments):
    project.makepyfile(test_idle="def test_idle(): pass")
    probe = project.makefile(".txt", probe=PROBE)
    done = subprocess.run(
        [sys.executable, str(probe), "-p", "no:randomly", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "loaded: []" in done.stdout


def test_a_run_without_checks_is_silent(project, run_apart):
    project.makepyfile(test_idle="def test_idle(): pass")
    used = run_apart("--junitxml=junit.xml")
    used.assert_outcomes(passed=1)
    lines = [line for line in used.outlines if not line.startswith("plugins:")]
    assert not [line for line in lines if "triguard" in line]
    assert used.errlines == []
    assert "triguard" not in (project.path / "junit.xml").read_text(encoding="utf-8")
    assert not (project.path / ".triguard").exists()


@pytest.mark.parametrize("name", ["triguard", "terminal", "junitxml", "cacheprovider", "xdist"])
def test_plugins_can_be_switched_off(project, run_apart, name):
    body = "pass" if name == "triguard" else "from checks import check; check()"
    project.makepyfile(test_gate=f"def test_gate(): {body}")
    result = run_apart("-p", f"no:{name}")
    assert result.ret == 0
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()


def test_it_works_where_plugins_are_named_one_by_one(project, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    project.makepyfile(test_gate="from checks import check\ndef test_gate(): check()")
    result = project.runpytest_subprocess("-p", "pytest_triguard.plugin", "-W", "error")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["1 check: 1 passed"])
