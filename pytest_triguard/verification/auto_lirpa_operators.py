"""Which operators auto_LiRPA is trusted with; found by trying each of them, in every method.

An operator is on the list when no sampled or searched output of random networks with it left the
bounds of release 0.3. Off the list are those that were wrong (division; average pools that overlap
or are padded, in all methods but intervals), those that it replaces by another function (layer
norm), and those that were not tried.
"""

from __future__ import annotations

from typing import Any

from pytest_triguard.validation import one_of
from pytest_triguard.verification.auto_lirpa_layer import PACKAGE
from pytest_triguard.verification.operators import Unsupported

POOL = "onnx::MaxPool"
"""The operator whose bounds depend on which samples share a batch."""

_TRIED = frozenset(
    f"onnx::{name}"
    for name in (
        *("Gemm", "Conv", "BatchNormalization", "GlobalAveragePool", "AveragePool", "MaxPool"),
        *("Relu", "LeakyRelu", "Add", "Sub", "Neg", "Mul", "Identity", "ReduceMean"),
        *("Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Concat"),
    )
)
"""Operators on values that depend on the input that the library bounds soundly in every method."""

_PATCHED = _TRIED - {
    f"onnx::{name}" for name in ("Sub", "Neg", "Mul", "Concat", "Transpose", "ReduceMean")
}
"""Those of them that it bounds soundly where it stores convolutions as patches."""

_WEIGHTED = ("onnx::Gemm", "onnx::Conv", "onnx::BatchNormalization")


def refuse(node: Any, reached: set[str], method: str) -> None:
    """Refuse a node that the library is not known to bound soundly.

    Args:
        node: The node.
        reached: Names of the values that depend on the input.
        method: Name of the method.
    """
    place = _place(node)
    if node.op not in _TRIED:
        raise Unsupported(f"{place} is not among the operators that {PACKAGE} bounds soundly")
    if node.op in _WEIGHTED and reached.intersection(node.inputs[1:]):
        raise Unsupported(f"{place} has weights that depend on the input")
    if node.op == "onnx::Conv" and "pads" not in node.attr:
        raise Unsupported(f"{place} has a padding by name; {PACKAGE} knows only numbers")
    if node.op == "onnx::LeakyRelu" and not 0 <= node.attr["alpha"] <= 1:
        raise Unsupported(
            f"{place} has negative_slope={node.attr['alpha']:g}; {PACKAGE} takes it for convex"
        )
    if node.op in (POOL, "onnx::AveragePool"):
        _refuse_pool(node, place, method)


def _refuse_pool(node: Any, place: str, method: str) -> None:
    """Refuse a pool that the library bounds wrongly, or not at all."""
    plain = node.attr["kernel_shape"] == node.attr["strides"] and not any(node.attr.get("pads", ()))
    if any(size != 1 for size in node.attr.get("dilations", ())) or node.attr.get("ceil_mode"):
        raise Unsupported(f"{place} is dilated or has ceil_mode; {PACKAGE} bounds no such pool")
    if node.op == POOL and method == "alpha_crown":
        raise Unsupported(f"{place}: alpha-CROWN by {PACKAGE} does not work with max-pool")
    if not plain and (node.op != POOL or method != "ibp"):
        raise Unsupported(f"{place} overlaps or is padded; {PACKAGE} bounds no such pool soundly")


def _place(node: Any) -> str:
    """Return operator and module path of a node."""
    path = node.name.rpartition("/")[0].rpartition("/")[2].rpartition("::")[2]
    return f"{node.op.rpartition('::')[2]} at {path or 'the top'}"


def storage(wanted: str, nodes: list[Any]) -> str:
    """Return how convolutions are stored; patches only where the library handles them soundly."""
    one_of("conv_mode", wanted, ("auto", "matrix", "patches"))
    odd = [node for node in nodes if not _patchable(node)]
    if wanted == "patches" and odd:
        raise Unsupported(f"{_place(odd[0])} is not bounded soundly by {PACKAGE} in patches mode")
    if wanted == "auto":
        return "matrix" if odd else "patches"
    return wanted


def _patchable(node: Any) -> bool:
    """Return whether patches mode is sound: convolutions without groups, dilation or odd shapes."""
    if node.op != "onnx::Conv":
        return node.op in _PATCHED
    square = all(
        len(set(node.attr.get(name, (1,)))) == 1 for name in ("kernel_shape", "strides", "pads")
    )
    dilated = any(size != 1 for size in node.attr.get("dilations", ()))
    return square and not dilated and node.attr.get("group", 1) == 1
