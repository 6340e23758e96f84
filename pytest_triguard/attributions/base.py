"""What every attribution shares: arguments, blocks of samples, result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pytest_triguard.engine.equality import hyperparameters
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.objectives import Objective, explained
from pytest_triguard.engine.samples import Batch, Feed
from pytest_triguard.engine.second_order import GradientMean
from pytest_triguard.errors import InputError, ModelError
from pytest_triguard.facts import Facts
from pytest_triguard.running import running
from pytest_triguard.settings import current_settings
from pytest_triguard.validation import whole


@dataclass(frozen=True, kw_only=True)
class Attribution(ABC):
    """How much each input element contributes to an output of the classifier.

    Maps are signed and shaped like the inputs; channel reduction and absolute values are choices
    of whoever reads them.

    Args:
        output: What is explained: `"logit"`, `"probability"`, `"log_probability"` or
            `"contrast"` (the logit against the others, weighted by their softmax).
        seed: Seed of random draws, or None for the session's.
    """

    output: str = "logit"
    seed: int | None = None

    name: ClassVar[str]
    facts: ClassVar[Facts]
    kind: ClassVar[str]
    """What its maps are: a `gradient`, `integration`, `cam`, `difference`, or from `attention`."""
    undefined_reason: ClassVar[str] = ""
    """Why a sample can have no map, which is then NaN all over; empty where all have one."""
    blocks_at_once: ClassVar[int] = 1
    """Chunks of samples explained together; where samples can be done early, others follow."""

    def __post_init__(self) -> None:
        explained(self.output)
        if self.seed is not None:
            whole("seed", self.seed)

    @property
    @abstractmethod
    def passes_per_sample(self) -> int:
        """Gradient passes per sample; the chunk is chosen by it."""

    @abstractmethod
    def explain(self, model: Model, batch: Batch) -> Tensor:
        """Return the maps `(n, C, H, W)` of samples on the model's device, with targets."""

    def explain_and_predict(self, model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the maps of samples and their logits `(n, K)`, which some methods get anyway."""
        batch = with_logits(model, batch)
        return self.explain(model, batch), known_logits(batch)

    def gradient_mean(self, model: Model, batch: Batch) -> GradientMean:
        """Return what the maps are a mean of, differentiable in the samples of the batch.

        What `engine.second_order.pull_back` and, through it, attacks on explanations need.

        Raises:
            InputError: If the method is no mean of gradients.
        """
        raise InputError(
            f"attribution must be a mean of gradients to be attacked through them, but "
            f"{self.name!r} came; attributions.Attribution.gradient_mean makes one of it"
        )

    def diagnostics(self, model: Model, batch: Batch, maps: Tensor) -> dict[str, Tensor]:
        """Return what the method can say about its own maps, each `(n,)`; nothing by default."""
        return {}

    def missing(self, maps: Tensor) -> Tensor:
        """Return which samples have no map for the method's own reason, `(n,)` bool."""
        if not self.undefined_reason:
            return torch.zeros(len(maps), dtype=torch.bool, device=maps.device)
        return maps.isnan().flatten(1).all(1)

    def sound(self, maps: Tensor) -> Tensor:
        """Return which maps are finite, or missing where that can be, `(n,)` bool."""
        flat = maps.flatten(1)  # NaN is both the least and the largest where there is one
        return flat.amin(1).isfinite() & flat.amax(1).isfinite() | self.missing(maps)

    @property
    def objective(self) -> Objective:
        """The output that is explained."""
        return explained(self.output)

    @property
    def drawn_seed(self) -> int:
        """The seed in force: the method's own, else the session's."""
        return current_settings().seed if self.seed is None else self.seed

    def parameters(self) -> dict[str, Any]:
        """Return the hyperparameters as plain values, for records and messages."""
        seed = {"seed": self.drawn_seed}
        return {"attribution": self.name} | hyperparameters(self) | seed

    def describe(self) -> str:
        """Return the method and its budget in words, for reports."""
        passes = self.passes_per_sample
        many = "1 pass" if passes == 1 else f"{passes} passes"
        return f"{self.name} of the {self.output}, {many} per map, seed {self.drawn_seed}"

    def stream(self, model: Model, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Tensor]]:
        """Explain batches block by block; memory is bounded by the chunk.

        Args:
            model: The network.
            batches: Samples; without targets their labels are explained, else the prediction.

        Yields:
            Blocks of samples on the device, their targets filled in, and their maps.
        """
        for block in Feed(batches, model.device).blocks(self.blocks_at_once * model.chunk.rows):
            targeted = with_targets(model, block)
            yield targeted, self.explain(model, targeted)

    def __call__(
        self,
        classifier: Any,
        inputs: Any,
        targets: Any = None,
        *,
        ids: Sequence[Hashable] | None = None,
    ) -> Tensor:
        """Explain every sample.

        Args:
            classifier: The `Classifier` whose output is explained.
            inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader.
            targets: Class explained, one for all or `(N,)`; None for the labels a loader brings,
                else the prediction.
            ids: One unique id per sample, which random draws are keyed with; default: its place.

        Returns:
            `(N, C, H, W)`, signed, on the device of the inputs, in their dtype; NaN all over where
            the method has no map of a sample.

        Raises:
            InputTypeError: If something has the wrong type.
            InputError: If a value is refused.
            ModelError: If the module breaks what a classifier promises, or a map is not finite.
        """
        with running(classifier, inputs, ids=ids, targets=targets) as run:
            run.tune(self.passes_per_sample)
            device = run.like.device
            parts = [maps.to(device) for _, maps in self.stream(run.model, run.samples)]
        result = torch.cat(parts)
        self.refuse_unsound(result)
        return result

    def refuse_unsound(self, maps: Tensor) -> None:
        """Refuse maps that hold NaN or infinity, but for those that are missing.

        Raises:
            ModelError: If one does; it names the first sample.
        """
        sound = self.sound(maps)
        if not bool(sound.all()):
            place = int((~sound).nonzero()[0, 0])
            raise ModelError(
                f"{self.name} must give finite maps, but that of sample {place} holds NaN or "
                "infinity; the module's outputs or gradients are not finite there"
            )


def with_targets(model: Model, batch: Batch) -> Batch:
    """Fill in the class to explain: the target, else the label, else the prediction."""
    if batch.targets is not None:
        return batch
    if batch.labels is not None:
        return replace(batch, targets=batch.labels)
    batch = with_logits(model, batch)
    return replace(batch, targets=known_logits(batch).argmax(1))


@torch.no_grad()
def with_logits(model: Model, batch: Batch) -> Batch:
    """Fill in the logits of the samples, for all who need them."""
    if batch.logits is not None:
        return batch
    return replace(batch, logits=model.chunk.map(model.logits, batch.inputs))


def known_logits(batch: Batch) -> Tensor:
    """Return the logits of a batch that is known to have them."""
    if batch.logits is None:
        raise TypeError("the samples have been predicted")
    return batch.logits


def known_targets(batch: Batch) -> Tensor:
    """Return the classes to explain of a batch that is known to have them."""
    if batch.targets is None:
        raise TypeError("an attribution needs targets")
    return batch.targets
