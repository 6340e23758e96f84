"""The header has one line of ours, and only if an option or an ini key was given."""

import pytest


@pytest.fixture
def header(project, run):
    def header(*arguments):
        project.makepyfile(test_idle="def test_idle(): pass")
        lines = run(*arguments).outlines
        return [line for line in lines if line.startswith("triguard:")]

    return header


def test_nothing_given(header):
    assert header() == []
    assert header("-v") == []


def test_the_command_line(header):
    (line,) = header("--triguard-device=cpu", "--triguard-samples=9", "--triguard-confidence=0.9")
    assert line.startswith("triguard: device cpu, seed 0, samples 9, confidence 0.9, torch ")


def test_the_ini_file(header, project):
    project.makefile(".ini", pytest="[pytest]\ntriguard_seed = 4\n")
    (line,) = header()
    assert line.startswith("triguard: device of the model, seed 4, torch ")


def test_quiet(header):
    assert header("-q", "--triguard-seed=1") == []
