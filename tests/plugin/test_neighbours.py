"""Beside the plugins that users have installed too: each does its work, and the checks theirs."""

import json
import random
import sys

import numpy as np
import pytest
import scipy.stats  # noqa: F401 - a run within this process would load parts of numpy anew
import torch

from pytest_triguard.seeder import seed_torch


def checks_of(folder, name="report.json"):
    checks = json.loads((folder / name).read_text(encoding="utf-8"))["checks"]
    return [{key: value for key, value in each.items() if key != "seconds"} for each in checks]


@pytest.fixture
def generators():
    """Leave the global generators as they were."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(before[0])
    np.random.set_state(before[1])


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 5, 2**64 + 3, -1])
def test_any_seed_seeds_torch(generators, seed):
    seed_torch(seed)
    first = torch.rand(3)
    assert torch.initial_seed() == seed % 2**64
    seed_torch(seed)
    assert torch.equal(torch.rand(3), first)


def test_torch_is_not_imported_to_be_seeded(generators, monkeypatch):
    before = torch.initial_seed()
    monkeypatch.delitem(sys.modules, "torch")
    seed_torch(7)
    assert "torch" not in sys.modules
    assert torch.initial_seed() == before


REAL = """
import pytest
import torch
from pytest_triguard import Classifier, assert_entropy_below, assert_robust, attributions

DRAWN = []

@pytest.fixture(scope="session")
def classifier():
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(16, 3)
    linear.weight.data = torch.randn(3, 16, generator=generator)
    linear.bias.data.zero_()
    return Classifier(torch.nn.Sequential(torch.nn.Flatten(), linear, torch.nn.Softplus()))

@pytest.mark.parametrize("number", range(3))
def test_gate(classifier, number):
    with open(f"drawn-{number}.txt", "w") as file:
        file.write(str(torch.rand(1).item()))
    images = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(number))
    labels = classifier(images).argmax(1)
    assert_robust(classifier, images, labels, eps=0.01, at_least=0)
    assert_entropy_below(classifier, images, 1.0, attribution=attributions.get("smoothgrad"))
"""


def test_results_do_not_depend_on_the_seed_or_the_order_of_randomly(project, generators):
    pytest.importorskip("pytest_randomly")
    project.makepyfile(test_gate=REAL)
    quiet = ("-p", "no:hypothesispytest", "-p", "no:html", "-p", "no:html_fixtures")

    def run(*arguments):
        result = project.runpytest_inprocess(*quiet, *arguments, "--triguard-json=report.json")
        result.assert_outcomes(passed=3)
        drawn = [float((project.path / f"drawn-{each}.txt").read_text()) for each in range(3)]
        return drawn, sorted(checks_of(project.path), key=lambda each: each["nodeid"])

    _, plain = run("-p", "no:randomly")
    first, found = run("--randomly-seed=1")
    again, _ = run("--randomly-seed=1")
    other, others = run("--randomly-seed=2")
    for each in (*plain, *found, *others):  # these say how the run was made
        del each["reproduce"], each["chunk"]
    assert first == again, "torch is seeded"
    assert not set(first) & set(other), "with the seed of the run and of the test"
    assert plain == found == others


def test_a_timeout_keeps_the_records(project, run_with):
    project.makepyfile(
        test_gate="""
        import time
        from checks import check

        def test_before(): check()
        def test_slow():
            check("before the time was up")
            time.sleep(60)
        def test_after(): check()
        """
    )
    arguments = ("--timeout=1", "--timeout-method=signal", "--triguard-json=report.json")
    result = run_with(["timeout"], *arguments)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["3 checks: 3 passed"])
    assert len(checks_of(project.path)) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_the_report_of_html_tells_the_failures(project, run_with, workers):
    pytest.importorskip("xdist")
    project.makepyfile(
        test_gate="""
        import pytest
        from checks import check

        def test_passes(): check()
        def test_fails(): check("<b>&", value=0.5)

        @pytest.mark.triguard
        def test_checks_nothing(): pass
        """
    )
    result = run_with(
        ["html"],
        *("--html=report.html", "--self-contained-html"),
        *("-n", str(workers), "--triguard-min-checks=3", "-W", "error"),
    )
    result.assert_outcomes(passed=1, failed=3)
    text = (project.path / "report.html").read_text(encoding="utf-8")
    for expected in (
        "accuracy 0.5 is not",
        "passed without a check",
        "triguard::min-checks",
        "2 checks decided, but --triguard-min-checks asks for 3",
    ):
        assert expected in text


NESTED = """
import pytest
from checks import check

INNER = '''
from checks import check

def test_inner(): check("inner", value={value})
'''

@pytest.mark.triguard(samples=9)
@pytest.mark.parametrize(
    ("runner", "value"), [("runpytest_inprocess", 0.5), ("runpytest_subprocess", 0.95)]
)
def test_outer(pytester, runner, value):
    from pytest_triguard.settings import current_settings

    check("before")
    pytester.syspathinsert({path!r})
    pytester.makepyfile(INNER.format(value=value))
    result = getattr(pytester, runner)("-p", "no:hypothesispytest", "--triguard-seed=5")
    assert result.ret == (value < 0.9)
    assert (current_settings().samples, current_settings().seed) == (9, 0)
    check("after")
"""


def test_a_run_within_a_test_keeps_its_records_to_itself(project, run_apart, mode):
    text = NESTED.replace("{path!r}", repr(str(project.path)))
    project.makepyfile(test_gate=text)
    result = run_apart(*mode, "-p", "pytester", "--triguard-json=report.json")
    result.assert_outcomes(passed=2)
    names = [each["name"] for each in checks_of(project.path)]
    assert names == ["before", "after"] * 2
