"""The marker triguard(...): merged along its chain, over the command line, checked early."""

import pytest

PROBE = """
import pytest
from checks import check
from pytest_triguard.settings import current_settings

pytestmark = pytest.mark.triguard(confidence=0.9, samples=10)

def show(name):
    settings = current_settings()
    values = settings.confidence, settings.samples, settings.budget, settings.inconclusive
    with open(name, "w") as file:
        file.write(repr(values))
    check()

def test_module():
    show("module.txt")

@pytest.mark.triguard(samples=20, budget=1.5)
class TestClass:
    def test_class(self):
        show("class.txt")

    @pytest.mark.triguard(confidence=False, inconclusive="pass", budget=None)
    def test_function(self):
        show("function.txt")
"""


def test_the_closest_value_wins_key_by_key(project, run):
    project.makepyfile(test_probe=PROBE)
    run("--triguard-samples=5", "--triguard-confidence=0.5").assert_outcomes(passed=3)
    shown = {path.stem: path.read_text() for path in project.path.glob("*.txt")}
    assert shown == {
        "module": "(0.9, 10, None, 'fail')",
        "class": "(0.9, 20, 1.5, 'fail')",
        "function": "(None, 20, 1.5, 'pass')",
    }


def test_a_marker_ends_with_its_test(project, run):
    project.makepyfile(
        test_probe="""
        import pytest
        from checks import check
        from pytest_triguard.settings import current_settings

        @pytest.mark.triguard(samples=20)
        def test_marked():
            check()

        def test_bare():
            assert current_settings().samples is None
        """
    )
    run().assert_outcomes(passed=2)


WRONG = [
    ("0.95", "takes keywords only (confidence, samples, budget, inconclusive, compare), got 0.95"),
    ("sample=3", "has no keyword 'sample'; did you mean 'samples'? (known: confidence, *"),
    ("confidence=95", "confidence: 95 is not a confidence*"),
    ("confidence='0.9'", "confidence: '0.9' is not a confidence*"),
    ("confidence=True", "confidence: True is not a confidence*"),
    ("samples=0", "samples: 0 is not a count*"),
    ("samples='5'", "samples: '5' is not a count*"),
    ("budget=0", "budget: 0 is not a budget*"),
    ("budget=True", "budget: True is not a budget*"),
    ("budget=float('inf')", "budget: inf is not a budget*"),
    ("inconclusive='warn'", "inconclusive: 'warn' is not a choice: use 'fail' or 'pass'"),
    ("compare=3", "compare: 3 is no name of a parameter of the test, nor a tuple of them"),
    ("compare=()", "compare: () is no name of a parameter*"),
    ("compare=('a', 'a')", "compare: ('a', 'a') must hold names of parameters of the test, each*"),
    ("compare='eps'", "compare: the test has no parameter 'eps' (it has: none)"),
    ("inconclusive=[]", "inconclusive: [[]] is not a choice*"),
]


def write(project, arguments):
    project.makepyfile(
        test_gate=f"""
        import pytest
        from checks import check

        @pytest.mark.triguard({arguments})
        def test_wrong():
            open("ran.txt", "w").close()

        def test_right():
            check()
        """
    )


@pytest.mark.parametrize(("arguments", "problem"), WRONG)
def test_a_wrong_marker_ends_the_run(project, run, arguments, problem):
    write(project, arguments)
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: test_gate.py::test_wrong: the marker triguard*{problem}"])
    assert not (project.path / "ran.txt").exists()


def test_a_wrong_marker_of_a_deselected_test_is_found(project, run):
    write(project, "sample=3")
    assert run("-k", "test_right").ret == pytest.ExitCode.USAGE_ERROR


def test_every_wrong_marker_is_named(project, run):
    project.makepyfile(
        test_gate="""
        import pytest

        @pytest.mark.triguard(sample=3)
        def test_one(): pass

        @pytest.mark.triguard(budgte=3)
        def test_two(): pass
        """
    )
    result = run()
    result.stderr.fnmatch_lines(["ERROR: *::test_one: *'sample'*", "*::test_two: *'budgte'*"])


def test_a_worker_fails_the_test_alone(project, run_apart):
    pytest.importorskip("xdist")
    write(project, "sample=3")
    result = run_apart("-n", "2", "-rE")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*the marker triguard has no keyword 'sample'; did you mean*"])
    assert "INTERNALERROR" not in result.stdout.str()
    assert not (project.path / "ran.txt").exists()


def test_a_marker_that_a_conftest_adds_is_checked(project, run):
    project.makeconftest(
        """
        import pytest

        def pytest_collection_modifyitems(items):
            for item in items:
                item.add_marker(pytest.mark.triguard(sample=3))
        """
    )
    project.makepyfile(test_gate="def test_gate(): pass")
    assert run().ret == pytest.ExitCode.USAGE_ERROR


def test_it_is_registered(project, run):
    write(project, "samples=3")
    run("--strict-markers", "-k", "right").assert_outcomes(passed=1, deselected=1)
    run("--markers").stdout.fnmatch_lines(["@pytest.mark.triguard(*confidence=None*)*"])
