"""Peak memory of streamed checks, against that of bare passes over one chunk.

Each figure comes from a process of its own, see `peak`. Large tensors are given back to the system
as soon as they are freed (`MALLOC_MMAP_THRESHOLD_`), so that the figure tells what was alive at
the peak, and not what the allocator kept for later.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.plan import Plan
from tests.benchmarks.table import Row
from tests.benchmarks.timing import Ratio

METHODS = ("integrated_gradients", "smoothgrad", "pgd")
CHUNKS = {"small_cnn": (64, 256), "resnet18": (64,)}
_PASSES = {"small_cnn": 4, "resnet18": 2, "photographs": 1}
"""Passes or steps per sample; memory does not depend on them."""
_ROOT = Path(__file__).parents[2]


def measure(plan: Plan) -> Iterator[Row]:
    """Yield the peak of each method over that of the bare passes, and how it grows with samples."""
    if not Path("/proc/self/clear_refs").exists():
        raise SystemExit("this benchmark reads the peak memory from /proc, which only Linux has")
    few, many = plan.streams
    for network, chunks in CHUNKS.items():
        for chunk in chunks:
            for method in METHODS:
                yield _over_bare(plan, network, method, chunk, few)
    for method in METHODS:
        yield _growth(plan, method, few, many)


def _over_bare(plan: Plan, network: str, method: str, chunk: int, samples: int) -> Row:
    turns = [
        (peak(method, network, samples, chunk), peak("bare", network, samples, chunk))
        for _ in range(plan.pairs)
    ]
    return Row(
        f"{method}, {network}, {samples} samples, chunk {chunk}: peak memory / bare passes",
        Ratio.of([ours / bare for ours, bare in turns]),
        "<= 1.25",
        details=_sizes(turns),
    )


def _growth(plan: Plan, method: str, few: int, many: int) -> Row:
    network, chunk = "small_cnn", CHUNKS["small_cnn"][0]
    turns = [
        (peak(method, network, many, chunk), peak(method, network, few, chunk))
        for _ in range(plan.pairs)
    ]
    return Row(
        f"{method}, {network}, chunk {chunk}: peak memory, {many} / {few} samples",
        Ratio.of([more / less for more, less in turns]),
        "flat",
        details=_sizes(turns),
    )


def _sizes(turns: list[tuple[int, int]]) -> str:
    first, second = (statistics.median(turn[place] for turn in turns) for place in (0, 1))
    return f"{first / 2**20:.1f} MiB over {second / 2**20:.1f} MiB"


def peak(method: str, network: str, samples: int, chunk: int) -> int:
    """Return the peak of one process above its loaded state, in bytes."""
    arguments = (method, network, samples, chunk, _PASSES[network])
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.peak", *map(str, arguments)],
        cwd=_ROOT,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the process for {arguments} failed:\n{done.stderr}")
    return int(done.stdout)
