"""Certificates: what is needed to check a proof again without searching, as plain JSON."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from pytest_triguard import files
from pytest_triguard.classifier import Classifier
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.errors import InputError
from pytest_triguard.verification.capture import Graph
from pytest_triguard.verification.network import Network
from pytest_triguard.verification.proof_tree import ProofTree
from pytest_triguard.verification.regions import BallRegion, BoxRegion, Region
from pytest_triguard.verification.specification import Specification

if TYPE_CHECKING:
    from pytest_triguard.verification.result import SampleVerdict

SCHEMA = 1
"""Version of the form of a certificate."""

_FORMAT = "pytest-triguard certificates"


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A proof about one sample, as plain values.

    It is no substitute for checking: `recheck` proves again, and says what no longer matches.

    Attributes:
        sample: Id of the sample.
        label: Its label, or None where the data has none.
        input: Shape, dtype and hash of the sample.
        specification: What was proven, such as `{"target": None}`: the label's logit minus every
            other, or minus that of one class; `{"top_k": k}`: the label among the k largest; or
            `{"rows": ...}` on the logits.
        region: Where: `{"norm": ..., "eps": ...}`, or the packed ends of a box.
        method: The method that was asked.
        stage: The stage of it that proved the sample.
        steps: Steps of each optimisation of relaxations.
        margin: Lower bound of the margin, before the slack.
        slack: What the margin has to exceed.
        arithmetic: The arithmetic that the proof holds for.
        dtype: The dtype that the module computes in.
        bounded_in: The dtype that bounds are computed in, and the proof is made again in; intervals
            that decided at once may have been computed in the module's own.
        device: Kind of the device.
        classifier: Hash of weights, buffers, architecture, valid range and normalisation.
        graph: Hash of the captured operators.
        versions: Versions of pytest_triguard and torch.
        trees: How a search proved what its first bound left open; None where nothing was searched.
        checksum: Hash of all of the above. It shows damage, not forgery: anyone can compute it.
    """

    sample: int | str
    label: int | None
    input: str
    specification: dict[str, Any]
    region: dict[str, Any]
    method: str
    stage: str
    steps: int
    margin: float
    slack: float
    arithmetic: str
    dtype: str
    bounded_in: str
    device: str
    classifier: str
    graph: str
    versions: dict[str, str]
    trees: tuple[ProofTree, ...] | None = None
    checksum: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the certificate as plain values."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        if self.trees is not None:
            values["trees"] = [
                asdict(each)
                | {"splits": list(each.splits), "multipliers": list(map(list, each.multipliers))}
                for each in self.trees
            ]
        return values

    def summed(self) -> str:
        """Return the checksum that belongs to what the certificate says."""
        values = {name: value for name, value in self.to_dict().items() if name != "checksum"}
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @staticmethod
    def from_dict(values: Any) -> Certificate:
        """Return the certificate that plain values describe.

        Raises:
            InputError: If they describe none.
        """
        names = [each.name for each in fields(Certificate)]
        if not isinstance(values, dict) or set(values) != set(names):
            raise InputError(f"a certificate must have the keys {', '.join(names)}")
        for name, kinds in _KINDS.items():
            value = values[name]
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise InputError(f"a certificate must have a valid {name!r}, but {value!r} came")
        trees = values["trees"]
        if trees is not None:
            trees = tuple(_tree(each) for each in trees)
        return Certificate(**(values | {"trees": trees}))


_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(
        ("input", "method", "stage", "arithmetic", "dtype", "bounded_in", "device"), (str,)
    ),
    **dict.fromkeys(("classifier", "graph", "checksum"), (str,)),
    **dict.fromkeys(("specification", "region", "versions"), (dict,)),
    **dict.fromkeys(("margin", "slack"), (int, float)),
    "sample": (int, str),
    "label": (int, type(None)),
    "steps": (int,),
    "trees": (list, type(None)),
}


def _tree(values: Any) -> ProofTree:
    try:
        row, splits, multipliers = (values[name] for name in ("row", "splits", "multipliers"))
        if not all(type(each) is int and each >= -1 for each in (row, *splits)):
            raise InputError("a proof tree must have whole numbers as rows and splits")
        weights = tuple(tuple(float(each) for each in leaf) for leaf in multipliers)
    except (KeyError, TypeError, ValueError):
        raise InputError("a proof tree must have row, splits and multipliers") from None
    return ProofTree(row, tuple(splits), weights)


def write_certificates(path: Path | str, certificates: Iterable[Certificate | None]) -> int:
    """Write certificates to a JSON file, whole or not at all.

    Args:
        path: The file; missing folders are made.
        certificates: As a result has them; None is left out.

    Returns:
        How many were written.

    Raises:
        OSError: If the file cannot be written; one that was there before is then unchanged.
    """
    kept = [each.to_dict() for each in certificates if each is not None]
    whole = {"format": _FORMAT, "schema_version": SCHEMA, "certificates": kept}
    files.write(Path(path), json.dumps(whole, allow_nan=False) + "\n")
    return len(kept)


def read_certificates(path: Path | str) -> list[Certificate]:
    """Read certificates from a JSON file; nothing in it is executed or believed.

    Raises:
        InputError: If the file holds no certificates, or of a form that is not known.
        OSError: If it cannot be read.
    """
    try:
        whole = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"{path} must be a JSON file, but it is none") from None
    if not isinstance(whole, dict) or whole.get("format") != _FORMAT:
        raise InputError(f"{path} must hold {_FORMAT}, but it holds something else")
    if whole.get("schema_version") != SCHEMA:
        raise InputError(
            f"{path} must have schema version {SCHEMA}, but {whole.get('schema_version')!r} came"
        )
    return [Certificate.from_dict(each) for each in whole.get("certificates") or ()]


# --- issuing ------------------------------------------------------------------------------------


class Issuer:
    """Writes down what a certificate says, while samples pass by and when they are proven.

    Args:
        classifier: The classifier.
        model: The same, prepared.
        region: Where each sample is verified.
        specification: What is to be proven.
        method: Name of the method.
        steps: Steps of each optimisation.
        arithmetic: The arithmetic that the proofs are to hold for.
    """

    def __init__(
        self,
        classifier: Classifier,
        model: Model,
        region: Region,
        specification: Specification,
        method: str,
        steps: int,
        arithmetic: str,
    ) -> None:
        self.classifier = classifier
        self.model = model
        self.region = region
        self.specification = specification
        self.method = method
        self.steps = steps
        self.arithmetic = arithmetic
        self._seen: dict[int, tuple[str, torch.dtype]] = {}
        self._known: dict[str, Any] = {}

    def watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass batches on, and note what is in them."""
        for batch in batches:
            for position, each in zip(batch.positions, batch.inputs, strict=True):
                self._seen[position] = digest(each), each.dtype
            yield batch

    def issue(self, verdicts: Sequence[SampleVerdict]) -> tuple[Certificate | None, ...]:
        """Return a certificate for each proven sample, None for the others."""
        return tuple(
            self._certificate(each, self._common()) if each.status == "proven" else None
            for each in verdicts
        )

    def _common(self) -> dict[str, Any]:
        """Return what all certificates have in common."""
        if self._known:
            return self._known
        network = Network(self.model, next(iter(self._seen.values()))[1])
        self._known = {
            "method": self.method,
            "steps": self.steps,
            "arithmetic": self.arithmetic,
            "dtype": _name(network.given),
            "bounded_in": _name(network.dtype),
            "device": self.model.device.type,
            "classifier": self.classifier.fingerprint(),
            "graph": graph_digest(network.graph),
            "versions": versions(),
        }
        return self._known

    def _certificate(self, verdict: SampleVerdict, common: dict[str, Any]) -> Certificate:
        if verdict.stage is None:
            raise TypeError("what is proven was proven by a stage")
        found = Certificate(
            sample=_plain(verdict.id),
            label=verdict.label,
            input=self._seen[verdict.position][0],
            specification=_specification(self.specification, verdict.position),
            region=_region(self.region, verdict.position),
            stage=verdict.stage,
            margin=verdict.margin,
            slack=verdict.slack,
            trees=verdict.trees,
            **common,
        )
        return replace(found, checksum=found.summed())


def _plain(sample: Hashable) -> int | str:
    return sample if type(sample) is int else str(sample)


def _specification(asked: Specification, position: int) -> dict[str, Any]:
    if asked.rows is not None:
        return {"rows": asked.rows.tolist()}
    if asked.top > 1:
        return {"top_k": asked.top}
    targets = asked.targets
    return {"target": int(targets[position]) if isinstance(targets, Tensor) else targets}


def _region(region: Region, position: int) -> dict[str, Any]:
    if isinstance(region, BoxRegion):
        return {"lower": pack(region.lower[position]), "upper": pack(region.upper[position])}
    if not isinstance(region, BallRegion):
        raise TypeError("a region is a ball or a box")
    eps = region.eps[position] if isinstance(region.eps, Tensor) else region.eps
    return {"norm": region.norm, "eps": float(eps)}


def pack(values: Tensor) -> dict[str, Any]:
    """Return a tensor as plain values, exactly: float64, in row order, little-endian, base64."""
    content = values.detach().cpu().double().contiguous().numpy().astype("<f8").tobytes()
    return {"shape": list(values.shape), "base64": base64.b64encode(content).decode("ascii")}


def unpack(values: Any) -> Tensor:
    """Return the tensor that `pack` packed, in float64.

    Raises:
        InputError: If it is none.
    """
    try:
        content = base64.b64decode(values["base64"], validate=True)
        return torch.from_numpy(np.frombuffer(content, "<f8").reshape(values["shape"]).copy())
    except (KeyError, TypeError, ValueError):
        raise InputError("a certificate must have packed numbers as ends of a box") from None


def digest(sample: Tensor) -> str:
    """Return a sample as one line that tells it from others: shape, dtype, hash of the values."""
    content = sample.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    found = hashlib.blake2b(content, digest_size=16).hexdigest()
    return f"{tuple(sample.shape)} {_name(sample.dtype)} {found}"


def graph_digest(graph: Graph) -> str:
    """Return a hash of the operators of a captured module, in order, with their arguments."""
    found = hashlib.blake2b(digest_size=16)
    for node in graph.nodes:
        arguments = map_arg((node.args, node.kwargs), lambda each: each.name)
        found.update(f"{node.name} {node.op} {_target(node)} {arguments!r}\n".encode())
        if node.op == "get_attr":
            value = graph.attribute(node)
            found.update((digest(value) if isinstance(value, Tensor) else repr(value)).encode())
    return found.hexdigest()


def _target(node: fx.Node) -> str:
    if isinstance(node.target, str):
        return node.target
    return f"{node.target.__module__}.{node.target.__name__}"


def versions() -> dict[str, str]:
    """Return the versions that a proof may depend on."""
    return {"pytest_triguard": metadata.version("pytest-triguard"), "torch": torch.__version__}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
