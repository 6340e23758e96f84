"""Checks are told apart by the line of the user, and errors about arguments point at it."""

import traceback
from functools import partial

import pytest
import torch
from torch import nn

from pytest_triguard import Classifier, TriGuardFailure, assert_accuracy, assert_robust
from pytest_triguard.checks.callsite import call_site, points_at_caller
from pytest_triguard.errors import InputError, ModelError
from tests.sessions import with_settings

X, Y = torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)


def frames(error):
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


def test_it_is_the_first_line_outside_the_package():
    def site():
        return call_site()

    file, line, _ = site()
    assert file == __file__
    assert line == site.__code__.co_firstlineno + 1


def test_a_package_whose_name_begins_alike_is_outside(tmp_path):
    from pytest_triguard.checks import callsite

    beside = f"{callsite._PACKAGE.rstrip('/')}_extra/test_it.py"
    scope = {"call_site": call_site}
    exec(compile("found = call_site()", beside, "exec"), scope)
    assert scope["found"][0] == beside


def test_every_call_of_a_line_has_its_own_place():
    first, second = [call_site(), call_site()]
    assert first[:2] == second[:2]
    assert first != second


def test_a_line_that_runs_again_has_the_same_place():
    assert len({call_site() for _ in range(3)}) == 1


def test_an_assertion_may_be_called_through_other_functions():
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    with with_settings() as session:
        for check in (assert_accuracy, partial(assert_accuracy, at_least=0)) * 9:
            check(classifier, X, Y, at_least=0)
    assert [record.evaluations for record in session.records.values()] == [18]


def test_an_error_about_an_argument_ends_at_the_call():
    with pytest.raises(InputError) as caught:
        assert_robust(None, X, Y, eps=-1, at_least=0)
    assert frames(caught.value) == ["test_an_error_about_an_argument_ends_at_the_call", "called"]


def test_the_cause_in_the_users_module_stays():
    class Raises(nn.Module):
        def forward(self, inputs):
            raise RuntimeError("my own mistake")

    with pytest.raises(ModelError) as caught:
        assert_accuracy(Classifier(Raises()), X, Y, at_least=0)
    assert frames(caught.value)[-1] == "called"
    cause = caught.value.__cause__
    assert str(cause) == "my own mistake"
    assert frames(cause)[-1] == "forward"


def test_other_errors_keep_their_traceback():
    @points_at_caller
    def breaks():
        return inner()

    def inner():
        raise KeyError("a bug")

    with pytest.raises(KeyError) as caught:
        breaks()
    assert frames(caught.value)[-1] == "inner"


def test_an_assertion_keeps_its_name_and_signature():
    import inspect

    assert assert_robust.__name__ == "assert_robust"
    assert list(inspect.signature(assert_robust).parameters)[:4] == [
        *("classifier", "inputs", "labels", "eps"),
    ]


def test_pytest_shows_the_users_line_and_nothing_of_the_package(pytester):
    pytester.makepyfile(
        test_gate="""
        import torch
        from torch import nn
        from pytest_triguard import Classifier, assert_accuracy

        CLASSIFIER = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
        X, Y = torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 0, 1])

        def test_fails():
            assert_accuracy(CLASSIFIER, X, Y, at_least=1)

        def test_is_wrong():
            assert_accuracy(CLASSIFIER, X, Y[:3], at_least=1)
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:randomly", "-p", "no:xdist")
    result.stdout.fnmatch_lines(
        [
            ">       assert_accuracy(CLASSIFIER, X, Y, at_least=1)",
            "E       pytest_triguard.TriGuardFailure: accuracy 0.500 (2/4) is not >= 1",
            "E         judged    on these samples: the value is below the threshold; *",
            "E         reproduce * test_gate.py::test_fails --triguard-seed=0 --triguard-chunk=64",
            "test_gate.py:9: TriGuardFailure",
            ">       assert_accuracy(CLASSIFIER, X, Y[[]:3], at_least=1)",
            "E       pytest_triguard.errors.InputError: labels must have shape (4,) to go with *",
            "test_gate.py:12: InputError",
        ]
    )
    shown = result.stdout.str().partition("= FAILURES =")[2]
    assert "/pytest_triguard/" not in shown
    assert "def check_" not in shown


def test_a_failure_has_one_frame_below_the_call():
    with pytest.raises(TriGuardFailure) as caught:
        assert_accuracy(
            Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 2))),
            X,
            Y + torch.arange(4) % 2,
            at_least=1,
        )
    hidden = [
        frame.tb_frame.f_locals.get("__tracebackhide__", False)
        for frame in walk(caught.value.__traceback__)
    ]
    assert not hidden[0]
    assert all(hidden[1:])


def walk(frame):
    while frame is not None:
        yield frame
        frame = frame.tb_next
