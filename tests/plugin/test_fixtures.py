"""The fixtures: the facade, device and seed, and the two that a model repository defines."""

import pytest


def test_the_facade_has_the_settings_of_the_test(project, run):
    project.makepyfile(
        test_gate="""
        from pathlib import Path
        import pytest
        from checks import check

        @pytest.mark.triguard(samples=5)
        def test_gate(triguard, triguard_device, triguard_seed, pytestconfig):
            check()
            assert triguard.settings.samples == 5
            assert triguard.device == triguard_device == "cpu"
            assert triguard.seed == triguard_seed == 11
            assert triguard.artifacts == pytestconfig.rootpath / ".triguard" / "artifacts"
        """
    )
    run("--triguard-seed=11").assert_outcomes(passed=1)


@pytest.mark.parametrize("name", ["triguard_classifier", "triguard_data"])
def test_an_override_point_says_what_to_do(project, run, name):
    project.makepyfile(test_gate=f"def test_gate({name}): pass")
    result = run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            f"*the fixture {name} is not defined: define a fixture of that name in conftest.py*",
            '*@pytest.fixture(scope="session")',
            f"*def {name}():",
            "*return *",
        ]
    )


def test_an_override_point_is_overridden(project, run):
    project.makeconftest(
        """
        import pytest

        @pytest.fixture(scope="session")
        def triguard_data(triguard_seed, triguard_device):
            return triguard_seed, triguard_device
        """
    )
    project.makepyfile(test_gate="def test_gate(triguard_data): assert triguard_data == (0, 'cpu')")
    run().assert_outcomes(passed=1)


def test_they_are_listed_with_a_sentence_each(run):
    lines = run("--fixtures").outlines
    for name in ("triguard", "triguard_device", "triguard_seed", "triguard_data"):
        place = next(i for i, line in enumerate(lines) if line.split(" ")[0] == name)
        sentence = lines[place + 1].strip()
        assert sentence.endswith(".")
        assert len(sentence) < 90
