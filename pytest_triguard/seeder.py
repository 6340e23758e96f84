"""What pytest-randomly seeds in addition: torch, where a test uses it.

The results of checks do not depend on it; what a model repository draws itself may.
"""

from __future__ import annotations

import sys


def seed_torch(seed: int) -> None:
    """Seed the generators of torch, if something has imported it already.

    Args:
        seed: Any whole number; it is taken modulo 2^64.
    """
    manual_seed = getattr(sys.modules.get("torch"), "manual_seed", None)
    if manual_seed is not None:
        manual_seed(seed % 2**64)
