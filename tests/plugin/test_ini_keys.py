"""A misspelt ini key would silently change a gate, so it ends the run."""

import pytest


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("triguard_sed", "triguard_seed"),
        ("triguard_device_name", "triguard_device"),
        ("triguard-samples", "triguard_samples"),
        ("trigaurd_confidence", "triguard_confidence"),
        ("Triguard_seed", "triguard_seed"),
    ],
)
@pytest.mark.parametrize("source", ["pytest.ini", "pyproject.toml", "-o"])
def test_unknown_key(project, run, key, meant, source):
    arguments = []
    if source == "pytest.ini":
        project.makefile(".ini", pytest=f"[pytest]\n{key} = 1\n")
    elif source == "pyproject.toml":
        (project.path / "pytest.ini").unlink()
        project.makepyprojecttoml(f"[tool.pytest.ini_options]\n{key} = 1\n")
    else:
        arguments = ["-o", f"{key}=1"]
    result = run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"ERROR: *{source}: unknown key '{key}'; did you mean '{meant}'? (known: *"]
    )


def test_chunk_has_no_ini_twin(project, run):
    project.makefile(".ini", pytest="[pytest]\ntriguard_chunk = 1\n")
    assert run().ret == pytest.ExitCode.USAGE_ERROR


def test_keys_of_others_are_left_alone(project, run):
    project.makefile(".ini", pytest="[pytest]\nother_seed = 1\ntimeout = 3\nguard_samples = x\n")
    project.makepyfile(test_idle="def test_idle(): pass")
    run("-W", "ignore").assert_outcomes(passed=1)
