"""On an accelerator: the host's verdicts, and one look at the outcome per block."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from pytest_triguard import verification
from pytest_triguard.running import running
from pytest_triguard.settings import Session, Settings, use_session
from pytest_triguard.verification import Budget
from pytest_triguard.verification.network import Network
from tests.simulated_accelerator import simulated_accelerator
from tests.verification.zoo import ZOO, problem


def on_device(chunk=8):
    return use_session(Session(settings=Settings(device="sim", chunk=chunk)))


@contextmanager
def in_float64():
    """Bound in float64 at once, as on a device whose float32 is not known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "own", property(lambda network: network))
        yield


def agree(name, count, chunk, **arguments):
    """Ask the host and the simulated accelerator the same; the answers are the same."""
    subject, inputs, labels = problem(name, count, dtype=torch.float32)
    with use_session(Session(settings=Settings(chunk=chunk))), in_float64():
        expected = verification.verify(subject, inputs, labels, **arguments)
    with simulated_accelerator(), on_device(chunk):
        result = verification.verify(subject, inputs, labels, **arguments)
    assert result.status == expected.status
    assert result.stage == expected.stage
    assert torch.allclose(result.margin, expected.margin, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "norm"), [("mlp", "linf"), ("mlp", "l2"), ("pools", "l2"), ("residual", "linf")]
)
def test_verdicts_of_all_stages_are_those_of_the_host(name, norm):
    """Branch and bound is given domains instead of time."""
    agree(name, 8, 5, eps=0.03, norm=norm, budget=Budget(domains=3, steps=3))


@pytest.mark.parametrize("name", ZOO)
def test_lines_of_every_operator_are_those_of_the_host(name):
    agree(name, 3, 3, eps=0.03, method="crown")


def test_slopes_that_ascend_end_where_those_of_the_host_do():
    agree("attention", 2, 2, eps=0.03, method="alpha_crown", budget=Budget(steps=1))


@pytest.mark.parametrize("name", ZOO)
def test_without_float64_bounds_are_looser_and_hold(name):
    subject, inputs, labels = problem(name, 6, dtype=torch.float32)
    with in_float64():
        expected = verification.verify(subject, inputs, labels, eps=0.01, method="ibp")
    with simulated_accelerator(float64=False), on_device():
        result = verification.verify(subject, inputs, labels, eps=0.01, method="ibp")
    assert (result.margin <= expected.margin).all()
    assert torch.allclose(result.margin, expected.margin, atol=0.05)


def test_each_block_is_looked_at_once():
    subject, inputs, labels = problem("residual", 32, dtype=torch.float32)
    reads = []
    for count in (16, 32):
        with simulated_accelerator() as sim, on_device():
            with running(subject, inputs[:count], labels[:count]) as run:
                stream = verification.verify_stream(run.model, run.samples, eps=0.01, method="ibp")
                next(stream)
                sim.reset()
                list(stream)
            reads.append([read for read in sim.host_reads if read != "equal"])
    assert len(reads[1]) - len(reads[0]) == (32 - 16) // 8
