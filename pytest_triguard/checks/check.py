"""The frame of every assertion: settings resolved, data read, gate judged, record kept."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict, get_args

from pytest_triguard.checks.artifacts import (
    save_certificates,
    save_counterexamples,
    save_picture,
)
from pytest_triguard.checks.callsite import call_site
from pytest_triguard.checks.compared import compared, is_drawn, per_sample
from pytest_triguard.checks.finding import Finding, plain_value
from pytest_triguard.checks.pictured import picture_of_worst
from pytest_triguard.classifier import Classifier
from pytest_triguard.comparison import Allowance, parse_max_regression
from pytest_triguard.errors import (
    InputError,
    InputTypeError,
    TriGuardFailure,
    TriGuardWarning,
    nearest,
)
from pytest_triguard.gate import (
    Decision,
    check_confidence,
    check_fraction,
    check_statistic,
    gate_rate,
    gate_statistic,
)
from pytest_triguard.measurement import Measurement
from pytest_triguard.record import Record, Relation, Verdict
from pytest_triguard.reporting.message import also, failure_message
from pytest_triguard.running import Run, running
from pytest_triguard.settings import (
    Inconclusive,
    Session,
    Settings,
    current_session,
)
from pytest_triguard.validation import describe, one_of, whole

_CLASSES = ("label", "predicted", "class", "without the trigger")
"""What is known of a worst sample and is a class."""


class CheckOptions(TypedDict, total=False):
    """Keyword arguments that every assertion takes.

    Attributes:
        name: Name of the check in its test; default: the assertion's, with its ordinal.
        confidence: Two-sided confidence of a population claim, in (0, 1); False for a sample
            claim; None for the marker's, the command line's or the ini file's.
        inconclusive: `"fail"` or `"pass"`, what becomes of an inconclusive check.
        undefined_at_most: Largest share of undefined samples that still lets the gate decide.
        max_regression: Largest change for the worse against the baseline: a number, or a
            percentage of the baseline's value such as `"2%"`; None for 0. Needs a baseline.
        seed: Seed of every random draw; None for the session's.
        ids: One unique id per sample, for reports, draws and baselines; default: its place.
    """

    name: str | None
    confidence: float | Literal[False] | None
    inconclusive: Inconclusive | None
    undefined_at_most: float
    max_regression: float | str | None
    seed: int | None
    ids: Sequence[Hashable] | None


@dataclass(kw_only=True)
class Check:
    """One evaluation of one assertion, and the test that it began in, if any."""

    session: Session | None
    assertion: str
    name: str
    settings: Settings
    confidence: float | None
    inconclusive: Inconclusive
    undefined_at_most: float
    seed: int
    ids: Sequence[Hashable] | None
    allowance: Allowance
    started: float = field(default_factory=time.perf_counter)
    held: tuple[Classifier, Run] | None = None

    @property
    def saves(self) -> bool:
        """Whether there is a test whose artifacts are saved."""
        return self.session is not None and self.settings.artifacts is not None

    @classmethod
    def begin(cls, assertion: Callable[..., Measurement], options: CheckOptions) -> Check:
        """Resolve the options of a call: argument, then marker, command line, ini, default.

        Raises:
            InputTypeError: If an option is unknown, then the nearest name is shown, or one has
                the wrong type.
            InputError: If a value is refused.
        """
        _refuse_unknown(assertion, options)
        session = current_session()
        settings = Settings() if session is None else session.settings
        allowance = _allowance(options.get("max_regression"), session)
        name = options.get("name")
        if name is not None and (not isinstance(name, str) or not name.strip()):
            raise InputTypeError(f"name must be a non-empty string, but {describe(name)} came")
        name = plain_value(name)
        confidence = _given(options.get("confidence"), settings.confidence)
        inconclusive = _given(options.get("inconclusive"), settings.inconclusive)
        one_of("inconclusive", inconclusive, get_args(Inconclusive))
        undefined_at_most = options.get("undefined_at_most", 0.05)
        title = assertion.__name__
        return cls(
            session=session,
            assertion=title,
            settings=settings,
            confidence=check_confidence(confidence),
            inconclusive=inconclusive,
            undefined_at_most=check_fraction("undefined_at_most", undefined_at_most),
            seed=whole("seed", _given(options.get("seed"), settings.seed)),
            ids=options.get("ids"),
            allowance=allowance,
            name=session.check_name(name, title, call_site()) if session else name or title,
        )

    def check_statistic(self, statistic: Any) -> str:
        """Return the name of a statistic, if the check can be judged by it.

        Raises:
            InputTypeError: If it is no name.
            InputError: If the name is unknown, or no interval fits it.
        """
        return check_statistic(plain_value(statistic), self.confidence).name

    @contextmanager
    def running(
        self,
        classifier: Any,
        inputs: Any,
        labels: Any = None,
        *,
        needs_labels: bool = False,
        may_draw: bool = False,
    ) -> Iterator[Run]:
        """Hold classifier and data ready; see `running.running`."""
        with running(
            classifier,
            inputs,
            labels,
            ids=self.ids,
            samples=self.settings.samples,
            seed=self.seed,
            needs_labels=needs_labels,
            may_draw=may_draw,
            hashed=True,
        ) as run:
            self.held = classifier, run
            yield run

    def rate(
        self, finding: Finding, relation: Relation, threshold: float, *, strict: bool = False
    ) -> Measurement:
        """Judge a rate, keep its record, and raise if the check does not pass.

        Args:
            finding: What was measured.
            relation: How it is held against the threshold.
            threshold: The threshold.
            strict: Whether a warning fails the check.
        """
        __tracebackhide__ = True
        self.allowance.require_below_one()
        known = finding.values[finding.values == finding.values]
        successes = int(known.sum())
        decision = gate_rate(
            successes=successes,
            failures=len(known) - successes,
            n=len(known) + finding.unknown,
            relation=relation,
            threshold=threshold,
            confidence=self.confidence,
            undefined=finding.undefined,
            undefined_at_most=self.undefined_at_most,
        )
        return self._conclude(finding, decision, relation, threshold, strict=strict)

    def statistic(
        self, finding: Finding, relation: Relation, threshold: float, statistic: str
    ) -> Measurement:
        """Judge a statistic of the values, keep its record, and raise if it does not pass."""
        __tracebackhide__ = True
        decision = gate_statistic(
            values=finding.values[finding.values == finding.values],
            statistic=statistic,
            relation=relation,
            threshold=threshold,
            confidence=self.confidence,
            undefined=finding.undefined,
            undefined_at_most=self.undefined_at_most,
            seed=self.seed,
        )
        finding.metric = f"{statistic} {finding.metric}"
        finding.parameters |= {"statistic": statistic}
        finding.statistic = statistic
        return self._conclude(finding, decision, relation, threshold)

    def statistics(
        self, gates: Sequence[tuple[str, Finding, Relation, float]], statistic: str
    ) -> Measurement:
        """Judge several findings of one measurement, each as a check of its own.

        Args:
            gates: What each is called beside the name of the check, its finding, relation and
                threshold; a single one bears the name of the check alone.
            statistic: Statistic of the values that is judged.

        Returns:
            The measurement of the first.

        Raises:
            TriGuardFailure: The first failure, once all are judged and recorded; it names the rest.
        """
        __tracebackhide__ = True
        measured: list[Measurement] = []
        failures: list[TriGuardFailure] = []
        for part, finding, relation, threshold in gates:
            own = self if len(gates) == 1 else replace(self, name=f"{self.name}, {part}")
            try:
                measured.append(own.statistic(finding, relation, threshold, statistic))
            except TriGuardFailure as failure:
                failures.append(failure)
        if failures:
            first, *others = failures
            told = [str(first), *(also(each.record) for each in others)]
            raise TriGuardFailure("\n".join(told), first.record)
        return measured[0]

    def _conclude(
        self,
        finding: Finding,
        decision: Decision,
        relation: Relation,
        threshold: float,
        *,
        strict: bool = False,
    ) -> Measurement:
        __tracebackhide__ = True
        if not decision.n and not decision.undefined:
            decision = replace(decision, reason=f"none of {len(finding.values)} samples counts")
        # In a thread, another test may run by now.
        session = self.session
        record = _doubted(self._record(finding, decision, relation, threshold), strict=strict)
        lost: TriGuardWarning | None = None
        if session is not None:
            record = self._against_baseline(record, finding, session)
            if session.rivals is not None and not is_drawn():
                record = replace(record, compared=session.rivals, per_sample=per_sample(finding))
            try:
                # A file belongs to the evaluation that is kept, not to every one of a loop.
                if session.keeps(record):
                    record = replace(record, artifacts=self._artifacts(finding, record))
            except TriGuardWarning as warning:  # where warnings are errors
                if not record.failed:  # else it is the failed check that its reader is to see
                    raise
                lost = warning
            finally:
                session.add(record)
        if record.failed:
            failure = TriGuardFailure(failure_message(record), record)
            if lost is not None:
                failure.add_note(str(lost))
            raise failure
        return Measurement(
            values=finding.values,
            value=decision.value,
            interval=decision.interval,
            n=decision.n,
            undefined=decision.undefined,
            counts=dict(finding.counts),
            parameters=dict(finding.parameters),
            passes=dict(record.passes),
            ids=tuple(finding.ids),
            record=record,
        )

    def _record(
        self, finding: Finding, decision: Decision, relation: Relation, threshold: float
    ) -> Record:
        classifier, run = self._held()
        session, verdict = self.session, decision.verdict
        tolerated = verdict is Verdict.INCONCLUSIVE and self.inconclusive == "pass"
        return Record(
            nodeid=session.nodeid if session else "",
            name=self.name,
            assertion=self.assertion,
            metric=finding.metric,
            value=decision.value,
            relation=relation,
            threshold=threshold,
            verdict=verdict,
            failed=verdict is not Verdict.PASSED and not tolerated,
            n=decision.n,
            undefined=decision.undefined,
            counts=finding.counts,
            interval=decision.interval,
            confidence=decision.confidence if decision.interval is not None else None,
            claim=decision.claim,
            reason=decision.reason,
            samples_needed=decision.samples_needed,
            subject=finding.subject,
            method=finding.method,
            parameters=plain_value(finding.parameters),
            diagnostics=finding.diagnostics,
            warnings=finding.warnings,
            classifier=classifier.fingerprint(),
            data=run.samples.fingerprint,
            passes=run.model.passes.to_dict(),
            seconds=round(time.perf_counter() - self.started, 6),
            worst=[_with_class_names(each, classifier.classes) for each in finding.worst],
            device=str(run.model.device),
            seed=self.seed,
            chunk=run.model.chunk.used,
            reproduce=self._reproduce(run),
        )

    def _against_baseline(self, record: Record, finding: Finding, session: Session) -> Record:
        """Compare a check with its baseline, or keep what a new one needs.

        A check of drawn inputs is about other samples in every run, and has no baseline.
        """
        if is_drawn():
            return record
        compares = self.settings.update or session.baselines is not None
        if compares and record.name in session.records:
            raise InputError(
                f"the check {record.name!r} was made twice in one test, but has one baseline: give "
                "each a name, such as name=f'eps {eps}'"
            )
        if self.settings.update:
            passed = record.gate is Verdict.PASSED and not record.doubted
            return replace(record, per_sample=per_sample(finding)) if passed else record
        if session.baselines is None:
            return record
        return compared(
            record,
            finding,
            session.baselines,
            allowance=self.allowance,
            confidence=self.confidence,
            tolerated=self.inconclusive == "pass",
            update=f"{session.command} --triguard-update",
        )

    def _held(self) -> tuple[Classifier, Run]:
        if self.held is None:
            raise RuntimeError("a check is judged while its classifier is held ready")
        return self.held

    def _artifacts(self, finding: Finding, record: Record) -> list[str]:
        folder, (_, run) = self.settings.artifacts, self._held()
        if folder is None:
            return []
        key, saved = (folder, record.nodeid, self.name), []
        if record.failed:
            with run.model.passes.uncounted():  # another check of the same maps may follow
                saved.append(save_counterexamples(*key, finding.counterexamples(), run.model))
                saved.append(save_picture(*key, picture_of_worst(run, finding)))
        saved.append(save_certificates(*key, finding.certificates))
        return [str(path) for path in saved if path is not None]

    def _reproduce(self, run: Run) -> str:
        session, chunk = self.session, run.model.chunk.used
        if session is not None and session.command:
            pinned = chunk is None or chunk == self.settings.chunk
            return session.command + ("" if pinned else f" --triguard-chunk={chunk}")
        return f"run again with seed {self.seed}" + (f" and chunks of {chunk}" if chunk else "")


def _doubted(record: Record, *, strict: bool) -> Record:
    """Return the record of a check that warnings fail, where that was asked for."""
    record = replace(record, strict=strict)
    return replace(record, verdict=Verdict.FAILED, failed=True) if record.doubted else record


def _refuse_unknown(assertion: Callable[..., Measurement], options: CheckOptions) -> None:
    shared = CheckOptions.__annotations__
    for key in options.keys() - shared.keys():
        own = inspect.signature(assertion).parameters
        hint = nearest(key, [*own, *shared])
        raise InputTypeError(
            f"{assertion.__name__}() takes no argument {key!r}{hint} "
            f"(shared by all assertions: {', '.join(shared)})"
        )


def _allowance(max_regression: Any, session: Session | None) -> Allowance:
    """Return how much worse than its baseline a check may be."""
    if max_regression is None:
        return Allowance()
    if session is None or (session.baselines is None and not session.settings.update):
        raise InputError(
            "max_regression needs a baseline to compare with, but none is configured: name its "
            "folder with --triguard-baseline=DIR or the ini key triguard_baseline"
        )
    if is_drawn():
        raise InputError(
            "max_regression needs a baseline to compare with, but inputs that hypothesis draws "
            "have none: leave it out"
        )
    return parse_max_regression(max_regression)


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _with_class_names(sample: dict[str, Any], classes: tuple[str, ...] | None) -> dict[str, Any]:
    """Add the names of the classes to what is known of a sample; digits need no name."""
    names = dict(enumerate(classes or ()))
    numbers = {key: sample[key] for key in _CLASSES if key in sample}
    return sample | {
        f"{key} name": names[number]
        for key, number in numbers.items()
        if names.get(number, str(number)) != str(number)
    }
