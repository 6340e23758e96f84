"""What assertions refuse of their other arguments.

One sentence names the argument, what came, and what was expected.
"""

import math

import numpy as np
import pytest
import torch

from pytest_triguard import (
    assert_accuracy,
    assert_attack_success_below,
    assert_drift_below,
    assert_entropy_below,
    assert_robust,
    assert_trigger_recall,
    attacks,
    backdoors,
)
from pytest_triguard.errors import InputError, InputTypeError
from tests.assertions import TABLE, every_assertion
from tests.bad_input.problem import COUNT, X, Y
from tests.sessions import with_settings

TRIGGER = backdoors.get("badnets", target=1)
BELOW = [case for case in TABLE if case.gate == "threshold"]
OPTIONS = {
    "name": ("", InputTypeError, "name must be a non-empty string, but '' came"),
    "confidence": (95, InputError, "confidence must be a number between 0 and 1, or False for a"),
    "inconclusive": (
        "passed",
        InputError,
        "inconclusive must be one of 'fail', 'pass', but 'passed' came; did you mean 'pass'?",
    ),
    "undefined_at_most": (5, InputError, "undefined_at_most must be a number from 0 to 1, got 5.0"),
    "max_regression": (0.1, InputError, "max_regression needs a baseline to compare with, but no"),
    "seed": (-1, InputError, "seed must be at least 0, but -1 came"),
}


@pytest.mark.parametrize("option", OPTIONS)
@every_assertion
def test_options(case, option, subject, refused):
    value, error, message = OPTIONS[option]
    refused(error, message, case, subject, X, Y, **{option: value})


FALSE = [("inconclusive", ""), ("inconclusive", False), ("seed", False), ("name", 0), ("ids", 0)]


@pytest.mark.parametrize(("option", "value"), FALSE)
def test_what_is_merely_false_is_not_taken_for_none(option, value, subject, refused):
    error = (InputError, InputTypeError)
    refused(error, f"{option} must ", assert_accuracy, subject, X, Y, at_least=0, **{option: value})


@every_assertion
def test_an_unknown_option_is_answered_with_the_nearest(case, subject, refused):
    message = f"{case.assertion.__name__}() takes no argument 'confidance'; did you mean 'confid"
    refused(TypeError, message, case, subject, X, Y, confidance=0.9)


def test_the_nearest_may_be_an_argument_of_the_assertion_alone(subject, refused):
    message = "assert_robust() takes no argument 'atack'; did you mean 'attack'? (shared by all as"
    refused(InputTypeError, message, assert_robust, subject, X, Y, eps=0.1, at_least=0, atack="bim")


@every_assertion
@pytest.mark.parametrize(
    ("threshold", "error"),
    [
        (math.nan, InputError),
        (math.inf, InputError),
        (-1.5, InputError),
        (2.5, InputError),
        ("0.9", InputTypeError),
        (True, InputTypeError),
        (np.array([0.5]), InputTypeError),
    ],
)
def test_thresholds_the_metric_cannot_reach(case, threshold, error, subject, refused):
    chosen = {case.gate: threshold}
    refused(error, f"{case.gate} must be a finite number", case, subject, X, Y, **chosen)


@pytest.mark.parametrize("case", BELOW, ids=lambda case: case.title)
def test_nothing_is_below_the_smallest_value(case, subject, refused):
    message = "threshold must be a finite number, above 0 and at most "
    refused(InputError, message, case, subject, X, Y, threshold=0)


def test_raw_entropy_has_a_reach_of_its_own(subject, refused):
    message = "threshold must be a finite number, above 0 and at most 2.77259, got 2.8"
    refused(InputError, message, assert_entropy_below, subject, X, 2.8, form="raw")


@pytest.mark.parametrize("assertion", [assert_entropy_below, assert_drift_below])
def test_labels_in_the_place_of_the_threshold(assertion, subject, refused):
    message = "threshold must be a finite number, got a Tensor of shape (8,); labels are keyword-o"
    refused(TypeError, message, assertion, subject, X, Y)


def test_only_where_labels_are_keyword_only_are_they_said_to_be(subject):
    with pytest.raises(InputTypeError) as caught:
        assert_accuracy(subject, X, Y, at_least="0.9")
    assert "keyword" not in str(caught.value)
    with pytest.raises(InputTypeError, match=r"^at_least must be a finite number.*None \(NoneTy"):
        assert_accuracy(subject, X, Y, at_least=None)


PGD = attacks.get("pgd", eps=0.1)
EPS = torch.full((COUNT,), 0.1)
ROBUST = {
    "negative eps": ({"eps": -0.1}, InputError, "eps must be at least 0, but -0.1 came"),
    "eps NaN": ({"eps": math.nan}, InputError, "eps must be at least 0, but nan came"),
    "eps of text": ({"eps": "8/255"}, InputTypeError, "eps must be a number, but '8/255' came"),
    "eps beyond the range": (
        {"eps": 1.5},
        InputError,
        "eps must not exceed the range of the inputs, 1, but 1.5 came; eps is measured in the",
    ),
    "eps beyond the diagonal": (
        {"eps": 4.5, "norm": "l2"},
        InputError,
        "eps must not exceed the diagonal of their range, 4, but 4.5 came; eps is measured in",
    ),
    "too few eps": (
        {"eps": EPS[1:]},
        InputError,
        "eps must be one number or a tensor of shape (8,), but a Tensor of shape (7,) and dtype",
    ),
    "norm": (
        {"eps": 0.1, "norm": "linfty"},
        InputError,
        "norm must be one of 'linf', 'l2', but 'linfty' came; did you mean 'linf'?",
    ),
    "attack": (
        {"eps": 0.1, "attack": "pgdd"},
        InputError,
        "unknown attack 'pgdd'; did you mean 'pgd'? (known: apgd_ce, apgd_dlr, ",
    ),
    "no attack": (
        {"eps": 0.1, "attack": 3},
        InputTypeError,
        "attack must be a name or an attack, but 3 came; attacks.get(name, ...) makes one",
    ),
    "the class of an attack": (
        {"eps": 0.1, "attack": type(PGD)},
        InputTypeError,
        "attack must be a name or an attack, but <class 'pytest_triguard.attacks.pgd.PGD'> came",
    ),
    "another eps": (
        {"eps": 0.2, "attack": PGD},
        InputError,
        "eps must agree with the attack's own, 0.1, but 0.2 came",
    ),
    "one eps and many": (
        {"eps": EPS, "attack": PGD},
        InputError,
        "eps must agree with the attack's own, 0.1, but a Tensor of shape (8,) and dtype torch.fl",
    ),
    "many eps and one": (
        {"eps": 0.1, "attack": attacks.get("pgd", eps=EPS)},
        InputError,
        "eps must agree with the attack's own, a Tensor of shape (8,) and dtype torch.float32, bu",
    ),
    "another norm": (
        {"eps": 0.1, "attack": attacks.get("pgd", eps=0.1, norm="l2")},
        InputError,
        "norm must agree with the attack's own, but 'linf' came; give norm='l2'",
    ),
}


@pytest.mark.parametrize("bad", ROBUST)
def test_robustness(bad, subject, refused):
    options, error, message = ROBUST[bad]
    refused(error, message, assert_robust, subject, X, Y, at_least=0, **options)


SUCCESS = {
    "neither": ({}, InputError, "either trigger or attack must be given, but neither came"),
    "both": (
        {"trigger": TRIGGER, "attack": "pgd", "eps": 0.1},
        InputError,
        "either trigger or attack must be given, but both came",
    ),
    "eps of a trigger": (
        {"trigger": TRIGGER, "eps": 0.1},
        InputError,
        "eps must go with an attack, but 0.1 came with a trigger",
    ),
    "no eps": (
        {"attack": "pgd"},
        InputError,
        "eps must be given for the attack 'pgd', but none came",
    ),
    "another eps": (
        {"attack": PGD, "eps": 0.2},
        InputError,
        "eps must agree with the attack's own, 0.1, but 0.2 came",
    ),
    "no trigger": (
        {"trigger": "badnets"},
        InputTypeError,
        "trigger must be a backdoor trigger, but 'badnets' came; backdoors.get(name, ...) makes",
    ),
    "target beyond": (
        {"attack": PGD, "target": 3},
        InputError,
        "target must be a class from 0 to 2, but 3 came",
    ),
    "target below": (
        {"attack": PGD, "target": -1},
        InputError,
        "target must be at least 0, but -1 came",
    ),
    "target of text": (
        {"attack": PGD, "target": "1"},
        InputTypeError,
        "target must be a whole number, but '1' came",
    ),
    "target of a trigger beyond": (
        {"trigger": backdoors.get("badnets", target=7)},
        InputError,
        "target must be a class from 0 to 2, but 7 came",
    ),
    "trigger beyond the image": (
        {"trigger": backdoors.get("badnets", size=9)},
        InputError,
        "inputs must hold the trigger of 9 x 9 pixels at 'bottom_right', but images of 4 x 4 came",
    ),
}


@pytest.mark.parametrize("bad", SUCCESS)
def test_attack_success(bad, subject, refused):
    options, error, message = SUCCESS[bad]
    refused(error, message, assert_attack_success_below, subject, X, Y, threshold=0.5, **options)


RECALL = {
    "no trigger": (
        {"trigger": X},
        InputTypeError,
        "trigger must be a backdoor trigger, but a Tensor of shape (8, 1, 4, 4) and dtype",
    ),
    "target": (
        {"trigger": TRIGGER, "target": 3},
        InputError,
        "target must be a class from 0 to 2, but 3 came",
    ),
}
EXPLAINED = {
    "attribution": (
        {"attribution": "saliencey"},
        InputError,
        "unknown attribution 'saliencey'; did you mean 'saliency'? (known: ",
    ),
    "no attribution": (
        {"attribution": PGD},
        InputTypeError,
        "attribution must be a name or an attribution, but PGD(eps=0.1, ",
    ),
}


@pytest.mark.parametrize("bad", [*RECALL, *EXPLAINED])
def test_trigger_recall(bad, subject, refused):
    options, error, message = (RECALL | EXPLAINED)[bad]
    given = {"trigger": TRIGGER} | options
    refused(error, message, assert_trigger_recall, subject, X, at_least=0, **given)


STATISTIC = {
    "statistic": (
        {"statistic": "medain"},
        InputError,
        "unknown statistic 'medain'; did you mean 'median'? (known: mean, median, max, min, and",
    ),
    "no statistic": (
        {"statistic": np.mean},
        InputTypeError,
        "statistic must be a name such as 'mean' or 'p95', got ",
    ),
    "maximum of a population": (
        {"statistic": "max", "confidence": 0.9},
        InputError,
        "statistic 'max' allows no population claim, for no interval bounds what was not sampled",
    ),
    "form": ({"form": "raww"}, InputError, "form must be one of "),
}


@pytest.mark.parametrize("bad", [*EXPLAINED, *STATISTIC])
@pytest.mark.parametrize("assertion", [assert_entropy_below, assert_drift_below])
def test_explanations(assertion, bad, subject, refused):
    options, error, message = (EXPLAINED | STATISTIC)[bad]
    refused(error, message, assertion, subject, X, 0.5, **options)


@pytest.mark.parametrize("assertion", [assert_entropy_below, assert_drift_below])
def test_a_bad_statistic_is_refused_before_anything_is_measured(assertion):
    with pytest.raises(InputError, match=r"^unknown statistic"):
        assertion(None, None, 0.5, statistic="medain")


BETWEEN = {
    "one": (
        "zero",
        InputTypeError,
        "between must be two or more baselines or ('clean', attack), but 'ze",
    ),
    "alone": (
        ("zero",),
        InputTypeError,
        "between must be two or more baselines or ('clean', attack), but ('zero',) came",
    ),
    "twice": (
        ("zero", "blur", "zero"),
        InputError,
        "between must name each of several baselines once, but 'zero' came twice",
    ),
    "itself": (
        ("zero", "zero"),
        InputError,
        "between must name each of several baselines once, but 'zero' came twice",
    ),
    "two attacks": (
        ("clean", "pgd", "bim"),
        InputTypeError,
        "between must hold one attack after 'clean', but ('clean', 'pgd', 'bim') came",
    ),
    "name": (
        ("zero", "blurr"),
        InputError,
        "between must name some of 'zero', 'blur', 'noise', 'uniform', 'midpoint', 'clean', but "
        "'blurr' came; did you mean 'blur'?",
    ),
    "number": (("zero", 0.5), InputTypeError, "between must be a tensor or one of zero, blur"),
    "not finite": (
        ("zero", torch.full((1, 4, 4), float("nan"))),
        InputError,
        "between must be finite, but a Tensor of shape (1, 4, 4) and dtype torch.float32 came, wh",
    ),
    "clean last": (("zero", "clean"), InputError, "between must name some of 'zero', 'blur'"),
    "no attack": (
        ("clean", 3),
        InputTypeError,
        "between must name an attack after 'clean', or hold one, but 3 came",
    ),
    "attack": (("clean", "pgdd"), InputError, "unknown attack 'pgdd'; did you mean 'pgd'?"),
    "shape": (
        ("zero", torch.zeros(1, 5, 5, dtype=torch.float64)),
        InputError,
        "baseline must have shape (1, 4, 4) to go with the inputs, but a Tensor of shape (1, 5, 5",
    ),
    "too few": (
        ("zero", torch.zeros(7, 1, 4, 4, dtype=torch.float64)),
        InputError,
        "baseline must hold one input per sample, but only 7 came",
    ),
}


@pytest.mark.parametrize("bad", BETWEEN)
def test_ends_of_a_drift(bad, subject, refused):
    between, error, message = BETWEEN[bad]
    refused(error, message, assert_drift_below, subject, X, 0.5, between=between)


def test_a_method_without_a_baseline(subject, refused):
    message = "between must be ('clean', attack) for saliency, which has no baseline, but ('zero'"
    refused(InputError, message, assert_drift_below, subject, X, 0.5, attribution="saliency")


def test_a_name_must_be_the_only_one_of_its_test(subject):
    with with_settings():
        assert_accuracy(subject, X, Y, at_least=0, name="gate")
        with pytest.raises(InputError, match=r"^name must be unique in a test, but a second check"):
            assert_robust(subject, X, Y, eps=0.1, at_least=0, name="gate")
