"""The truth about small networks of affine, ReLU and max-pooling operators: mixed-integer programs.

Every value inside the network is a variable with bounds; a ReLU has one binary variable, a maximum
one for each element. The solver is scipy's, and meets constraints up to a tolerance only: the
network is asked what it computes at the solution.

References:
    Tjeng et al. 2019, "Evaluating Robustness of Neural Networks with Mixed Integer Programming",
    arXiv:1711.07356, section 4.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn

TOLERANCE = 1e-6
"""Optima closer to zero decide nothing."""


class Residual(nn.Module):
    """Adds a value to what a body makes of it."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + self.body(inputs)


class Program:
    """A network over a box as constraints between variables.

    Args:
        module: A sequence of affine layers, `nn.ReLU`, `nn.MaxPool2d` and `Residual`, in float64.
        lower: `(C, H, W)` lower ends of the inputs.
        upper: `(C, H, W)` upper ends.

    Attributes:
        inputs: Places of the inputs among the variables.
        logits: Places of the logits.
    """

    def __init__(self, module: nn.Sequential, lower: torch.Tensor, upper: torch.Tensor) -> None:
        self._module = module
        self._shape = lower.shape
        self._lower: list[float] = []
        self._upper: list[float] = []
        self._whole: list[int] = []
        self._rows: list[tuple[dict[int, float], float, float]] = []
        self.inputs = self._variables(lower.flatten().numpy(), upper.flatten().numpy())
        self.logits, _ = self._layers(module, self.inputs, tuple(lower.shape))

    def near(self, clean: torch.Tensor, eps: float) -> None:
        """Let the inputs be at most eps from a point, in L1."""
        values = clean.flatten().numpy()
        away = self._variables(np.zeros(len(values)), np.full(len(values), eps))
        for one, distance, value in zip(self.inputs, away, values, strict=True):
            self._rows.append(({distance: 1.0, one: -1.0}, -value, np.inf))
            self._rows.append(({distance: 1.0, one: 1.0}, value, np.inf))
        self._rows.append((dict.fromkeys(away, 1.0), -np.inf, eps))

    def least(self, row: torch.Tensor) -> float:
        """Return the least value of a row on the logits, as the network itself attains it."""
        count = len(self._lower)
        cost, matrix = np.zeros(count), np.zeros((len(self._rows), count))
        cost[self.logits] = row.double().numpy()
        for place, (entries, _, _) in enumerate(self._rows):
            for variable, value in entries.items():
                matrix[place, variable] += value
        limits = LinearConstraint(
            matrix, [each[1] for each in self._rows], [each[2] for each in self._rows]
        )
        solved = milp(
            cost,
            constraints=limits if self._rows else None,
            bounds=Bounds(self._lower, self._upper),
            integrality=self._whole,
            options={"mip_rel_gap": 0.0},
        )
        assert solved.status == 0
        point = torch.from_numpy(np.clip(solved.x[self.inputs], *self._ends(self.inputs)))
        with torch.no_grad():
            attained = float(self._module(point.view(1, *self._shape))[0] @ row.double())
        assert abs(attained - solved.fun) < 100 * TOLERANCE
        return attained

    def _variables(self, lower: np.ndarray, upper: np.ndarray, *, whole: bool = False) -> list[int]:
        start = len(self._lower)
        self._lower += [float(each) for each in lower]
        self._upper += [float(each) for each in upper]
        self._whole += [int(whole)] * len(lower)
        return list(range(start, start + len(lower)))

    def _ends(self, places: list[int]) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self._lower)[places], np.array(self._upper)[places]

    def _layers(
        self, layers: nn.Sequential, places: list[int], shape: tuple[int, ...]
    ) -> tuple[list[int], tuple[int, ...]]:
        for layer in layers:
            if isinstance(layer, nn.ReLU):
                places = [self._relu(each) for each in places]
            elif isinstance(layer, nn.MaxPool2d):
                places, shape = self._pooled(layer, places, shape)
            elif isinstance(layer, Residual):
                own, _ = self._layers(layer.body, places, shape)
                eye = np.eye(len(places))
                places = self._product(np.hstack([eye, eye]), np.zeros(len(eye)), places + own)
            else:
                places, shape = self._affine(layer, places, shape)
        return places, shape

    def _affine(
        self, layer: nn.Module, places: list[int], shape: tuple[int, ...]
    ) -> tuple[list[int], tuple[int, ...]]:
        with torch.no_grad():
            size = len(places)
            basis = torch.eye(size, dtype=torch.float64).view(size, *shape)
            constant = layer(torch.zeros(1, *shape, dtype=torch.float64))
            matrix = (layer(basis) - constant).flatten(1).T.numpy()
        found = self._product(matrix, constant.flatten().numpy(), places)
        return found, tuple(constant.shape[1:])

    def _product(self, matrix: np.ndarray, offset: np.ndarray, places: list[int]) -> list[int]:
        low, high = self._ends(places)
        above, below = matrix.clip(min=0), matrix.clip(max=0)
        room = 1e-7
        found = self._variables(
            above @ low + below @ high + offset - room, above @ high + below @ low + offset + room
        )
        for variable, row, constant in zip(found, matrix, offset, strict=True):
            entries = {place: -float(value) for place, value in zip(places, row, strict=True)}
            self._rows.append((entries | {variable: 1.0}, constant, constant))
        return found

    def _relu(self, place: int) -> int:
        low, high = self._lower[place], self._upper[place]
        (found,) = self._variables(np.array([max(low, 0.0)]), np.array([max(high, 0.0)]))
        self._rows.append(({found: 1.0, place: -1.0}, 0.0, np.inf))
        if low < 0 < high:
            (active,) = self._variables(np.zeros(1), np.ones(1), whole=True)
            self._rows.append(({found: 1.0, place: -1.0, active: -low}, -np.inf, -low))
            self._rows.append(({found: 1.0, active: -high}, -np.inf, 0.0))
        elif low >= 0:
            self._rows.append(({found: 1.0, place: -1.0}, -np.inf, 0.0))
        return found

    def _pooled(
        self, layer: nn.MaxPool2d, places: list[int], shape: tuple[int, ...]
    ) -> tuple[list[int], tuple[int, ...]]:
        """Return the largest of each window: the elements that raise its result when raised."""
        size = len(places)
        with torch.no_grad():
            raised = layer(torch.eye(size, dtype=torch.float64).view(size, *shape))
        windows = raised.flatten(1).T > 0.5
        found = [self._largest([places[each] for each in row.nonzero()[:, 0]]) for row in windows]
        return found, tuple(raised.shape[1:])

    def _largest(self, places: list[int]) -> int:
        low, high = self._ends(places)
        (found,) = self._variables(low.max(keepdims=True), high.max(keepdims=True))
        chosen = self._variables(np.zeros(len(places)), np.ones(len(places)), whole=True)
        for place, pick, least in zip(places, chosen, low, strict=True):
            gap = float(high.max() - least)
            self._rows.append(({found: 1.0, place: -1.0}, 0.0, np.inf))
            self._rows.append(({found: 1.0, place: -1.0, pick: gap}, -np.inf, gap))
        self._rows.append((dict.fromkeys(chosen, 1.0), 1.0, 1.0))
        return found
