"""The gradients of inputs and biases, each times what it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_triguard.attributions.base import (
    known_logits,
    known_targets,
    with_logits,
    with_targets,
)
from pytest_triguard.attributions.completeness import Summing, shortfall
from pytest_triguard.attributions.lines import MODES
from pytest_triguard.engine.geometry import per_row
from pytest_triguard.engine.gradients import input_gradient
from pytest_triguard.engine.layers import refuse_transformed, watched
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch, Feed
from pytest_triguard.errors import ModelError
from pytest_triguard.facts import Facts
from pytest_triguard.validation import describe, one_of

_OFFSET = 1e-6
"""What the published code adds to the range it divides by."""

Fold = Callable[[Tensor, Tensor | None], Tensor]
"""From the gradient of a part, and the biases of its channels or None for none, to its share."""


def _as_is(sums: Tensor) -> Tensor:
    return sums


@dataclass(frozen=True, kw_only=True)
class FullGrad(Summing):
    """Gradient times input and gradient times bias of every layer, rescaled and added up.

    Each of these parts is taken absolute, scaled to reach from 0 to 1, summed over its channels and
    enlarged to the image; the map has one value per place, which is spread over the channels of the
    image. The input is what the network sees, after the classifier's normalisation. Biases are
    those of convolutions, linear layers (which have no place and add nothing to a map) and batch
    normalisations, of which the bias is what they add in all. Before they are rescaled, the parts
    sum to the explained logit, where the network is piecewise linear and has no other bias:
    `completeness_error` tells it.

    Args:
        mode: `"canonical"`; or `"reference"`, which adds 1e-6 to each range before dividing by it
            and aligns corners when enlarging, as the published code does.

    References:
        Srinivas and Fleuret 2019, "Full-Gradient Representation for Neural Network Visualization",
        arXiv:1905.00780, equations 2 and 3 and section 4.1.
    """

    name: ClassVar[str] = "fullgrad"
    kind: ClassVar[str] = "gradient"
    facts: ClassVar[Facts] = Facts(
        sign="never negative; one value per pixel", axioms=("scale-free", "its parts are complete")
    )

    mode: str = "canonical"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("mode", self.mode, MODES)

    @property
    def passes_per_sample(self) -> int:
        """One."""
        return 1

    def explain(self, model: Model, batch: Batch) -> Tensor:
        """Return the maps, `(n, C, H, W)`."""
        inputs, aligned = batch.inputs, self.mode == "reference"

        def enlarged(sums: Tensor) -> Tensor:
            if sums.shape[2:] == inputs.shape[2:]:
                return sums
            return functional.interpolate(
                sums, inputs.shape[2:], mode="bilinear", align_corners=aligned
            )

        maps = self._folded(model, batch, self._rescaled, enlarged) / inputs.shape[1]
        return maps.expand_as(inputs).contiguous()

    def completeness_errors(self, model: Model, batches: Iterable[Batch]) -> Iterator[Tensor]:
        """Yield how far the parts are from summing to the output, block by block."""
        for block in Feed(batches, model.device).blocks(model.chunk.rows):
            batch = with_logits(model, with_targets(model, block))
            total = self._folded(model, batch, _total)
            yield shortfall(total, self.objective(known_logits(batch), known_targets(batch)))

    def _folded(
        self, model: Model, batch: Batch, fold: Fold, finish: Callable[[Tensor], Tensor] = _as_is
    ) -> Tensor:
        """Return the sum of what a function makes of each part.

        Args:
            model: The network.
            batch: The samples.
            fold: Makes something of a part, or an empty tensor if it adds nothing.
            finish: Makes something of the sum of such things of one shape.
        """
        targets = known_targets(batch)

        def run(rows: slice) -> Tensor:
            inputs = batch.inputs[rows]
            sums: dict[torch.Size, Tensor] = {}

            def take(gradient: Tensor, bias: Tensor | None) -> None:
                value = fold(gradient, bias)
                if value.numel():
                    known = sums.get(value.shape)
                    sums[value.shape] = value if known is None else known + value

            with _bias_gradients(model.module, len(inputs), take):
                gradient, _ = input_gradient(model, inputs, targets[rows], self.objective)
            take(_seen(model, inputs) * gradient, None)
            return torch.stack([finish(each) for each in sums.values()]).sum(0)

        parts = model.chunk.attempt(run, len(batch))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _rescaled(self, gradient: Tensor, bias: Tensor | None) -> Tensor:
        """Return absolute values, from 0 to 1 for each sample, summed over channels.

        A part without places adds nothing.
        """
        if gradient.ndim != 4:
            return gradient.new_empty(0)
        sizes = gradient.abs()
        if bias is not None:
            sizes *= bias.abs().view(-1, 1, 1)
        least, largest = (
            per_row(each(sizes, (1, 2, 3)), sizes) for each in (torch.amin, torch.amax)
        )
        places = sizes.sum(1, keepdim=True)
        moved, reach = places - gradient.shape[1] * least, largest - least
        if self.mode == "reference":
            return moved / (reach + _OFFSET)
        return torch.where(reach == 0, 0.0, moved / reach)


def _total(gradient: Tensor, bias: Tensor | None) -> Tensor:
    """Return the sum of each sample's part, `(n,)`."""
    return gradient.flatten(1).sum(1) if bias is None else gradient.flatten(2).sum(2) @ bias


def _seen(model: Model, inputs: Tensor) -> Tensor:
    """Return what the network sees, in the units of the inputs: they less the mean."""
    if model.normalization is None:
        return inputs
    mean = torch.tensor(list(model.normalization[0]), dtype=inputs.dtype).to(inputs.device)
    return inputs - mean.view(1, -1, 1, 1)


@contextmanager
def _bias_gradients(
    module: nn.Module, samples: int, take: Callable[[Tensor, Tensor], None]
) -> Iterator[None]:
    """Hand out gradient and bias of every layer while a gradient is taken in the block.

    Gradients are `(samples, C, ...)` with a bias for each channel, those of linear layers
    `(samples, C, applications)`.
    """

    def watch(layer: nn.Module, _: Any, output: Any) -> None:
        bias = _bias(layer)
        if bias is None or not isinstance(output, Tensor):
            return
        refuse_transformed(layer, output)
        if not output.requires_grad:
            return
        linear = isinstance(layer, nn.Linear)
        # A linear layer may be applied to several places of a sample, one row each.
        if not len(output) or len(output) % samples or not (linear or len(output) == samples):
            raise ModelError(
                f"fullgrad needs layers that give one row for each of {samples} inputs, but a "
                f"{type(layer).__name__} gave {describe(output)}"
            )

        def hand_out(gradient: Tensor) -> None:
            if linear:
                gradient = gradient.reshape(samples, -1, gradient.shape[-1]).mT
            take(gradient, bias)

        output.register_hook(hand_out)  # type: ignore[no-untyped-call]

    with ExitStack() as hooks:
        for each in module.modules():
            hooks.callback(watched(each).register_forward_hook(watch).remove)
        yield


def _bias(layer: nn.Module) -> Tensor | None:
    """Return the bias of a layer, if it has one: what it adds to a linear function of its input."""
    if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
        return layer.bias
    if not isinstance(layer, nn.modules.batchnorm._BatchNorm) or layer.running_mean is None:
        return None
    mean, variance = layer.running_mean, layer.running_var
    if variance is None:
        return None
    shift = -mean / (variance + layer.eps).sqrt()
    if layer.weight is not None:
        shift = layer.weight * shift
    return shift if layer.bias is None else layer.bias + shift
