"""The maps of a method in a check, those that earlier checks left among them.

A map is taken over only where everything it depends on is as it was: weights, architecture and
device of the classifier, the method and its hyperparameters, the sample with its key, its place
and the class that is explained. What none of these tell, such as a hook, is asked of the network
itself: it must still give the logits it gave, and the gradient of one sample.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytest_triguard.attributions import Attribution
from pytest_triguard.attributions.base import known_logits, known_targets, with_logits, with_targets
from pytest_triguard.checks.compared import is_drawn
from pytest_triguard.engine.equality import fingerprint
from pytest_triguard.engine.gradients import input_gradient
from pytest_triguard.engine.kept import Explained, Witness, marks
from pytest_triguard.engine.probe import apart, differs
from pytest_triguard.engine.samples import Batch, Feed
from pytest_triguard.running import Run

WORTH = 10
"""Passes per sample from which on maps are kept; with fewer, asking costs as much as explaining."""

_OWN = "pytest_triguard."

_FOLLOW = ("gradient", "integration")
"""Kinds of methods that follow the gradient down to the input; the others may stop at a layer."""


def blocks(run: Run, chunks: int = 1) -> Iterator[tuple[Batch, Batch]]:
    """Yield the samples of a run, so many chunks at a time: where they came, and on the device."""
    model = run.model
    for source in Feed(run.samples, run.like.device).blocks(chunks * model.chunk.rows):
        yield source, source.to(model.device)


class Maps:
    """What explains the samples of a run by one method.

    Args:
        run: The classifier and the samples.
        attribution: The method.

    Raises:
        ModelError: If the method follows gradients and the module gives none: all of its maps
            would be zero.
    """

    def __init__(self, run: Run, attribution: Attribution) -> None:
        if attribution.kind in _FOLLOW:
            run.require_gradients(f"attribution {attribution.name!r}", "attribution='occlusion'")
        self._run = run
        self._attribution = attribution
        self._key = _key(run, attribution)
        self._trusted = False

    def stream(self) -> Iterator[tuple[Batch, Tensor]]:
        """Explain the samples block by block, as `Attribution.stream` does."""
        for source, block in blocks(self._run, self._attribution.blocks_at_once):
            batch = self.ready(block)
            yield batch, self.explain(source, batch)

    def ready(self, batch: Batch) -> Batch:
        """Fill in the classes to explain, and the logits where maps are kept by them."""
        model = self._run.model
        targeted = with_targets(model, batch)
        return targeted if self._key is None else with_logits(model, targeted)

    def explain(self, source: Batch, batch: Batch) -> Tensor:
        """Return the maps, `(n, C, H, W)`.

        Args:
            source: The samples as they came.
            batch: The same on the device, ready.
        """
        model, kept, key = self._run.model, self._run.classifier.kept, self._key
        if key is None:
            return self._attribution.explain(model, batch)
        own = marks(source)
        found = kept.find(key, own)
        if found is not None and self._holds(key, batch, found):
            return found.maps
        maps = self._attribution.explain(model, batch)
        made = Explained(maps, known_logits(batch), known_targets(batch))
        kept.keep(key, own, made, kept.witness(key) or self._witness(batch))
        return maps

    def _holds(self, key: Hashable, batch: Batch, found: Explained) -> bool:
        """Return whether what was found is what the method would give."""
        kept = self._run.classifier.kept
        changed = apart(known_logits(batch), found.logits, computed_in=batch.inputs.dtype)
        others = (known_targets(batch) != found.targets).any()
        changed, others = torch.stack([changed, others]).tolist()  # one read for both
        if changed or not self._goes_back_alike(key):
            kept.forget(key)
            return False
        return not others

    def _goes_back_alike(self, key: Hashable) -> bool:
        """Return whether the gradient of one sample is what it was, which is asked once."""
        before = self._run.classifier.kept.witness(key)
        if before is not None and not self._trusted:
            gradient = self._gradient(before.inputs, before.targets)
            scale = before.gradient.abs().amax().clamp_min(torch.finfo(gradient.dtype).tiny)
            self._trusted = not differs(
                gradient / scale, before.gradient / scale, computed_in=gradient.dtype
            )
        return self._trusted

    def _witness(self, batch: Batch) -> Witness:
        inputs, targets = batch.inputs[:1].clone(), known_targets(batch)[:1].clone()
        return Witness(inputs, targets, self._gradient(inputs, targets))

    def _gradient(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the gradient of one sample; as when a network is probed, it is not counted."""
        model = self._run.model
        with model.passes.uncounted():
            gradient, _ = input_gradient(model, inputs, targets, self._attribution.objective)
        return gradient


def _key(run: Run, attribution: Attribution) -> Hashable | None:
    """Return what tells all that maps depend on beside the sample; None if they are not kept.

    Not kept are those of inputs that are drawn anew each time, of a network that draws, and of a
    method that someone else wrote, of which it is not known what else it depends on.
    """
    own = type(attribution).__module__.startswith(_OWN)
    if not own or attribution.passes_per_sample < WORTH or run.model.draws or is_drawn():
        return None
    method = _identity(attribution)
    if method is None:
        return None
    network = run.classifier.fingerprint(), str(run.model.device)
    return *network, method, attribution.drawn_seed


def _identity(value: Any) -> str | None:
    """Return text that tells a hyperparameter from others, or None where there is none."""
    if isinstance(value, Tensor):
        return fingerprint(value)
    if isinstance(value, nn.Module):
        return None
    if is_dataclass(value) and not isinstance(value, type):
        parts = [_identity(getattr(value, each.name)) for each in fields(value)]
        names = [type(value).__qualname__, *(each.name for each in fields(value))]
    elif isinstance(value, list | tuple):
        parts, names = [_identity(each) for each in value], []
    else:
        return repr(value)
    return None if None in parts else repr((names, parts))
