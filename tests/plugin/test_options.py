"""Every option: from the command line, from every kind of ini file, and which one wins."""

import pytest

PROBE = """
from pytest_triguard.settings import current_settings

def test_probe():
    with open("settings.txt", "w") as file:
        file.write(repr(getattr(current_settings(), {name!r})))
"""
VALUES = [
    ("device", "cpu", "'cpu'"),
    ("seed", "17", "17"),
    ("samples", "100", "100"),
    ("confidence", "0.9", "0.9"),
]
WRONG = [
    ("device", "Cuda:x"),
    ("device", ""),
    ("seed", "-1"),
    ("seed", "1.5"),
    ("seed", str(2**63)),
    ("samples", "0"),
    ("samples", "many"),
    ("confidence", "95"),
    ("confidence", "1"),
    ("confidence", "nan"),
    ("json", ""),
    ("artifacts", " "),
]


@pytest.fixture
def seen(project, run):
    """Return the value of a setting as a test of a run sees it."""

    def seen(name, *arguments):
        project.makepyfile(test_probe=PROBE.format(name=name))
        run(*arguments).assert_outcomes(passed=1)
        return (project.path / "settings.txt").read_text()

    return seen


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("device", "None"),
        ("seed", "0"),
        ("samples", "None"),
        ("confidence", "None"),
        ("chunk", "None"),
        ("json", "None"),
        ("budget", "None"),
        ("inconclusive", "'fail'"),
    ],
)
def test_defaults(seen, name, default):
    assert seen(name) == default


@pytest.mark.parametrize(("name", "text", "expected"), [*VALUES, ("chunk", "32", "32")])
def test_command_line(seen, name, text, expected):
    assert seen(name, f"--triguard-{name}={text}") == expected


@pytest.mark.parametrize(("name", "text", "expected"), VALUES)
def test_ini_file(seen, project, name, text, expected):
    project.makefile(".ini", pytest=f"[pytest]\ntriguard_{name} = {text}\n")
    assert seen(name) == expected


@pytest.mark.parametrize(("name", "text", "expected"), VALUES)
def test_setup_cfg(seen, project, name, text, expected):
    (project.path / "pytest.ini").unlink()
    project.makefile(".cfg", setup=f"[tool:pytest]\ntriguard_{name} = {text}\n")
    assert seen(name) == expected


@pytest.mark.parametrize(("name", "text", "expected"), VALUES)
@pytest.mark.parametrize("quoted", [True, False])
def test_pyproject_ini_options(seen, project, name, text, expected, quoted):
    (project.path / "pytest.ini").unlink()
    value = f'"{text}"' if quoted or name == "device" else text
    project.makepyprojecttoml(f"[tool.pytest.ini_options]\ntriguard_{name} = {value}\n")
    assert seen(name) == expected


@pytest.mark.skipif(pytest.version_tuple < (9,), reason="native TOML tables came with pytest 9")
@pytest.mark.parametrize(("name", "text", "expected"), VALUES)
@pytest.mark.parametrize("quoted", [True, False])
@pytest.mark.parametrize(
    ("file", "table"), [("pyproject.toml", "tool.pytest"), ("pytest.toml", "pytest")]
)
def test_native_toml(seen, project, name, text, expected, quoted, file, table):
    (project.path / "pytest.ini").unlink()
    value = f'"{text}"' if quoted or name == "device" else text
    (project.path / file).write_text(f"[{table}]\ntriguard_{name} = {value}\n")
    assert seen(name) == expected


def test_the_command_line_wins_over_an_override_and_that_over_the_ini_file(seen, project):
    project.makefile(".ini", pytest="[pytest]\ntriguard_seed = 1\n")
    assert seen("seed") == "1"
    assert seen("seed", "-o", "triguard_seed=2") == "2"
    assert seen("seed", "-o", "triguard_seed=2", "--triguard-seed=3") == "3"


@pytest.mark.parametrize("word", ["none", "None", "false", "off"])
def test_the_command_line_can_ask_for_the_sample_claim(seen, project, word):
    project.makefile(".ini", pytest="[pytest]\ntriguard_confidence = 0.95\n")
    assert seen("confidence", f"--triguard-confidence={word}") == "None"


@pytest.mark.parametrize(("name", "text"), [*WRONG, ("chunk", "0"), ("chunk", "x")])
def test_wrong_value_on_the_command_line(run, name, text):
    result = run(f"--triguard-{name}={text}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*argument --triguard-{name}: *{text}*"])


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        (["--triguard-devise=cpu"], "--triguard-devise; did you mean '--triguard-device'?"),
        (["--triguard-sed", "3"], "--triguard-sed; did you mean '--triguard-seed'?"),
        (["--triguard-upadte"], "--triguard-upadte; did you mean '--triguard-update'?"),
        (["--triguard-xyz"], "--triguard-xyz"),
    ],
)
def test_a_misspelt_option_is_answered_with_the_nearest(run, typed, hint):
    result = run(*typed)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert [line for line in result.stderr.lines if line] == [f"ERROR: unknown option {hint}"]


def test_a_misspelt_option_does_not_hide_the_help(run):
    assert run("--triguard-devise=cpu", "--help").ret == 0


def test_an_option_of_a_conftest_may_begin_like_ours(project, run):
    project.makeconftest(
        "def pytest_addoption(parser): parser.addoption('--triguard-extra', action='store_true')"
    )
    project.makepyfile(test_idle="def test_idle(): pass")
    run("--triguard-extra").assert_outcomes(passed=1)


@pytest.mark.parametrize(("name", "text"), WRONG)
def test_wrong_value_in_the_ini_file(project, run, name, text):
    project.makepyfile(test_idle="def test_idle(): pass")
    project.makefile(".ini", pytest=f"[pytest]\ntriguard_{name} = {text}\n")
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *pytest.ini: triguard_{name}: *"])
    assert len([line for line in result.stderr.lines if line]) == 1
    result.stdout.no_fnmatch_line("*passed*")


@pytest.mark.parametrize("value", ["true", "[1, 2]", "1.5"])
def test_wrong_type_in_native_toml(project, run, value):
    if pytest.version_tuple < (9,):
        pytest.skip("native TOML tables came with pytest 9")
    (project.path / "pytest.ini").unlink()
    project.makepyprojecttoml(f"[tool.pytest]\ntriguard_samples = {value}\n")
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *pyproject.toml: triguard_samples: *is not a count*"])


def test_wrong_value_in_an_override(run):
    result = run("-o", "triguard_seed=x")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: -o triguard_seed: 'x' is not a seed*"])


def test_a_wrong_value_is_told_once_under_xdist(project, run_apart):
    pytest.importorskip("xdist")
    project.makefile(".ini", pytest="[pytest]\ntriguard_seed = x\n")
    project.makepyfile(test_idle="def test_idle(): pass")
    result = run_apart("-n", "2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.stderr.str().count("triguard_seed") == 1


def test_help_states_every_option_with_its_default(run):
    result = run("--help")
    text = " ".join(" ".join(result.outlines).split())
    for name in ("device", "seed", "samples", "confidence", "json", "artifacts", "chunk"):
        assert f"--triguard-{name}=" in text
        assert (f"triguard_{name} (string):" in text) == (name != "chunk")
    assert text.count("(default: ") >= 7


def test_help_is_shown_although_an_ini_value_is_wrong(project, run):
    project.makefile(".ini", pytest="[pytest]\ntriguard_seed = x\n")
    result = run("--help")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*--triguard-seed=N*"])
