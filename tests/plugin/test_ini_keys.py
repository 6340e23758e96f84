"""A misspelt ini key would silently change a gate, so it ends the run."""

import pytest

MISSPELT = [
    ("triguard_sed", "triguard_seed"),
    ("triguard_device_name", "triguard_device"),
    ("triguard-samples", "triguard_samples"),
    ("trigaurd_confidence", "triguard_confidence"),
    ("Triguard_seed", "triguard_seed"),
]
SOURCES = {
    "pytest.ini": ("pytest.ini", "pytest"),
    "tox.ini": ("tox.ini", "pytest"),
    "setup.cfg": ("setup.cfg", "tool:pytest"),
    "pyproject.toml": ("pyproject.toml", "tool.pytest.ini_options"),
}
"""File and section by the name of the case."""

if pytest.version_tuple >= (9,):  # native TOML tables came with it
    SOURCES |= {
        "pyproject.toml, native": ("pyproject.toml", "tool.pytest"),
        "pytest.toml": ("pytest.toml", "pytest"),
    }


def write(project, source, *lines):
    """Write lines into a configuration file, which is then the only one."""
    name, section = SOURCES[source]
    (project.path / "pytest.ini").unlink()
    text = "\n".join(lines)
    if not name.endswith(".toml"):
        text = text.replace("'", "")
    (project.path / name).write_text(f"[{section}]\n{text}\n")


@pytest.mark.parametrize(("key", "meant"), MISSPELT)
@pytest.mark.parametrize("source", SOURCES)
def test_unknown_key(project, run, key, meant, source):
    write(project, source, f"{key} = 1")
    result = run("-W", "error")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.errlines if line]
    label = project.path / SOURCES[source][0]
    assert line.startswith(
        f"ERROR: {label}: unknown key '{key}'; did you mean '{meant}'? (known: triguard_"
    )


@pytest.mark.parametrize(("key", "meant"), MISSPELT)
def test_unknown_override(run, key, meant):
    result = run("-W", "error", "-o", f"{key}=1")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: -o: unknown key '{key}'; did you mean '{meant}'? *"])


@pytest.mark.parametrize("source", SOURCES)
def test_known_keys_and_those_of_others(project, run, source):
    """Also where warnings are errors: nothing that pytest calls deprecated is read."""
    write(project, source, "triguard_seed = 1", "console_output_style = 'classic'")
    project.makepyfile(
        test_seed="""
        from pytest_triguard.settings import current_settings

        def test_seed(): assert current_settings().seed == 1
        """
    )
    run("-W", "error", "--strict-config").assert_outcomes(passed=1)


def test_a_key_is_found_once_whatever_runs(project, run_apart, mode):
    write(project, "tox.ini", "triguard_sed = 1")
    result = run_apart("-W", "error", *mode)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert len([line for line in result.errlines if line]) == 1


def test_chunk_has_no_ini_twin(project, run):
    project.makefile(".ini", pytest="[pytest]\ntriguard_chunk = 1\n")
    assert run().ret == pytest.ExitCode.USAGE_ERROR


def test_keys_of_others_are_left_alone(project, run):
    project.makefile(".ini", pytest="[pytest]\nother_seed = 1\ntimeout = 3\nguard_samples = x\n")
    project.makepyfile(test_idle="def test_idle(): pass")
    run("-W", "ignore").assert_outcomes(passed=1)
