"""The verifier's linear bounds against those of auto_LiRPA: margin, time and memory.

Both bound the same digits in float64, all at once, with auto_LiRPA in the faster of its two modes
for convolutions. Its conversion of the network is not counted.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from pytest_triguard.classifier import Classifier
from pytest_triguard.verification.budget import Budget
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.methods import BOUNDS, Bound, Effort
from pytest_triguard.verification.network import Network
from pytest_triguard.verification.specification import Differences
from tests.benchmarks.networks import CLASSES, digits
from tests.benchmarks.peak import resident
from tests.benchmarks.plan import Plan
from tests.benchmarks.table import Row
from tests.benchmarks.timing import Ratio, pairs
from tests.verification.peer import peer

STEPS = 10
"""Steps of alpha-CROWN."""
DOMAINS = 8
"""Domains of branch and bound, for each digit."""
_ROOT = Path(__file__).parents[2]
_BATCH, _TRAINING = 64, 4_000
_MODES = ("patches", "matrix")


def pool_free() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 100),
        nn.ReLU(),
        nn.Linear(100, CLASSES),
    )


def six_layers() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, CLASSES),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], float, int]] = {
    "pool-free": (pool_free, 0.05, 8),
    "six-layer": (six_layers, 0.02, 4),
}
"""Networks by name, with the radius and the number of digits."""
METHODS = ("crown_ibp", "crown", "alpha_crown")


class Problem:
    """A network trained for a moment, some digits, and both libraries ready to bound them."""

    def __init__(self, name: str, method: str) -> None:
        build, eps, count = NETWORKS[name]
        inputs, labels = digits()
        torch.manual_seed(0)
        module = build()
        train(module, inputs[:_TRAINING], labels[:_TRAINING])
        self.module = module.double().eval().requires_grad_(False)
        self.inputs = inputs[_TRAINING : _TRAINING + count].double()
        self.labels = self.module(self.inputs).argmax(1)
        self.lower, self.upper = (self.inputs - eps).clamp(0, 1), (self.inputs + eps).clamp(0, 1)
        self.method = method

        with Classifier(self.module).prepared() as model, torch.no_grad():
            model.logits(self.inputs[:1])
            self.network = Network(model, torch.float64)
            self.network.enclose(Interval(self.inputs[:1], self.inputs[:1]))

    def ours(self, most: int | None = None) -> Tensor:
        """Return the margins, `(n,)`, of no more than some digits at once."""
        bound = BOUNDS.get(self.method)
        step = min(bound.samples(self.network), most or len(self.inputs))
        parts = [slice(begin, begin + step) for begin in range(0, len(self.inputs), step)]
        return torch.cat([self._bounded(bound, part) for part in parts])

    def _bounded(self, bound: Bound, part: slice) -> Tensor:
        return bound.margins(
            self.network,
            Interval(self.lower[part], self.upper[part]),
            Differences(self.labels[part], None, CLASSES),
            Effort(budget=Budget(domains=DOMAINS, steps=STEPS)),
        ).margin

    def theirs(self, mode: str) -> Callable[[], Tensor]:
        """Return a job that gives the margins, `(n,)`."""
        rows = self._differences()
        subject = peer(self.module, self.inputs[:1], self.method, iterations=STEPS, conv_mode=mode)

        def job() -> Tensor:
            found = subject.rows(self.lower, self.upper, rows, singly=False)
            values: Tensor = found[0] if isinstance(found, tuple) else found
            return values.reshape(len(rows), -1).amin(1)

        return job

    def _differences(self) -> Tensor:
        one = torch.eye(CLASSES, dtype=torch.float64)
        others = torch.tensor([[j for j in range(CLASSES) if j != y] for y in self.labels.tolist()])
        return one[self.labels].unsqueeze(1) - one[others]


def measure(plan: Plan) -> Iterator[Row]:
    """Yield time and memory of each method, and how its margins compare."""
    for name in NETWORKS:
        for method in METHODS:
            yield _time(plan, name, method)
            yield _memory(name, method)


def _time(plan: Plan, name: str, method: str) -> Row:
    problem = Problem(name, method)
    turns = 1 if method == "alpha_crown" else plan.pairs
    modes = _MODES[:1] if method == "alpha_crown" else _MODES
    jobs = {mode: problem.theirs(mode) for mode in modes}
    margins = problem.ours()
    found = {mode: pairs(job, problem.ours, turns) for mode, job in jobs.items()}
    mode = min(found, key=lambda each: found[each].clock.mean)
    best, known = found[mode], jobs[mode]()
    tighter = ((margins - known) / known.abs().clamp_min(1e-9)).amin()
    return Row(
        f"{method}, {name} network, {len(margins)} digits: time of auto_LiRPA / here",
        best.clock,
        ">= 1.5",
        best.processor,
        f"{best.first:.3f} s with {mode} against {best.second:.3f} s; mean margin "
        f"{float(known.mean()):.6f} there, {float(margins.mean()):.6f} here, least relative "
        f"difference {float(tighter):+.1e}",
    )


def _memory(name: str, method: str) -> Row:
    sizes = {who: _peak(who, name, method) for who in ("ours", "patches")}
    return Row(
        f"{method}, {name} network: peak memory here / auto_LiRPA",
        Ratio.of([sizes["ours"] / sizes["patches"]]),
        "<= 0.5",
        details=f"{sizes['ours'] / 2**20:.0f} MiB against {sizes['patches'] / 2**20:.0f} MiB",
    )


def _peak(who: str, name: str, method: str) -> int:
    """Return the peak of one process above its loaded state, in bytes; the least of three."""
    found = []
    for _ in range(1 if method == "alpha_crown" else 3):
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.peers", who, name, method],
            cwd=_ROOT,
            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(int(done.stdout.split()[-1]))
    return int(statistics.median(found))


def main(who: str, name: str, method: str) -> None:
    torch.set_num_threads(1)
    problem = Problem(name, method)
    job = problem.ours if who == "ours" else problem.theirs(who)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the largest resident set
    loaded = resident("VmRSS")
    job()
    os.write(sys.stdout.fileno(), f"{resident('VmHWM') - loaded}\n".encode())


def train(module: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    """Train for a moment."""
    optimiser = torch.optim.Adam(module.parameters(), 1e-3)
    for _ in range(2):
        for begin in range(0, len(inputs), _BATCH):
            part = slice(begin, begin + _BATCH)
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(inputs[part]), labels[part]).backward()
            optimiser.step()


if __name__ == "__main__":
    main(*sys.argv[1:])
