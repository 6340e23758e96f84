"""What the plugin costs a run that does not use it, and what a check costs beside its measuring."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.plan import Plan
from tests.benchmarks.table import Row
from tests.benchmarks.timing import Ratio

OTHERS = ("randomly", "rerunfailures", "timeout", "html", "html_fixtures", "metadata", "xdist")
COUNTS = (250, 500, 1000)
SUITE_SECONDS = 60.0

_CHECK = '''
"""Checks that measure nothing and leave as full a record as a failed real one."""

import pytest
from pytest_triguard.record import Record
from pytest_triguard.settings import current_session

WORST = [{"id": each, "label": 1, "predicted": 2, "logit lead": 0.1 + each} for each in range(5)]

def check():
    session = current_session()
    session.add(Record(nodeid=session.nodeid, name="check", assertion="assert_robust",
        metric="robust accuracy", value=0.964, relation=">=", threshold=0.9, verdict="passed",
        failed=False, n=500, undefined=0, claim="sample", interval=(0.94, 0.98), confidence=0.95,
        counts={"not falsified by pgd": 482, "falsified by pgd": 8, "misclassified": 10},
        parameters={"attack": {"steps": 40, "eps": 0.1, "norm": "linf"}}, worst=WORST,
        classifier="0" * 32, data="1" * 32, passes={"forward": 9, "backward": 8}, chunk=64,
        reproduce=session.command))

@pytest.mark.parametrize("number", range(COUNT))
def test_gate(number):
    BODY
'''


def measure(plan: Plan) -> Iterator[Row]:
    """Yield the cost of an idle run, of a check, and how the latter grows with their number."""
    yield _idle(plan)
    costs = {count: _per_check(count, max(plan.runs // 2, 2)) for count in COUNTS}
    for count, (clock, processor) in costs.items():
        yield Row(
            f"record and all reports, {count} checks in one run: milliseconds per check",
            clock,
            "< 10",
            processor,
        )
    few, many = (costs[count][1].mean for count in (COUNTS[0], COUNTS[-1]))
    yield Row(
        f"cost of a check among {COUNTS[-1]} / among {COUNTS[0]}, by processor time",
        Ratio(many / few, many / few, many / few),
        "1, linear",
    )
    share = 100 * costs[COUNTS[0]][0].mean / 1000 * 100 / SUITE_SECONDS
    yield Row(
        f"per cent of a suite of {SUITE_SECONDS:.0f} s with 100 checks, from the cost per check",
        Ratio(share, share, share),
        "<= 2",
    )


def _idle(plan: Plan) -> Row:
    """Compare runs of an empty repository with and without the plugin, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        turns = [
            (_run(folder), _run(folder, "-p", "no:triguard")) for _ in range(plan.runs * 10 + 1)
        ][1:]
    clock, processor = (
        Ratio.median([1000 * (used[which] - idle[which]) for used, idle in turns])
        for which in (0, 1)
    )
    without = 1000 * statistics.median(idle[0] for _, idle in turns)
    return Row(
        f"empty repository, {len(turns)} runs each: milliseconds with the plugin - without",
        clock,
        "<= 15",
        processor,
        f"without {without:.0f} ms",
    )


def _per_check(count: int, runs: int) -> tuple[Ratio, Ratio]:
    """Return milliseconds per check by the clock and by the processor, over those of no check."""
    with tempfile.TemporaryDirectory() as folder:
        for name, body in (("check", "check()"), ("idle", "pass")):
            text = _CHECK.replace("COUNT", str(count)).replace("BODY", body)
            Path(folder, f"test_{name}.py").write_text(text, encoding="utf-8")
        reports = ("--triguard-json=report.json", "--junitxml=junit.xml")
        turns = [
            (_run(folder, "test_check.py", *reports), _run(folder, "test_idle.py", *reports))
            for _ in range(runs + 1)
        ][1:]
    clock, processor = (
        Ratio.median([1000 * (checked[which] - idle[which]) / count for checked, idle in turns])
        for which in (0, 1)
    )
    return clock, processor


def _run(folder: str, *arguments: str) -> tuple[float, float]:
    """Return the seconds of a run in a process of its own, by the clock and by the processor."""
    quiet = [word for name in OTHERS for word in ("-p", f"no:{name}")]
    command = [sys.executable, "-m", "pytest", "-q", *quiet, "-p", "no:cacheprovider", *arguments]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"PYTHONPYCACHEPREFIX": f"{folder}/.cache"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # users' runs find modules compiled
    subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=False)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
