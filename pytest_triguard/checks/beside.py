"""A second classifier, held ready beside the one under test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pytest_triguard.checks.bounds import check_bounds
from pytest_triguard.classifier import Classifier
from pytest_triguard.engine.model import Model
from pytest_triguard.errors import InputError
from pytest_triguard.running import Run, probed


@contextmanager
def beside(
    name: str, other: Classifier, run: Run, *, seed: int = 0, may_draw: bool = False
) -> Iterator[Model]:
    """Hold another classifier ready on the device of the one under test.

    Args:
        name: The argument that brings it.
        other: The other classifier.
        run: The classifier under test and the samples.
        seed: Seed of a network that draws at random.
        may_draw: Whether the network may draw at random.

    Yields:
        The other classifier, prepared.

    Raises:
        InputError: If its range, dtype or number of classes is not the classifier's.
        ModelError: If its module breaks what a classifier promises.
    """
    check_bounds(name, other.bounds, run)
    dtype, device = run.like.dtype, str(run.model.device)
    if other.dtype not in (None, dtype):
        raise InputError(f"{name} must have parameters of {dtype}, but {other.dtype} came")
    with probed(other, run.like, device=device, seed=seed, may_draw=may_draw) as model:
        if model.num_classes != run.model.num_classes:
            raise InputError(
                f"{name} must have the {run.model.num_classes} classes of the classifier, but "
                f"{model.num_classes} came"
            )
        yield model
