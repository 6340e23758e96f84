"""Clean predictions, block by block, and the accuracy check."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pytest_triguard.checks.columns import Columns
from pytest_triguard.checks.finding import Finding, rows, worst_places
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.objectives import margin
from pytest_triguard.engine.sifting import clean_logits, labelled, require_finite
from pytest_triguard.running import Run


@torch.no_grad()
def predictions(model: Model, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the predicted classes of inputs on the device, and whether their logits are finite."""
    logits = model.chunk.map(model.logits, inputs)
    return logits.argmax(1), torch.isfinite(logits).all(1)


def measure_accuracy(run: Run) -> Finding:
    """Measure which samples are classified as their label."""
    run.tune(1)
    columns = Columns()
    for block, logits in clean_logits(run.model, run.samples):
        labels = labelled(block)
        columns.add(
            block.positions,
            block.ids,
            label=labels,
            predicted=logits.argmax(1),
            margin=margin(logits, labels),
            finite=torch.isfinite(logits).all(1),
        )
    ids, found = columns.arrays()
    require_finite(ids, found["finite"], "logits")
    label, predicted = (found[name].astype(np.int64) for name in ("label", "predicted"))
    right = label == predicted
    lead = np.where(right, np.nan, -found["margin"])
    return Finding(
        metric="accuracy",
        ids=ids,
        values=right.astype(np.float64),
        counts={"correct": int(right.sum()), "misclassified": int((~right).sum())},
        undefined=0,
        subject="the prediction is the label",
        method="one forward pass per sample",
        parameters={},
        worst=rows(
            ids,
            worst_places(lead, largest=True),
            label=label,
            predicted=predicted,
            **{"logit lead": lead},
        ),
    )
