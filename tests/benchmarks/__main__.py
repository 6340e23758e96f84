"""Measure speed and memory and write a markdown table, line by line as it is found."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from tests.benchmarks import (
    attacking,
    batches,
    explanations,
    memory,
    peers,
    pieces,
    plugin,
    robustness,
    throughput,
    verifier,
)
from tests.benchmarks.plan import QUICK, Plan
from tests.benchmarks.table import Row, heading, line

MEASUREMENTS: dict[str, Callable[[Plan], Iterator[Row]]] = {
    "throughput": throughput.measure,
    "robustness": robustness.measure,
    "attacks": attacking.measure,
    "memory": memory.measure,
    "pieces": pieces.measure,
    "plugin": plugin.measure,
    "verifier": verifier.measure,
    "batches": batches.measure,
    "explanations": explanations.measure,
    "peers": peers.measure,
}


STEADY = {"MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_MMAP_THRESHOLD_": "4294967296"}
"""Makes the C library keep freed memory. Otherwise it gives memory back and asks for it again
within a pass, by luck of the layout more or less often, which moves either side by up to 10 %."""


def main() -> None:
    asked = _arguments().parse_args()
    if not asked.default_allocator and not STEADY.keys() <= os.environ.keys():
        command = [sys.executable, "-m", "tests.benchmarks", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | STEADY)
    plan = QUICK if asked.quick else Plan()
    if asked.pairs is not None:
        plan = replace(plan, pairs=asked.pairs)
    torch.set_num_threads(asked.threads)
    start = time.perf_counter()
    _write(f"{_machine()}, {asked.threads} thread(s), {plan.pairs} pairs\n\n{heading()}")
    for name in asked.names or MEASUREMENTS:
        for row in MEASUREMENTS[name](plan):
            _write(line(row))
    _write(f"\n{(time.perf_counter() - start) / 60:.0f} minutes in all\n")


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASUREMENTS)}")
    parser.add_argument("--quick", action="store_true", help="fewer images and pairs")
    parser.add_argument("--pairs", type=int, help="turns of every comparison")
    parser.add_argument("--default-allocator", action="store_true", help="let memory be given back")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch, 1 by default")
    return parser


def _machine() -> str:
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores{load}"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
