"""The functions of the verifier: per sample a verdict, or bounds of the logits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pytest_triguard.classifier import Classifier
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.probe import probe
from pytest_triguard.engine.samples import Batch
from pytest_triguard.errors import InputError, InputTypeError, ModelError
from pytest_triguard.running import Run, running
from pytest_triguard.settings import current_settings
from pytest_triguard.validation import describe, flag, one_of
from pytest_triguard.verification.budget import DEFAULT_SECONDS, Budget
from pytest_triguard.verification.budget import parse as parse_budget
from pytest_triguard.verification.cascade import Cascade
from pytest_triguard.verification.certificate import Issuer
from pytest_triguard.verification.faithful import refuse_unfaithful
from pytest_triguard.verification.falsifier import ATTACK_STEPS
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.methods import BOUNDS, FALSIFIERS, Bound, Effort, stages
from pytest_triguard.verification.network import Network
from pytest_triguard.verification.operators import Unsupported
from pytest_triguard.verification.regions import check_box, region
from pytest_triguard.verification.result import (
    Decision,
    SampleVerdict,
    Tally,
    VerificationResult,
)
from pytest_triguard.verification.specification import check_classes, parse

_CHECKED = 4
"""Boxes at whose ends the captured graph is held against the module."""

ARITHMETICS = ("real", "float32")
"""Arithmetics a proof can be had for."""


def verify(
    classifier: Any,
    inputs: Any,
    labels: Any = None,
    *,
    eps: float | Tensor | None,
    norm: str = "linf",
    method: str = "auto",
    specification: Any = None,
    lower: Tensor | None = None,
    upper: Tensor | None = None,
    arithmetic: str = "real",
    budget: float | Budget | None = None,
    certificates: bool = False,
) -> VerificationResult:
    """Prove or falsify, sample by sample, that the prediction holds in a whole region.

    A sample is proven when a sound lower bound of its margin over the region exceeds a stated
    slack; falsified by an input of the region that the module itself was asked about; else unknown,
    or unsupported where the module cannot be bounded. Proofs hold for the exact function of the
    stored weights in real arithmetic; the slack, 1e-5 of the largest logit (at least of 1) for a
    float32 module, is for the rounding of the module that runs. It is not for TF32 or autocast.
    With `arithmetic="float32"` proofs hold for what a float32 module computes itself, in any order
    of summation, and there is no slack.

    Args:
        classifier: The `Classifier`; its exact module is verified.
        inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader.
        labels: `(N,)` int64; brought by the loader where `inputs` is one.
        eps: Radius of the ball in input units, one for all samples or `(N,)`; None with `lower` and
            `upper`. The ball is cut by the classifier's bounds.
        norm: `"linf"`, `"l2"` or `"l1"`; no attack is run in L1.
        method: A name out of `verification.names()`; `"auto"` takes what a bound leaves open to an
            attack, and then to ever tighter and dearer bounds.
        specification: What is to be positive. None: the label's logit minus every other. A class,
            or integers `(N,)`: minus that target's. Numbers `(S, K)`: each row times the logits;
            labels are then not needed and no attack is run. A `TopK(k)`: that the label is among
            the k largest logits.
        lower: `(N, C, H, W)` lower ends of boxes around the inputs, in place of `eps`.
        upper: `(N, C, H, W)` upper ends; no attack is run in boxes.
        arithmetic: `"real"`, or `"float32"` for proofs that hold for the module that rounds, which
            must be a float32 one, with settings under which it is IEEE float32 throughout.
        budget: Seconds per sample, a `Budget`, or None for the session's.
        certificates: Whether the result is to have a certificate for each proof. Those of
            branch and bound hold every part that was bounded.

    Returns:
        Verdicts, margins and counterexamples, sample by sample.

    Raises:
        InputTypeError: If something has the wrong type.
        InputError: If a value is refused.
        ModelError: If the module breaks what a classifier promises.
    """
    settings = current_settings()
    wanted = parse(specification)
    with running(classifier, inputs, labels, needs_labels=wanted.needs_labels) as run:
        _check_counts(
            run, {"eps": eps, "lower": lower, "upper": upper, "specification": wanted.targets}
        )
        tally, verdicts = Tally(), []
        spent = limits(method, settings.budget if budget is None else budget)
        issuer = None
        if flag("certificates", certificates):
            where = region(eps, norm, lower, upper, run.model)
            issuer = Issuer(classifier, run.model, where, wanted, method, spent.steps, arithmetic)
        run.tune(ATTACK_STEPS if set(FALSIFIERS) & set(stages(method)) else 2)
        for decision in verify_stream(
            run.model,
            run.samples if issuer is None else issuer.watched(run.samples),
            eps=eps,
            norm=norm,
            method=method,
            specification=wanted,
            lower=lower,
            upper=upper,
            arithmetic=arithmetic,
            budget=spent,
            seed=settings.seed,
            keep=certificates,
        ):
            tally.add(decision)
            verdicts += decision.verdicts
        result = _gathered(verdicts, tally, run.like, method, arithmetic)
        return result if issuer is None else replace(result, certificates=issuer.issue(verdicts))


def verify_stream(
    model: Model,
    batches: Iterable[Batch],
    *,
    eps: float | Tensor | None,
    norm: str = "linf",
    method: str = "auto",
    specification: Any = None,
    lower: Tensor | None = None,
    upper: Tensor | None = None,
    arithmetic: str = "real",
    budget: float | Budget | None = None,
    seed: int = 0,
    keep: bool = False,
) -> Iterator[Decision]:
    """Verify batches and hand out decisions as they are reached; memory is bounded by the chunk.

    Arguments are checked at once; see `verify` for their meaning.

    Args:
        model: The network, which has been run at least once.
        batches: Labelled samples, read as they are needed; their targets are not looked at.
        eps: Radius; one per sample is looked up by position.
        norm: Norm of the ball.
        method: Name of the method.
        specification: What is to be positive.
        lower: Lower ends of boxes, looked up by position.
        upper: Upper ends of boxes.
        arithmetic: Arithmetic the proofs are to hold for.
        budget: Seconds per sample, or None.
        seed: Seed of the attack.
        keep: Whether verdicts are to hold how a search proved them.

    Returns:
        An iterator over decisions, each with verdicts and with what was spent since the last one;
        a `Tally` adds up the latter.

    Raises:
        InputTypeError: If something has the wrong type.
        InputError: If a value is refused.
    """
    one_of("arithmetic", arithmetic, ARITHMETICS)
    chosen, wanted = stages(method), parse(specification)
    where, spent = region(eps, norm, lower, upper, model), limits(method, budget)
    if model.num_classes is not None:
        check_classes(wanted, model.num_classes)
    rounded = arithmetic == "float32"
    cascade = Cascade(model, chosen, where, wanted, spent, seed, rounded=rounded, keep=keep)
    return cascade.decide(batches)


def limits(method: str, budget: float | Budget | None) -> Budget:
    """Return what a method may spend; a cascade without a budget gets a second per sample.

    Raises:
        InputTypeError: If something has the wrong type.
        InputError: If a value is refused.
    """
    return parse_budget(budget, DEFAULT_SECONDS if len(stages(method)) > 1 else None)


def bounds(classifier: Any, lower: Tensor, upper: Tensor, *, method: str) -> tuple[Tensor, Tensor]:
    """Bound the logits over boxes of inputs.

    Args:
        classifier: The `Classifier`; its exact module is bounded.
        lower: `(N, C, H, W)` lower ends, in the user's space; need not lie inside the bounds.
        upper: `(N, C, H, W)` upper ends.
        method: Name of a bound, such as `"ibp"` or `"crown"`.

    Returns:
        Lower and upper bounds `(N, K)` that hold in real arithmetic, on the device of `lower`, in
        float64 where the classifier's device knows it.

    Raises:
        InputTypeError: If something has the wrong type.
        InputError: If a value is refused.
        ModelError: If the module cannot be bounded; names operator and module path.
    """
    if not isinstance(classifier, Classifier):
        raise InputTypeError(
            f"classifier must be a pytest_triguard.Classifier, but {describe(classifier)} came"
        )
    one_of("method", method, BOUNDS.names())
    check_box(lower, upper)
    if classifier.dtype is not None and {lower.dtype, upper.dtype} != {classifier.dtype}:
        raise InputTypeError(
            f"lower and upper must be {classifier.dtype} like the classifier's parameters, but "
            f"{lower.dtype} and {upper.dtype} came"
        )
    bound = BOUNDS.get(method)
    with torch.inference_mode(False), classifier.prepared() as model:
        lower, upper = (end.clone() if end.is_inference() else end for end in (lower, upper))
        probe(model, lower[:4].to(model.device))
        try:
            parts = _boxed(model, bound, lower, upper)
        except Unsupported as refusal:
            raise ModelError(f"the module cannot be bounded: {refusal}") from None
    low, high = (torch.cat(ends).to(lower.device) for ends in zip(*parts, strict=True))
    return low, high


@torch.no_grad()
def _boxed(model: Model, bound: Bound, lower: Tensor, upper: Tensor) -> list[tuple[Tensor, Tensor]]:
    network = Network(model, lower.dtype)
    parts = []
    ends = torch.cat([lower[:_CHECKED], upper[:_CHECKED]]).to(model.device)
    refuse_unfaithful(network, model, ends)  # and tells how wide the network is
    step = min(model.chunk.rows, bound.samples(network))
    for start in range(0, len(lower), step):
        block = slice(start, start + step)
        low, high = (end[block].to(model.device).to(network.dtype) for end in (lower, upper))
        found = bound.logits(network, Interval(low, high), Effort())
        parts.append((found.lower, found.upper))
    return parts


def _check_counts(run: Run, values: dict[str, Any]) -> None:
    """Refuse per-sample arguments that do not name one value per sample."""
    count = run.samples.count
    for name, value in values.items():
        if isinstance(value, Tensor) and count is not None and value.shape[:1] != (count,):
            raise InputError(
                f"{name} must name one value per sample, {count}, but {describe(value)} came"
            )


def _gathered(
    verdicts: list[SampleVerdict], tally: Tally, like: Tensor, method: str, arithmetic: str
) -> VerificationResult:
    """Join verdicts in the order of the data."""
    verdicts.sort(key=lambda each: each.position)
    examples = like.new_full((len(verdicts), *like.shape[1:]), torch.nan)
    for place, each in enumerate(verdicts):
        if each.counterexample is not None:
            examples[place] = each.counterexample.to(like.device)

    def column(name: str) -> Tensor:
        return torch.tensor([getattr(each, name) for each in verdicts], dtype=torch.float64)

    return VerificationResult(
        status=tuple(each.status for each in verdicts),
        margin=column("margin"),
        slack=column("slack"),
        counterexample=examples,
        stage=tuple(each.stage for each in verdicts),
        reason=tuple(each.reason for each in verdicts),
        stages=tally.stages,
        method=method,
        arithmetic=arithmetic,
    )
