"""The way into a method: data checked, module prepared and probed, chunk chosen."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_triguard.classifier import Classifier
from pytest_triguard.data import Samples
from pytest_triguard.engine.gradients import has_gradients, input_gradient
from pytest_triguard.engine.layouts import arrange
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.objectives import logit
from pytest_triguard.engine.probe import probe
from pytest_triguard.errors import InputError, InputTypeError, ModelError, NotDifferentiable
from pytest_triguard.validation import describe


@dataclass(frozen=True)
class Run:
    """A classifier and samples, ready to be worked on.

    Attributes:
        classifier: The classifier under test.
        model: Its network, prepared.
        samples: The samples, checked as they are read.
        like: The first inputs, on the host or wherever the user keeps them.
    """

    classifier: Classifier
    model: Model
    samples: Samples
    like: Tensor

    def tune(self, passes: int, *, gradients: bool = True) -> None:
        """Choose the chunk for a job of so many passes per sample, with gradients or without."""
        model = self.model
        example = self.like.to(model.device)
        classes = torch.zeros(1, dtype=torch.int64, device=model.device)

        def run(rows: Tensor) -> object:
            if gradients:
                with suppress(NotDifferentiable):  # who needs its gradients says so
                    return input_gradient(model, rows, classes.expand(len(rows)), logit)
            with torch.no_grad():
                return model.logits(rows)

        with model.passes.uncounted():
            model.chunk.tune(run, example, work=passes * (self.samples.count or 10**9))

    def doubts(self) -> dict[str, str]:
        """Return why numbers about this network may not be relied on, by name."""
        found = {}
        if self.model.draws:
            found["randomised forward"] = (
                "two calls on the same inputs differ: the result is that of one draw"
            )
        if self.model.ends_in_softmax:
            found["softmax output"] = (
                "the outputs are probabilities: give the classifier the module without its softmax"
            )
        return found

    def require_one_each(self, name: str, value: Any) -> None:
        """Refuse a tensor that does not hold one value per sample.

        Raises:
            InputError: If there are more or fewer.
        """
        count = self.samples.count
        if isinstance(value, Tensor) and count is not None and value.shape[:1] != (count,):
            raise InputError(
                f"{name} must hold one value for each of {count} samples, but "
                f"{describe(value)} came"
            )

    def require_gradients(self, follower: str, instead: str) -> None:
        """Refuse a network without gradients, which would look as if nothing could move it.

        Args:
            follower: What follows the gradients, such as `attack 'pgd'`.
            instead: What needs none, as users write it.

        Raises:
            ModelError: If the logits do not depend on the input in a way that autograd sees.
        """
        if not has_gradients(self.model, self.like[:1]):
            raise ModelError(
                f"the module {type(self.model.module).__name__} gives no gradient of its logits, "
                f"which the {follower} follows; use {instead}, which needs none"
            )


@contextmanager
def running(
    classifier: Any,
    inputs: Any,
    labels: Any = None,
    *,
    ids: Sequence[Hashable] | None = None,
    targets: Any = None,
    samples: int | None = None,
    seed: int = 0,
    needs_labels: bool = False,
    may_draw: bool = False,
    hashed: bool = False,
) -> Iterator[Run]:
    """Check classifier and data, and hold the classifier ready to run.

    Args:
        classifier: The classifier under test.
        inputs: Inputs, a Dataset or a DataLoader; see `data.Samples`.
        labels: Labels that go with a tensor of inputs.
        ids: Sample ids that go with a tensor of inputs.
        targets: One class for all samples or one each, or None.
        samples: Size of the seeded random subset, or None for everything.
        seed: Seed of the subset, and of a network that draws at random.
        needs_labels: Whether samples without labels are an error.
        may_draw: Whether the network may draw at random.
        hashed: Whether the samples have a fingerprint once they were read.

    Yields:
        The prepared run.

    Raises:
        InputTypeError: If something has the wrong type.
        InputError: If a value is refused.
        ModelError: If the module breaks what a classifier promises.
    """
    if not isinstance(classifier, Classifier):
        raise InputTypeError(
            f"classifier must be a pytest_triguard.Classifier, but {describe(classifier)} came; "
            "wrap the module: Classifier(module, bounds=(0.0, 1.0))"
        )
    # A loader draws a seed for its workers whenever it is read.
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        stream = Samples(
            inputs,
            labels,
            ids=ids,
            targets=targets,
            bounds=classifier.bounds,
            dtype=classifier.dtype,
            samples=samples,
            seed=seed,
            hashed=hashed,
        )
        first = stream.first()
        if needs_labels and first.labels is None:
            raise InputError("labels are missing: give them beside the inputs, or in the loader")
        with probed(classifier, first.inputs, seed=seed, may_draw=may_draw) as model:
            stream.num_classes = model.num_classes
            yield Run(classifier, model, stream, first.inputs)


@contextmanager
def probed(
    classifier: Classifier,
    inputs: Tensor,
    *,
    device: str | None = None,
    seed: int = 0,
    may_draw: bool = False,
) -> Iterator[Model]:
    """Hold a classifier ready to run that keeps its promises on a few inputs.

    Args:
        classifier: The classifier.
        inputs: `(n, C, H, W)` samples to probe it with.
        device: Device name, or None for the session's, else the module's own.
        seed: Seed of a network that draws at random.
        may_draw: Whether the network may draw at random.

    Raises:
        InputError: If it names more or fewer classes than it has.
        ModelError: If the module breaks what a classifier promises.
    """
    with classifier.prepared(device=device) as model:
        rows = inputs.to(model.device)
        probe(model, rows, may_draw=may_draw)
        if model.draws:
            torch.manual_seed(seed)
        else:
            arrange(model, rows)
        _check_class_names(classifier, model)
        yield model


def _check_class_names(classifier: Classifier, model: Model) -> None:
    names = classifier.classes
    if names is not None and len(names) != model.num_classes:
        raise InputError(
            f"classes must name the {model.num_classes} classes of the module, but {len(names)} "
            "came"
        )
