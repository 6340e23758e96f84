"""The verifier's bounds of several digits at once, against the same digits one by one."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.peers import NETWORKS, Problem
from tests.benchmarks.plan import Plan
from tests.benchmarks.table import Row
from tests.benchmarks.timing import pairs

METHODS = ("ibp", "crown_ibp", "crown", "alpha_crown", "branch_and_bound")


def measure(plan: Plan) -> Iterator[Row]:
    """Yield the time of a batch over that of its digits one by one, for each method."""
    for name in NETWORKS:
        for method in METHODS:
            yield _row(plan, name, method)


def _row(plan: Plan, name: str, method: str) -> Row:
    problem = Problem(name, method)
    for step in (None, 1):
        problem.ours(step)
    turns = plan.pairs if method in ("ibp", "crown_ibp") else 1
    found = pairs(problem.ours, lambda: problem.ours(1), turns)
    return Row(
        f"{method}, {name} network, {len(problem.inputs)} digits: time of the batch / one by one",
        found.clock,
        "<= 1.1",
        found.processor,
        f"{found.first * 1e3:.0f} ms against {found.second * 1e3:.0f} ms",
    )
