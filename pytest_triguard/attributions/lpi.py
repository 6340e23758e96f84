"""Integrated gradients from references of the neighbourhood a sample's output lies in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pytest_triguard.attributions.base import known_logits, with_logits
from pytest_triguard.attributions.lines import AlongLines, Lines
from pytest_triguard.engine import draws
from pytest_triguard.engine.baselines import check_finite
from pytest_triguard.engine.clusters import k_means
from pytest_triguard.engine.equality import fingerprint
from pytest_triguard.engine.estimators import Copies
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch, Feed
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.facts import Facts
from pytest_triguard.running import running
from pytest_triguard.validation import describe, whole

_LOW, _HIGH = 0.01, 0.99
"""Where on a line the random point lies: neither at the reference nor at the sample."""
_TENSORS = ("references", "weights", "centers")


@dataclass(frozen=True, kw_only=True)
class LPI(AlongLines):
    """Weighted mean, over local references, of the displacement times a gradient on the way.

    References are images whose outputs are typical for a cluster of outputs; a sample is compared
    with those of the cluster that its own output is nearest to, each weighed with its share of
    the cluster. `fit` finds them on images of yours, such as training images.

    Args:
        references: `(R, C, H, W)` for all samples, or `(n, R, C, H, W)`, one set per cluster; or
            None before they are fitted. C, H and W may be 1 for images of one value.
        weights: `(R,)` or `(n, R)`, not negative and summing to one in each cluster, or None for
            equal ones. A reference of weight 0 fills up a smaller set.
        centers: `(n, K)` logits at the centre of each cluster, or None for a single one.

    References:
        Yang et al. 2023, "Local Path Integration for Attribution", AAAI 2023, section 3.
    """

    name: ClassVar[str] = "lpi"
    facts: ClassVar[Facts] = Facts(
        cost="1 per reference, and 1 forward",
        sign="signed",
        axioms=("complete on average", "linear with one cluster"),
    )

    references: Tensor | None = None
    weights: Tensor | None = None
    centers: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep != "all":
            raise InputError(
                f"keep must be 'all' for {self.name}, whose references have weights of their own, "
                f"but {self.keep!r} came"
            )
        for name in _TENSORS:
            _check_tensor(name, getattr(self, name))
        self._check_shapes()

    def _check_shapes(self) -> None:
        given = self.references
        if given is None:
            if self.weights is not None or self.centers is not None:
                raise InputError(
                    "references must be given beside weights and centers, but none came"
                )
            return
        if given.ndim not in (4, 5) or not given.numel():
            raise InputError(
                "references must have shape (R, C, H, W) or (n, R, C, H, W), but "
                f"{describe(given)} came"
            )
        sets = given.shape[:-4]
        if self.centers is not None:
            if self.centers.ndim != 2 or self.centers.shape[:1] != sets:
                raise InputError(
                    "centers must have shape (n, K) to go with references (n, R, C, H, W), but "
                    f"{describe(self.centers)} came"
                )
        elif sets and sets[0] > 1:
            raise InputError(
                f"centers must be given for references of {sets[0]} clusters, but none came"
            )
        if self.weights is not None:
            _check_weights(self.weights, given.shape[:-3])

    @property
    def passes_per_sample(self) -> int:
        """One per reference."""
        return 1 if self.references is None else self.references.shape[-4]

    def parameters(self) -> dict[str, Any]:
        """Return the hyperparameters as plain values, for records and messages."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        marks = {
            name: value if value is None else fingerprint(value) for name, value in tensors.items()
        }
        return super().parameters() | marks

    def fit(self, classifier: Any, inputs: Any, *, clusters: int = 11, references: int = 20) -> LPI:
        """Return the method with references found on some images.

        The outputs of the images are clustered, and those of each cluster once more; the image
        nearest to the centre of each part becomes a reference, the part's share its weight.

        Args:
            classifier: The `Classifier` to explain.
            inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader,
                which is read twice.
            clusters: Number of clusters; fewer where there are fewer different outputs.
            references: Number of references in each; fewer likewise.

        Raises:
            InputTypeError: If something has the wrong type.
            InputError: If a value is refused.
            ModelError: If the module breaks what a classifier promises.
        """
        whole("clusters", clusters, low=1)
        whole("references", references, low=1)
        with running(classifier, inputs) as run:
            run.tune(1, gradients=False)
            outputs = _outputs(run.model, run.samples)
            centers, cluster = k_means(outputs, clusters, seed=self.drawn_seed, name="lpi")
            sets = [
                self._typical(outputs, (cluster == number).nonzero()[:, 0], references, number)
                for number in range(len(centers))
            ]
            size = max(len(places) for places, _ in sets)
            places = torch.stack([_filled(each, size) for each, _ in sets])
            weights = torch.stack([_padded(each, size) for _, each in sets])
            chosen = _picked(run.samples, places.flatten())
        found = chosen.view(*places.shape, *chosen.shape[1:])
        return replace(
            self,
            references=found,
            weights=weights.to(found.dtype),
            centers=centers.to(found.dtype),
        )

    def _typical(
        self, outputs: Tensor, members: Tensor, count: int, number: int
    ) -> tuple[Tensor, Tensor]:
        """Return the places of the typical members of a cluster, and their shares, each `(m,)`."""
        own = outputs[members]
        centres, part = k_means(own, count, seed=self.drawn_seed, name=f"lpi/{number}")
        nearest = torch.cdist(own, centres).argmin(0)
        return members[nearest], torch.bincount(part).double() / len(own)

    def lines(self, model: Model, batch: Batch) -> Lines:
        """Return the lines from the references of each sample's cluster.

        Raises:
            InputError: If there are no references, or they do not go with the samples.
        """
        given = self._given(batch)
        cluster = self._cluster(model, batch)
        count = given.shape[1]
        weights = given.new_full((len(given), count), 1 / count)
        if self.weights is not None:
            weights = self.weights.to(given).view(len(given), count)

        def start(copies: Copies) -> Tensor:
            own = given[copies.context[0], copies.numbers]
            return own.expand_as(copies.inputs)

        def share(copies: Copies) -> Tensor:
            return weights[copies.context[0], copies.numbers] * count

        return Lines(count, self._places, [1.0], start, context=(cluster,), share=share)

    def _places(self, copies: Copies) -> Tensor:
        keys = draws.row_keys(
            copies.keys, seed=self.drawn_seed, method=f"{self.name}/place", copy=copies.numbers
        )
        return draws.uniform(keys, (), dtype=copies.inputs.dtype, low=_LOW, high=_HIGH)

    def _given(self, batch: Batch) -> Tensor:
        """Return the references beside the samples, `(n, R, C, H, W)`."""
        if self.references is None:
            raise InputError(
                "references must be given or fitted before lpi explains, but none came; "
                "attributions.get('lpi').fit(classifier, images) finds them"
            )
        own, wanted = self.references.shape[-3:], batch.inputs.shape[1:]
        if any(side not in (1, other) for side, other in zip(own, wanted, strict=True)):
            raise InputError(
                f"references must hold images of shape {tuple(wanted)} to go with the inputs, but "
                f"{describe(self.references)} came"
            )
        given = self.references if self.references.ndim == 5 else self.references.unsqueeze(0)
        return given.to(batch.inputs.device, batch.inputs.dtype)

    def _cluster(self, model: Model, batch: Batch) -> Tensor:
        """Return the cluster of each sample, `(n,)` int64."""
        if self.centers is None:
            return torch.zeros_like(batch.keys)
        batch = with_logits(model, batch)
        logits = known_logits(batch)
        if self.centers.shape[1] != logits.shape[1]:
            raise InputError(
                f"centers must have one column for each of {logits.shape[1]} classes, but "
                f"{describe(self.centers)} came"
            )
        # From 26 rows on, cdist would square and subtract what all logits have in common.
        exact = "donot_use_mm_for_euclid_dist"
        return torch.cdist(logits, self.centers.to(logits), compute_mode=exact).argmin(1)


def _check_tensor(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise InputTypeError(f"{name} must be a tensor, but {describe(value)} came")
    if not value.dtype.is_floating_point:
        raise InputTypeError(f"{name} must be floating, but {describe(value)} came")
    check_finite(name, value)


def _check_weights(weights: Tensor, shape: tuple[int, ...]) -> None:
    if weights.shape != shape:
        raise InputError(
            f"weights must have shape {tuple(shape)} to go with the references, but "
            f"{describe(weights)} came"
        )
    sums = weights.sum(-1)
    if bool((weights < 0).any()) or not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        raise InputError("weights must not be negative and must sum to one in each cluster")


@torch.no_grad()
def _outputs(model: Model, batches: Iterable[Batch]) -> Tensor:
    """Return the logits of all samples, `(N, K)` float64 on the host, in the order of the data."""
    blocks = Feed(batches, model.device).blocks(model.chunk.rows)
    return (
        torch.cat([model.chunk.map(model.logits, block.inputs) for block in blocks]).cpu().double()
    )


def _picked(batches: Iterable[Batch], places: Tensor) -> Tensor:
    """Return the images at some places, counted from 0 in the order of the data, on the host."""
    kept: dict[int, Tensor] = {}
    wanted, seen = set(places.tolist()), 0
    for batch in batches:
        own = [place for place in range(len(batch)) if seen + place in wanted]
        kept |= {seen + place: batch.inputs[place].cpu() for place in own}
        seen += len(batch)
    return torch.stack([kept[place] for place in places.tolist()])


def _filled(places: Tensor, size: int) -> Tensor:
    """Return places, the first repeated at the end until there are enough."""
    return torch.cat([places, places[:1].expand(size - len(places))])


def _padded(weights: Tensor, size: int) -> Tensor:
    """Return weights with zeros at the end."""
    return torch.cat([weights, weights.new_zeros(size - len(weights))])
