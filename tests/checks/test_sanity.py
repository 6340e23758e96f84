"""Warnings about an evaluation by attacks, and what a strict check makes of them."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from pytest_triguard import (
    TriGuardFailure,
    assert_attack_success_below,
    assert_drift_below,
    assert_entropy_below,
    assert_explanation_robust,
    assert_explanations_agree,
    assert_faithful,
    assert_passes_sanity_check,
    assert_robust,
    assert_transfer_below,
    assert_trigger_recall,
    attacks,
    backdoors,
)
from pytest_triguard.classifier import Classifier
from pytest_triguard.errors import InputTypeError
from pytest_triguard.settings import current_session
from tests.networks import CLASSES, bare, problem
from tests.sessions import with_settings

EPS = 0.04


class Changed(nn.Module):
    """A network whose inputs or logits go through something else."""

    def __init__(self, inner, before=None, after=None):
        super().__init__()
        self.inner = inner
        self.before = before
        self.after = after

    def forward(self, inputs: Tensor) -> Tensor:
        logits = self.inner(inputs if self.before is None else self.before(inputs))
        return logits if self.after is None else self.after(logits)


def evaluated(
    attack="pgd",
    count=20,
    strict=False,
    at_least=0,
    before=None,
    after=None,
    labels_below=CLASSES,
    **options,
):
    subject, inputs, labels = problem("smooth", count)
    inputs, labels = (each[labels < labels_below] for each in (inputs, labels))
    changed = Changed(bare(subject), before, after)
    return assert_robust(
        Classifier(changed),
        inputs,
        labels,
        eps=EPS,
        at_least=at_least,
        attack=attack,
        strict=strict,
        **options,
    )


def rounded(inputs):
    return (inputs * 64).round() / 64


def blind_and_seeing():
    several = (attacks.get("pgd", steps=10), attacks.get("square", queries=40))
    return attacks.Cascade(attacks=several, eps=EPS)


def test_a_sound_evaluation_warns_of_nothing():
    assert evaluated(strict=True).record.warnings == {}
    assert evaluated(blind_and_seeing(), strict=True).record.warnings == {}


CASES = {
    "zero gradients": {"before": rounded},
    "vanishing gradients": {"after": lambda logits: logits * 1e4},
    "softmax output": {"after": lambda logits: logits.softmax(1)},
    "loss still rising": {"attack": attacks.get("bim", eps=EPS, steps=4, step_size=EPS / 50)},
    "black box beats white box": {"before": rounded, "attack": blind_and_seeing()},
}


@pytest.mark.parametrize("name", CASES)
def test_what_speaks_against_an_evaluation_is_a_warning(name):
    found = evaluated(**CASES[name])
    assert name in found.record.warnings
    assert found.record.verdict == "passed"
    with pytest.raises(TriGuardFailure) as caught:
        evaluated(strict=True, **CASES[name])
    record = caught.value.record
    assert record.warnings == found.record.warnings
    assert (record.verdict, record.gate, record.failed) == ("failed", "passed", True)
    first, *others = str(caught.value).splitlines()
    text = " ".join(" ".join([first, *others]).split())
    assert f"is in doubt: {', '.join(record.warnings)}" in text
    for warning, sentence in record.warnings.items():
        assert f"warning {warning}: {sentence}" in text


def test_the_margin_shows_what_the_cross_entropy_does_not():
    """Where gradients only vanish for the cross-entropy, another loss is no reason to warn."""
    sharp = {"after": lambda logits: logits * 1e4}
    assert evaluated("apgd_dlr", **sharp).record.warnings == {}
    margin = attacks.get("pgd", eps=EPS, loss="margin")
    assert evaluated(margin, **sharp).record.warnings == {}


def test_the_loss_that_is_followed_decides_whether_gradients_vanish():
    """That of the probability vanishes like the cross-entropy's, but for a target the latter not.

    An attack that integrates over darker images finds gradients there.
    """
    sharp = {"after": lambda logits: logits * 1e4}
    probability = attacks.get("pgd", eps=EPS, loss="probability")
    assert list(evaluated(probability, **sharp).record.warnings) == ["vanishing gradients"]
    assert evaluated(attacks.get("mig", eps=EPS), **sharp).record.warnings == {}
    subject, inputs, labels = problem("smooth", 20)
    certain = Classifier(Changed(bare(subject), **sharp))
    for attack, expected in ((attacks.get("pgd", eps=EPS), []), (probability, ["vanishing"])):
        options = {"threshold": 1, "attack": attack, "target": 0}
        found = assert_attack_success_below(certain, inputs, labels, **options)
        assert [each.split()[0] for each in found.record.warnings] == expected


def test_what_fell_before_gradients_were_looked_at_is_no_sign_of_masked_ones():
    blind, seeing = attacks.get("square", queries=40), attacks.get("pgd", steps=10)
    needs_four = attacks.get("apgd_t")
    for several in ((blind, seeing), (blind, blind), (blind, seeing, blind)):
        cascade = attacks.Cascade(attacks=several, eps=EPS)
        found = evaluated(cascade, before=rounded)
        assert found.record.counts["falsified by square"] > 0
        assert "black box beats white box" not in found.record.warnings
    cascade = attacks.Cascade(attacks=(needs_four, blind), eps=EPS)
    found = evaluated(cascade, after=lambda logits: logits[:, :2], labels_below=2)
    assert found.record.counts["falsified by square"] > 0
    assert list(found.record.warnings) == ["too few classes"]


def test_an_attack_without_gradients_is_not_blamed_for_them():
    square = attacks.get("square", eps=EPS, queries=20)
    assert evaluated(square, before=rounded).record.warnings == {}


def test_a_success_in_a_ball_of_no_size_is_a_warning():
    """The network counts its calls, and answers otherwise once it was asked often."""
    subject, inputs, labels = problem("smooth", 4)

    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = bare(subject)
            self.calls = 0

        def forward(self, inputs):
            self.calls += 1
            logits = self.inner(inputs)
            return logits if self.calls < 12 else logits.flip(1)

    found = assert_robust(Classifier(Moody()), inputs, labels, eps=0, at_least=0, attack="pgd")
    assert "success at eps = 0" in found.record.warnings


def test_a_goal_that_is_reached_beforehand_is_no_success_of_an_empty_ball():
    """Neither a target that is predicted already, nor a source that is wrong without an attack."""
    subject, inputs, labels = problem("smooth", 20)
    predicted = bare(subject)(inputs).argmax(1)
    target = int(predicted[predicted != labels][0])
    pgd = attacks.get("pgd", eps=0)
    found = assert_attack_success_below(
        subject, inputs, labels, threshold=1, attack=pgd, target=target
    )
    assert found.record.counts["succeeded"] > 0
    assert found.record.warnings == {}
    source = Classifier(Changed(bare(subject), after=lambda logits: logits.flip(1)))
    found = assert_transfer_below(
        subject, inputs, labels, threshold=1, attack=pgd, source=source, strict=True
    )
    assert found.record.counts["succeeded"] == 0


def test_no_warning_costs_a_counted_pass():
    pgd = attacks.get("pgd", eps=EPS)
    subject, inputs, labels = problem("smooth", 20)
    right = bare(subject)(inputs).argmax(1) == labels
    alone = pgd(subject, inputs[right], labels[right], ids=right.nonzero().flatten().tolist())
    found = assert_robust(subject, inputs, labels, eps=EPS, at_least=0, attack=pgd)
    assert found.passes["forward"] == alone.cost["forward"] + 20
    assert found.passes["backward"] == alone.cost["backward"]


def test_a_strict_check_that_misses_its_threshold_says_so():
    with pytest.raises(TriGuardFailure, match="is not >= 1") as caught:
        evaluated(strict=True, at_least=1, before=rounded)
    assert "warning" in str(caught.value)


def test_attack_success_warns_too():
    subject, inputs, labels = problem("smooth", 20)
    soft = Classifier(Changed(bare(subject), after=lambda logits: logits.softmax(1)))
    options = {"threshold": 1, "attack": "pgd", "eps": EPS}
    found = assert_attack_success_below(soft, inputs, labels, **options)
    assert list(found.record.warnings) == ["softmax output"]
    with pytest.raises(TriGuardFailure, match="is in doubt: softmax output"):
        assert_attack_success_below(soft, inputs, labels, strict=True, **options)


def test_an_attack_of_one_step_is_told_that_more_may_follow():
    found = evaluated("fgsm").record
    assert "at the only step" in found.warnings["loss still rising"]
    assert "an attack of more steps may break them" in found.warnings["loss still rising"]


SOFT = {
    "entropy": (assert_entropy_below, {"threshold": 1.0}),
    "drift": (assert_drift_below, {"threshold": 2.0}),
    "faithful": (assert_faithful, {"attribution": "saliency", "deletion_at_most": 1.0}),
    "agree": (
        assert_explanations_agree,
        {"methods": ("saliency", "gradient_x_input"), "at_least": -1.0},
    ),
    "twin": (assert_passes_sanity_check, {"attribution": "saliency", "at_most": 1.0}),
    "deceived": (
        assert_explanation_robust,
        {
            "attack": "topk",
            "attribution": "saliency",
            "eps": EPS,
            "metric": "spearman",
            "at_least": -1.0,
        },
    ),
    "recall": (
        assert_trigger_recall,
        {"trigger": backdoors.get("badnets", target=0), "at_least": 0.0, "inconclusive": "pass"},
    ),
}


@pytest.mark.parametrize("name", SOFT)
def test_checks_of_explanations_warn_of_probabilities(name):
    subject, inputs, labels = problem("smooth", 12)
    soft = Classifier(Changed(bare(subject), after=lambda logits: logits.softmax(1)))
    assertion, options = SOFT[name]
    labelled = {} if name == "recall" else {"labels": labels}
    found, expected = (
        assertion(each, inputs, **labelled, **options, undefined_at_most=1.0).record.warnings
        for each in (soft, subject)
    )
    assert found.keys() == {"softmax output"}
    assert not expected


def test_strict_is_a_flag():
    with pytest.raises(InputTypeError, match="strict must be True or False, but 1 came"):
        evaluated(strict=1)


def test_warnings_are_part_of_the_record():
    with with_settings():
        evaluated(after=lambda logits: logits.softmax(1), name="soft")
        (record,) = current_session().records.values()
    told = record.to_dict()
    assert list(told["warnings"]) == ["softmax output"]
    assert told["strict"] is False
    assert type(record).from_dict(told) == record
