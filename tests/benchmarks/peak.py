"""One process, one figure: `python -m tests.benchmarks.peak METHOD NETWORK SAMPLES CHUNK PASSES`.

Writes by how many bytes the largest resident set exceeded the state in which everything was
loaded. METHOD is a gradient method, or `bare` for passes over one chunk and nothing else, with the
inputs in the layout that the classifier chooses.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pytest_triguard import attacks, attributions
from pytest_triguard.classifier import Classifier
from pytest_triguard.engine.objectives import logit
from pytest_triguard.running import running
from pytest_triguard.settings import Session, Settings, use_session
from tests.benchmarks.bare import Bare
from tests.benchmarks.networks import SHAPES, images, network

_POOL = 8


class Stream(Dataset[tuple[Tensor, int]]):
    """Any number of labelled images, none of them held."""

    def __init__(self, name: str, count: int) -> None:
        self.inputs, self.labels = images(name, _POOL)
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self.inputs[place % _POOL].clone(), int(self.labels[place % _POOL])


def run(module: nn.Module, method: str, name: str, samples: int, chunk: int, passes: int) -> None:
    """Run a method over a stream of samples and keep one number of each."""
    if method == "bare":
        inputs = torch.rand(chunk, *SHAPES[name])
        if channels_last(Classifier(module), inputs[:2]):  # the passes of the method are so
            inputs = inputs.to(memory_format=torch.channels_last)
        Bare(module, inputs, torch.zeros(chunk, dtype=torch.int64), logit).run(passes, chunk)
        return
    settings = Settings(chunk=chunk)
    with (
        use_session(Session(settings=settings)),
        running(Classifier(module), Stream(name, samples)) as job,
    ):
        kept: list[float] = []
        if method in attacks.names():
            attack = attacks.get(method, steps=passes, stop="never")
            for outcome in attack.stream(job.model, job.samples):
                kept += outcome.success
        else:
            amount = {"integrated_gradients": "points", "smoothgrad": "copies"}[method]
            attribution = attributions.get(method, **{amount: passes})
            for _, maps in attribution.stream(job.model, job.samples):
                kept += maps.abs().sum((1, 2, 3)).tolist()
        assert len(kept) == samples


def channels_last(classifier: Classifier, inputs: Tensor) -> bool:
    """Return whether a classifier's network is given its inputs with channels last."""
    with running(classifier, inputs) as job:
        return job.model.channels_last


def resident(field: str) -> int:
    """Return a field of the process's status in bytes: VmRSS, or VmHWM for the largest so far."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) * 1024


def main(method: str, name: str, samples: str, chunk: str, passes: str) -> None:
    torch.set_num_threads(1)
    module = network(name)
    few = min(2, int(passes))
    for each in ("bare", method):
        run(module, each, name, 2 * few, 2, few)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the largest resident set
    loaded = resident("VmRSS")
    run(module, method, name, int(samples), int(chunk), int(passes))
    os.write(sys.stdout.fileno(), f"{resident('VmHWM') - loaded}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
