"""The frame of every assertion: its record says how it was judged and how to get it again."""

import enum

import numpy as np
import pytest
import torch
from torch import nn

from pytest_triguard import (
    Classifier,
    TriGuardFailure,
    assert_accuracy,
    assert_entropy_below,
    assert_robust,
    attacks,
)
from pytest_triguard.settings import Session, Settings, use_session

COUNT = 4
X = torch.rand(COUNT, 1, 2, 2, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 0, 1])


@pytest.fixture
def subject():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "pytest test_gate.py::test_it --triguard-seed=0 --triguard-chunk=64"),
        ({"chunk": 2}, "pytest test_gate.py::test_it --triguard-seed=0"),
    ],
)
def test_the_command_names_the_chunk_once(subject, settings, expected):
    """The command of a session carries a chunk that was given to it."""
    command = "pytest test_gate.py::test_it --triguard-seed=0"
    with use_session(Session(settings=Settings(**settings), command=command)):
        found = assert_accuracy(subject, X, Y, at_least=0)
    assert found.record.reproduce == expected


def test_the_node_id_is_that_of_the_session(subject):
    with use_session(Session(nodeid="test_gate.py::test_it")):
        found = assert_accuracy(subject, X, Y, at_least=0)
    assert found.record.nodeid == "test_gate.py::test_it"


def test_the_data_and_the_weights_have_fingerprints(subject):
    first = assert_accuracy(subject, X, Y, at_least=0, name="a").record
    again = assert_accuracy(subject, X.clone(), Y.clone(), at_least=0, name="b").record
    other = assert_accuracy(subject, X, 1 - Y, at_least=0, name="c").record
    assert first.data == again.data != other.data
    assert first.classifier == again.classifier == other.classifier
    with torch.no_grad():
        subject.module[1].bias.add_(1)
    moved = assert_accuracy(subject, X, Y, at_least=0, name="d").record
    assert moved.classifier != first.classifier
    assert moved.data == first.data


class Gate(enum.StrEnum):
    NAME = "half"


def test_numbers_of_numpy_and_names_of_enumerations_are_recorded_as_plain_values(subject):
    pgd = attacks.get("pgd", eps=0.1, steps=np.int64(2), step_size=np.float64(0.1))
    with use_session(Session()):
        found = assert_robust(subject, X, Y, eps=0.1, at_least=0, attack=pgd, name=Gate.NAME)
        spread = assert_entropy_below(
            subject, X, 1, attribution=np.str_("saliency"), statistic=np.str_("median")
        )
    assert type(found.record.name) is str
    assert found.record.name == "half"
    asked = [found.record.parameters[key] for key in ("steps", "step_size")]
    assert [(type(each), each) for each in asked] == [(int, 2), (float, 0.1)]
    assert type(spread.record.parameters["statistic"]) is str


def test_saving_counterexamples_is_not_counted_as_cost(subject, tmp_path):
    def failed(**settings):
        with (
            use_session(Session(settings=Settings(**settings))),
            pytest.raises(TriGuardFailure) as caught,
        ):
            assert_robust(subject, X, Y, eps=0.9, at_least=1)
        return caught.value.record

    with_files, without = failed(artifacts=tmp_path), failed()
    assert with_files.artifacts
    assert with_files.passes == without.passes


def test_a_folder_that_cannot_be_made_does_not_hide_the_verdict(subject, tmp_path):
    (tmp_path / "file").write_text("")
    settings = Settings(artifacts=tmp_path / "file" / "folder")
    with (
        use_session(Session(settings=settings)) as session,
        pytest.warns(UserWarning, match="counterexamples could not be saved"),
        pytest.raises(TriGuardFailure, match=r"^robust accuracy"),
    ):
        assert_robust(subject, X, Y, eps=0.9, at_least=1)
    (record,) = session.records.values()
    assert record.artifacts == []


@pytest.mark.filterwarnings("error")
def test_nor_does_it_where_warnings_are_errors(subject, tmp_path):
    (tmp_path / "file").write_text("")
    with (
        use_session(Session(settings=Settings(artifacts=tmp_path / "file"))) as session,
        pytest.raises(TriGuardFailure, match=r"^robust accuracy"),
    ):
        assert_robust(subject, X, Y, eps=0.9, at_least=1)
    assert len(session.records) == 1
