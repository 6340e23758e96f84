"""What the cascade decides on a LeNet5 for MNIST: `python -m tests.benchmarks.lenet WEIGHTS`.

The weights are a state dict of the keys conv1, conv2, linear1 and linear2, such as those that come
with the package advertorch 0.2.3 in `advertorch_examples/trained_models`. Nothing is downloaded.
Writes a markdown table with a line for each stage, and below it why the rest is unknown.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

import torch
from torch import Tensor, nn

from pytest_triguard import verification
from pytest_triguard.classifier import Classifier
from tests.benchmarks.networks import digits


class LeNet(nn.Module):
    """Two convolutions with ReLU and max-pooling, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.linear1 = nn.Linear(3136, 200)
        self.linear2 = nn.Linear(200, 10)
        self.pool = nn.MaxPool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        images = self.pool(self.conv1(images).relu())
        images = self.pool(self.conv2(images).relu())
        return self.linear2(self.linear1(images.flatten(1)).relu())


def main() -> None:
    asked = _arguments().parse_args()
    torch.set_num_threads(1)
    module = LeNet()
    module.load_state_dict(torch.load(asked.weights, map_location="cpu", weights_only=True))
    images, labels = digits()
    part = slice(0, asked.count, asked.every)
    budget = verification.Budget(seconds=asked.seconds, total=asked.total)
    start = time.perf_counter()
    result = verification.verify(
        Classifier(module.eval()),
        images[part],
        labels[part],
        eps=asked.eps,
        method=asked.method,
        budget=budget,
    )
    sys.stdout.write(_table(result, time.perf_counter() - start))


def _table(result: verification.VerificationResult, seconds: float) -> str:
    lines = ["| stage | samples | proven | falsified | left | seconds |", f"|{'---|' * 6}"]
    for stage in result.stages:
        left = stage.samples - stage.proven - stage.falsified
        cells = stage.name, stage.samples, stage.proven, stage.falsified, left
        lines.append(f"| {' | '.join(map(str, cells))} | {stage.seconds:.1f} |")
    counts = result.counts
    cells = len(result.status), counts["proven"], counts["falsified"], counts["unknown"]
    lines += [f"| all | {' | '.join(map(str, cells))} | {seconds:.1f} |", ""]
    reasons = Counter(each for each in result.reason if each is not None)
    lines += [f"{count} unknown: {reason}" for reason, count in reasons.most_common()]
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", help="file with the state dict")
    parser.add_argument("--eps", type=float, default=0.1, help="radius in L-inf")
    parser.add_argument("--count", type=int, default=200, help="of the first so many digits")
    parser.add_argument("--every", type=int, default=1, help="take one of so many")
    parser.add_argument("--seconds", type=float, default=60.0, help="budget of a sample")
    parser.add_argument("--total", type=float, default=None, help="budget of all")
    parser.add_argument("--method", default="auto", choices=verification.names())
    return parser


if __name__ == "__main__":
    main()
