"""What attacks do to points, inputs and gradients on the way to a step, by name.

Give names or objects to an attack: `attacks.get("mim", transforms=["dim", "tim"])`, or
`transforms=[transforms.get("dim", probability=0.7), "tim"]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_triguard.engine.transforms.base import (
    CopyTransform,
    GradientTransform,
    InputTransform,
    PointTransform,
    Transform,
)
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.registry import Family
from pytest_triguard.validation import describe

__all__ = [
    "CopyTransform",
    "GradientTransform",
    "InputTransform",
    "PointTransform",
    "Transform",
    "get",
    "names",
]

_PACKAGE = "pytest_triguard.engine.transforms"
_FAMILY: Family[Transform] = Family(
    "transform",
    {
        "dim": f"{_PACKAGE}.resize_pad:ResizePad",
        "neighbourhood": f"{_PACKAGE}.neighbourhood:Neighbourhood",
        "si": f"{_PACKAGE}.scales:Scales",
        "sia": f"{_PACKAGE}.blocks:Blocks",
        "ssa": f"{_PACKAGE}.spectrum:Spectrum",
        "tim": f"{_PACKAGE}.kernel:Kernel",
    },
)

names = _FAMILY.names
get = _FAMILY.get


def read(given: Any, method: str, own: Sequence[Transform]) -> tuple[Transform, ...]:
    """Return the transforms that a user names.

    Args:
        given: Names, or transforms.
        method: Name of the attack, for messages.
        own: Transforms that the attack applies by itself.

    Raises:
        InputTypeError: If it is no list of names and transforms.
        InputError: If a name is unknown, or a transform would be applied twice.
    """
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InputTypeError(
            f"transforms must be a list of names or transforms, but {describe(given)} came"
        )
    found: list[Transform] = []
    for each in given:
        transform = each if isinstance(each, Transform) else get(each)
        if any(transform.name == other.name for other in own):
            raise InputError(
                f"transforms must not name {transform.name!r}, which {method} applies by itself; "
                "its hyperparameters are the attack's"
            )
        if any(transform.name == other.name for other in found):
            raise InputError(f"transforms must name each once, but {transform.name!r} came twice")
        found.append(transform)
    return tuple(found)
