"""What a measurement costs, counted in samples that went through the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Passes:
    """Forward and backward passes, each counted once per sample.

    Attributes:
        forward: Samples that went forward.
        backward: Samples whose gradient with respect to the input was taken.
    """

    forward: int = 0
    backward: int = 0

    def __sub__(self, other: Passes) -> Passes:
        return Passes(self.forward - other.forward, self.backward - other.backward)

    def add(self, other: Passes) -> None:
        """Count other passes in."""
        self.forward += other.forward
        self.backward += other.backward

    def copy(self) -> Passes:
        """Return the counts as they are now."""
        return Passes(self.forward, self.backward)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Count nothing of what goes through the network in the block."""
        before = self.copy()
        try:
            yield
        finally:
            self.forward, self.backward = before.forward, before.backward

    def to_dict(self) -> dict[str, int]:
        """Return the counts as plain values."""
        return {"forward": self.forward, "backward": self.backward}
