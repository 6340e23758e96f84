"""The bounds of auto_LiRPA as methods of the verifier."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.engine.model import Model
from pytest_triguard.verification.auto_lirpa import AutoLirpa, Found, require
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.methods import Effort, Margins
from pytest_triguard.verification.network import Network
from pytest_triguard.verification.operators import Unsupported
from pytest_triguard.verification.specification import Rows

_TOGETHER = 8
"""Samples that are bounded at once at most."""


class _Peer:
    """One method of the library; a network is converted once.

    Raises:
        InputError: If the library is absent.
    """

    name: ClassVar[str]

    def __init__(self) -> None:
        require()
        self._held: tuple[Network, AutoLirpa] | None = None

    def samples(self, network: Network) -> int:
        """Return how many samples may be bounded at once."""
        del network
        return _TOGETHER

    def logits(self, network: Network, region: Interval, effort: Effort) -> Interval:
        """Return bounds of the logits over a set of inputs, `(n, K)`."""
        del effort
        rows = _unit(network, region).expand(len(region.lower), -1, -1)
        return self._found(network, region, rows).logits

    def margins(self, network: Network, region: Interval, rows: Rows, effort: Effort) -> Margins:
        """Return a lower bound of the least row over a set of inputs, and bounds of the logits."""
        del effort
        count = len(region.lower)
        matrix = rows.merged(_unit(network, region), slice(0, rows.count)).expand(count, -1, -1)
        found = self._found(network, region, matrix)
        return Margins(rows.least(found.margin), found.logits, 2 * count, rows.count * count)

    def _found(self, network: Network, region: Interval, matrix: Tensor) -> Found:
        if network.unit is not None:
            raise Unsupported("auto_LiRPA has no bound on the rounding of the module that runs")
        if self._held is None or self._held[0] is not network:
            method = self.name.partition(":")[2]
            module, pair = network.model.module, _normalization(network.model)
            subject = AutoLirpa(module, pair, region.lower[:1], method, dtype=network.dtype)
            self._held = network, subject
        found = self._held[1].margins(region.lower, region.upper, matrix, region.ball)
        if all(found.reasons):
            raise Unsupported(str(found.reasons[0]))
        return found


class PeerIBP(_Peer):
    """Intervals by auto_LiRPA.

    References:
        Xu et al. 2020, "Automatic Perturbation Analysis for Scalable Certified Robustness and
        Beyond", arXiv:2002.12920.
    """

    name: ClassVar[str] = "auto_lirpa:ibp"


class PeerCrownIBP(_Peer):
    """CROWN-IBP by auto_LiRPA.

    References:
        Xu et al. 2020, "Automatic Perturbation Analysis for Scalable Certified Robustness and
        Beyond", arXiv:2002.12920.
    """

    name: ClassVar[str] = "auto_lirpa:crown_ibp"


class PeerCrown(_Peer):
    """CROWN by auto_LiRPA.

    References:
        Xu et al. 2020, "Automatic Perturbation Analysis for Scalable Certified Robustness and
        Beyond", arXiv:2002.12920.
    """

    name: ClassVar[str] = "auto_lirpa:crown"


class PeerAlphaCrown(_Peer):
    """Alpha-CROWN by auto_LiRPA.

    References:
        Xu et al. 2020, "Automatic Perturbation Analysis for Scalable Certified Robustness and
        Beyond", arXiv:2002.12920.
    """

    name: ClassVar[str] = "auto_lirpa:alpha_crown"


def _unit(network: Network, region: Interval) -> Tensor:
    """Return the identity on the logits."""
    with torch.no_grad():
        logits = network.enclose(Interval(region.lower[:1], region.lower[:1])).logits
    return torch.eye(logits.shape[1], dtype=network.dtype, device=region.lower.device)


def _normalization(model: Model) -> tuple[Tensor, Tensor] | None:
    """Return mean and standard deviation as the module sees them: in its own dtype."""
    if model.normalization is None:
        return None
    dtypes = [each.dtype for each in model.module.parameters() if each.is_floating_point()]
    dtype = dtypes[0] if dtypes else torch.float32
    mean, std = (
        torch.tensor(list(each), dtype=dtype).to(model.device) for each in model.normalization
    )
    return mean, std
