"""What each method decides on each network: `python -m tests.benchmarks.decided`.

Writes a markdown table, a process for each row, so that its peak memory is its own. The small
network is trained for a moment on digits; the others have random weights, with batch statistics
of random images, and are verified at radii at which there is something to decide.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from pytest_triguard import verification
from pytest_triguard.classifier import Classifier
from tests.benchmarks.networks import digits
from tests.benchmarks.peak import resident
from tests.benchmarks.peers import train
from tests.benchmarks.verifier import NETWORKS, simple_cnn

_ROOT = Path(__file__).parents[2]
_TRAINING, _DIGITS = 4_000, 4
_SMALL = ("ibp", "crown_ibp", "crown", "alpha_crown", "auto")
_DEEP = ("ibp", "crown_ibp")
PLAN: tuple[tuple[str, float, tuple[str, ...]], ...] = (
    ("SimpleCNN", 0.02, _SMALL),
    ("resnet18", 1e-5, (*_DEEP, "crown")),
    ("resnet50", 1e-6, _DEEP),
    ("mobilenet_v3_large", 1e-6, _DEEP),
    ("densenet121", 1e-6, _DEEP),
    ("vgg16", 1e-4, _DEEP),
    ("inception_v3", 1e-6, _DEEP),
)
"""Networks with a radius, and the methods that are tried."""
COLUMNS = (
    "network",
    "eps (linf)",
    "method",
    "proven",
    "falsified",
    "unknown",
    "mean margin",
    "seconds",
    "peak memory",
)
_SECONDS = 10.0
"""Budget of the cascade per sample."""


def main() -> None:
    sys.stdout.write(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n")
    for name, eps, methods in PLAN:
        for method in methods:
            done = subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.decided", name, str(eps), method],
                cwd=_ROOT,
                capture_output=True,
                text=True,
                check=True,
            )
            sys.stdout.write(_line(name, eps, method, json.loads(done.stdout.splitlines()[-1])))
            sys.stdout.flush()


def _line(name: str, eps: float, method: str, found: dict[str, float]) -> str:
    cells = (
        name,
        f"{eps:g}",
        f"`{method}`",
        found["proven"],
        found["falsified"],
        found["unknown"],
        f"{found['margin']:.3g}",
        f"{found['seconds']:.2f}",
        f"{found['bytes'] / 2**20:.0f} MiB",
    )
    return f"| {' | '.join(map(str, cells))} |\n"


def one(name: str, eps: float, method: str) -> dict[str, float]:
    """Verify a network and return what came of it."""
    module, inputs = _problem(name)
    subject = Classifier(module)
    labels = subject(inputs).argmax(1)
    budget = verification.Budget(seconds=_SECONDS) if method == "auto" else None
    Path("/proc/self/clear_refs").write_text("5")  # forgets the largest resident set
    loaded, start = resident("VmRSS"), time.perf_counter()
    result = verification.verify(subject, inputs, labels, eps=eps, method=method, budget=budget)
    return {
        **result.counts,
        "margin": float(result.margin.mean()),
        "seconds": time.perf_counter() - start,
        "bytes": resident("VmHWM") - loaded,
    }


def _problem(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if name == "SimpleCNN":
        inputs, labels = digits()
        module = simple_cnn()
        train(module, inputs[:_TRAINING], labels[:_TRAINING])
        return module.eval(), inputs[_TRAINING : _TRAINING + _DIGITS]
    build, shape = NETWORKS[name]
    module = build().eval()
    for each in module.modules():  # nothing else is to train: Inception has a branch for that
        each.training = isinstance(each, nn.BatchNorm2d)
    with torch.no_grad():
        for _ in range(3):
            module(torch.rand(16, *shape))
    return module.eval(), torch.rand(1, *shape)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        sys.stdout.write(json.dumps(one(sys.argv[1], float(sys.argv[2]), sys.argv[3])) + "\n")
    else:
        main()
