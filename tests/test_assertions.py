"""What holds for every assertion, whatever it measures."""

import contextvars
import dataclasses
import random
import re
import weakref

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pytest_triguard import (
    Classifier,
    Measurement,
    TriGuardFailure,
    assert_accuracy,
    assert_entropy_below,
)
from pytest_triguard.record import Record
from pytest_triguard.settings import current_session
from tests.assertions import every_assertion, gate_problem
from tests.module_state import state_of
from tests.sessions import with_settings

COUNT = 30
CLOSE = {"rel": 1e-9, "abs": 1e-12}


@pytest.fixture
def problem():
    """A network of three classes, samples, and labels of which every fifth is wrong."""
    return gate_problem(COUNT)


def untimed(record):
    """Return a record without what may differ between two evaluations that agree."""
    method = re.sub(r"\bin [\d.e-]+ s\b", "in 0 s", record.method)
    return dataclasses.replace(record, seconds=0.0, chunk=None, reproduce="", method=method)


def plain(value):
    if isinstance(value, dict):
        return all(type(key) is str and plain(each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return all(plain(each) for each in value)
    return value is None or type(value) in (bool, int, float, str)


@every_assertion
def test_it_returns_what_it_measured_and_records_the_same(case, problem):
    with with_settings() as session:
        found = case(*problem)
        (record,) = session.records.values()
    assert isinstance(found, Measurement)
    assert found.values.shape == (COUNT,)
    assert found.values.dtype == np.float64
    assert found.ids == tuple(range(COUNT))
    assert record == found.record
    assert (record.assertion, record.name) == (case.assertion.__name__, case.assertion.__name__)
    for name in ("value", "n", "undefined", "counts", "interval", "parameters", "passes"):
        assert getattr(record, name) == getattr(found, name)
    assert (record.verdict, record.failed, record.threshold) == ("passed", False, case.passing)
    assert record.seconds > 0
    assert record.classifier == problem[0].fingerprint()


@every_assertion
def test_a_check_that_does_not_pass_raises_and_is_recorded(case, problem):
    with with_settings() as session:
        with pytest.raises(TriGuardFailure) as caught:
            case(*problem, threshold=case.failing)
        (record,) = session.records.values()
    assert record is caught.value.record
    assert (record.verdict, record.failed) == ("failed", True)
    assert record.worst
    assert len(str(caught.value).splitlines()) < 20


@every_assertion
def test_all_that_is_recorded_is_plain(case, problem):
    with pytest.raises(TriGuardFailure) as caught:
        case(*problem, threshold=case.failing, ids=[np.int64(3 * place) for place in range(COUNT)])
    record = caught.value.record
    assert plain(record.to_dict())
    assert Record.from_dict(record.to_dict()) == record
    assert {type(each["id"]) for each in record.worst} == {int}


@every_assertion
def test_labels_of_a_loader_are_as_good_as_tensors(case, problem):
    subject, inputs, labels = problem
    with with_settings():
        tensors = case(subject, inputs, labels, name="a")
    for batch_size, workers in ((7, 0), (COUNT, 0)):
        loader = DataLoader(TensorDataset(inputs, labels), batch_size, num_workers=workers)
        with with_settings():
            streamed = case(subject, loader, name="a")
        np.testing.assert_array_equal(streamed.values, tensors.values)
        records = [untimed(dataclasses.replace(each.record)) for each in (streamed, tensors)]
        if case.labels != "none":
            assert records[0] == records[1]
    with with_settings():
        from_dataset = case(subject, TensorDataset(inputs, labels))
    np.testing.assert_array_equal(from_dataset.values, tensors.values)


@every_assertion
def test_results_do_not_depend_on_the_chunk(case, problem):
    with with_settings(chunk=COUNT):
        whole = case(*problem)
    for chunk in (1, 7):
        with with_settings(chunk=chunk):
            found = case(*problem)
        np.testing.assert_allclose(found.values, whole.values, rtol=1e-9, atol=1e-12)
        assert found.value == pytest.approx(whole.value, **CLOSE)
        assert (found.counts, found.passes) == (whole.counts, whole.passes)
        assert found.record.chunk == chunk


@every_assertion
def test_results_go_with_the_ids_and_not_with_the_order(case, problem):
    subject, inputs, labels = problem
    ids = [f"img/{place:03d}.png" for place in range(COUNT)]
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0)).tolist()
    found = case(subject, inputs, labels, ids=ids)
    shuffled = case(subject, inputs[order], labels[order], ids=[ids[place] for place in order])
    assert found.ids == tuple(ids)
    assert shuffled.ids == tuple(ids[place] for place in order)
    np.testing.assert_allclose(shuffled.values, found.values[order], rtol=1e-9, atol=1e-12)
    with pytest.raises(TriGuardFailure) as caught:
        case(subject, inputs, labels, ids=ids, threshold=case.failing)
    assert all(each["id"] in ids for each in caught.value.record.worst)


@every_assertion
def test_a_subset_gives_the_values_it_has_in_the_whole(case, problem):
    subject, inputs, labels = problem
    whole = case(subject, inputs, labels, name="whole")
    chosen = {}
    for seed in (0, 1):
        with with_settings(samples=12, seed=seed):
            found = case(subject, inputs, labels, seed=seed)
            again = case(subject, TensorDataset(inputs, labels), seed=seed, name="again")
        assert len(found.values) == 12
        assert sorted(found.ids) == list(found.ids)
        assert again.ids == found.ids
        np.testing.assert_array_equal(again.values, found.values)
        if seed == 0:
            expected = whole.values[list(found.ids)]
            np.testing.assert_allclose(found.values, expected, rtol=1e-9, atol=1e-12)
        chosen[seed] = found.ids
    assert chosen[0] != chosen[1]


@every_assertion
@pytest.mark.parametrize("outcome", ["passes", "fails", "is refused", "is interrupted"])
def test_the_module_is_left_as_it_came(case, problem, outcome):
    subject, inputs, labels = problem
    subject.module.train()
    subject.module[-1].bias.requires_grad_(False)
    random.seed(1)
    before = state_of(subject.module)
    if outcome == "passes":
        case(subject, inputs, labels)
    elif outcome == "fails":
        with pytest.raises(TriGuardFailure):
            case(subject, inputs, labels, threshold=case.failing)
    elif outcome == "is refused":
        broken = torch.cat([inputs] * 10)
        broken[290, 0, 0, 0] = torch.nan
        with pytest.raises(ValueError, match=r"^inputs must be finite, but sample 290 holds NaN"):
            case(subject, broken, torch.cat([labels] * 10))
    else:
        with pytest.raises(KeyboardInterrupt):
            case(subject, Interrupted(inputs, labels))
    assert state_of(subject.module) == before


class Interrupted(Dataset):
    """Is interrupted when its last sample is read."""

    def __init__(self, inputs, labels):
        self.inputs, self.labels = torch.cat([inputs] * 9), torch.cat([labels] * 9)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, place):
        if place == len(self) - 1:
            raise KeyboardInterrupt
        return self.inputs[place], self.labels[place]


@every_assertion
def test_it_works_outside_pytest(case, problem):
    """Nothing is recorded there, and the failure tells how to get the same numbers."""

    def outside():
        assert current_session() is None
        found = case(*problem, name="mine")
        with pytest.raises(TriGuardFailure, match=r"\n  reproduce run again with seed 0") as caught:
            case(*problem, threshold=case.failing)
        return found.record, caught.value.record

    passed, failed = contextvars.Context().run(outside)
    assert (passed.nodeid, passed.name) == ("", "mine")
    assert (failed.nodeid, failed.name) == ("", case.assertion.__name__)


@every_assertion
def test_what_the_session_asks_for_is_done_and_recorded(case, problem):
    with with_settings(seed=5, chunk=8, device="cpu", confidence=0.9, inconclusive="pass"):
        found = case(*problem)
    record = found.record
    assert (record.seed, record.chunk, record.device) == (5, 8, "cpu")
    assert record.claim == "population"
    assert record.confidence == (None if record.interval is None else 0.9)


@every_assertion
def test_an_argument_goes_before_the_session(case, problem):
    with with_settings(seed=5, confidence=0.9, inconclusive="pass"):
        found = case(*problem, seed=6, confidence=False)
        assert (found.record.seed, found.record.claim) == (6, "sample")
        other = case(*problem, confidence=0.5, name="other")
        assert other.record.claim == "population"
    if found.interval is not None:
        shown = 0.95  # a sample claim shows it and does not judge by it
        assert (found.record.confidence, other.record.confidence) == (shown, 0.5)


@pytest.fixture
def rated():
    """Return accuracy checks with so many right samples of so many."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False, dtype=torch.float64))
    with torch.no_grad():
        network[1].weight.copy_(torch.eye(2))
    inputs = torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 1, 1, 2)

    def check(right, count, at_least, **options):
        labels = (torch.arange(count) >= right).long()
        data = inputs.expand(count, -1, -1, -1)
        return assert_accuracy(Classifier(network), data, labels, at_least=at_least, **options)

    return check


def test_at_least_includes_the_threshold(rated):
    assert rated(45, 50, 0.9).record.verdict == "passed"
    with pytest.raises(TriGuardFailure, match=r"^accuracy 0.880 \(44/50\) is not >= 0.9\n"):
        rated(44, 50, 0.9)


def test_below_excludes_the_threshold(problem):
    subject, inputs, labels = problem
    options = {"labels": labels, "attribution": "saliency"}
    value = assert_entropy_below(subject, inputs, 1.0, **options, name="a").value
    with pytest.raises(TriGuardFailure, match=r"is not <\n  0\.\d{8}"):
        assert_entropy_below(subject, inputs, value, **options, name="b")
    above = np.nextafter(value, 2.0)
    assert assert_entropy_below(subject, inputs, above, **options, name="c").value == value


def test_a_population_claim_takes_the_whole_interval(rated):
    """0.95 of 100 samples: from 0.887 to 0.984 by Clopper and Pearson."""
    assert rated(95, 100, 0.94).record.claim == "sample"
    assert rated(95, 100, 0.88, confidence=0.95).record.verdict == "passed"
    with pytest.raises(TriGuardFailure, match=r"^accuracy 0.950 \(95/100\) is not") as caught:
        rated(95, 100, 0.99, confidence=0.95)
    assert caught.value.record.verdict == "failed"
    with pytest.raises(TriGuardFailure, match=r"^inconclusive: accuracy") as caught:
        rated(95, 100, 0.94, confidence=0.95)
    record = caught.value.record
    assert (record.verdict, record.failed) == ("inconclusive", True)
    assert record.interval == pytest.approx((0.8872, 0.9836), abs=1e-4)
    assert record.samples_needed > 100


def test_an_inconclusive_check_passes_only_if_asked_to(rated):
    undecided = {"confidence": 0.95}
    for settings, options in (
        ({}, {"inconclusive": "pass"}),
        ({"inconclusive": "pass"}, {}),
    ):
        with with_settings(**settings):
            found = rated(95, 100, 0.94, **undecided, **options)
        assert (found.record.verdict, found.record.failed) == ("inconclusive", False)
    with with_settings(inconclusive="pass"), pytest.raises(TriGuardFailure):
        rated(95, 100, 0.94, **undecided, inconclusive="fail")


def test_a_failed_check_fails_even_where_inconclusive_ones_pass(rated):
    with pytest.raises(TriGuardFailure):
        rated(10, 100, 0.94, confidence=0.95, inconclusive="pass")


def test_no_confidence_takes_back_that_of_the_session(rated):
    with with_settings(confidence=0.95):
        with pytest.raises(TriGuardFailure, match=r"^inconclusive"):
            rated(95, 100, 0.94)
        assert rated(95, 100, 0.94, confidence=False).record.claim == "sample"


class TestNames:
    def test_they_are_the_assertion_with_its_ordinal_in_the_test(self, rated):
        with with_settings() as session:
            rated(1, 1, 0.5)
            assert list(session.records) == ["assert_accuracy"]

    def test_each_place_in_the_test_has_its_own(self, problem):
        subject, inputs, labels = problem
        with with_settings() as session:
            assert_accuracy(subject, inputs, labels, at_least=0)
            assert_accuracy(subject, inputs, labels, at_least=0.1)
            for _ in range(2):
                a = assert_accuracy(subject, inputs, labels, at_least=0.2)
            assert_accuracy(subject, inputs, labels, at_least=0, name="mine")
            assert_accuracy(
                subject,
                inputs,
                labels,
                at_least=0.3,
            )
        assert a.record.name == "assert_accuracy-3"
        found = {name: each.evaluations for name, each in session.records.items()}
        assert found == {
            "assert_accuracy": 1,
            "assert_accuracy-2": 1,
            "assert_accuracy-3": 2,
            "mine": 1,
            "assert_accuracy-4": 1,
        }

    def test_two_on_one_line_are_two(self, problem):
        with with_settings() as session:
            _ = [assert_accuracy(*problem, at_least=0), assert_accuracy(*problem, at_least=0)]
        assert list(session.records) == ["assert_accuracy", "assert_accuracy-2"]

    def test_a_loop_keeps_the_worst_and_the_count(self, problem):
        subject, inputs, labels = problem
        shares = []
        with with_settings() as session:
            for count in (30, 6, 12):
                found = assert_accuracy(subject, inputs[:count], labels[:count], at_least=0)
                shares.append(found.value)
        (record,) = session.records.values()
        assert record.evaluations == 3
        assert record.value == min(shares) < max(shares)

    def test_examples_of_a_property_are_evaluations_of_one_check(self, problem):
        subject, inputs, labels = problem

        @hypothesis.settings(max_examples=5, derandomize=True, database=None)
        @hypothesis.given(st.integers(min_value=1, max_value=COUNT))
        def holds(count):
            assert_accuracy(subject, inputs[:count], labels[:count], at_least=0)

        with with_settings() as session:
            holds()
        assert [record.evaluations for record in session.records.values()] == [5]

    def test_the_same_name_in_a_loop_is_the_same_check(self, problem):
        with with_settings() as session:
            for _ in range(3):
                assert_accuracy(*problem, at_least=0, name="swept")
        assert session.records["swept"].evaluations == 3

    def test_the_same_name_elsewhere_is_refused(self, problem):
        with with_settings() as session:
            assert_accuracy(*problem, at_least=0, name="gate")
            with pytest.raises(ValueError, match=r"^name must be unique in a test, but a second"):
                assert_accuracy(*problem, at_least=0, name="gate")
            assert session.records["gate"].evaluations == 1

    def test_a_default_does_not_take_the_name_of_a_fixtures_check(self, problem):
        """A rerun starts with the records that wider fixtures have made."""
        with with_settings() as session:
            made = assert_accuracy(*problem, at_least=0).record
        with with_settings() as session:
            session.records[made.name] = made
            assert_accuracy(*problem, at_least=0)
        assert list(session.records) == ["assert_accuracy", "assert_accuracy-2"]


class Alive:
    """Collates batches, and counts how many of them are alive at once.

    A tensor made from an array keeps it alive as long as any view of the tensor's memory lives.
    """

    def __init__(self):
        self.now = self.most = 0

    def __call__(self, items):
        array = np.stack([image.numpy() for image, _ in items])
        self.now += 1
        self.most = max(self.most, self.now)
        weakref.finalize(array, self.forget)
        return torch.from_numpy(array), torch.stack([label for _, label in items])

    def forget(self):
        self.now -= 1


@every_assertion
def test_a_loader_is_never_held_as_a_whole(case, problem):
    """Of 60 batches of 5 samples, a chunk of 10 needs two or three at a time."""
    subject, inputs, labels = problem
    data = TensorDataset(torch.cat([inputs] * 10), torch.cat([labels] * 10))
    alive = Alive()
    with with_settings(chunk=10):
        found = case(subject, DataLoader(data, batch_size=5, collate_fn=alive))
    assert len(found.values) == 10 * COUNT
    assert alive.most <= 6
    assert alive.now == 0
