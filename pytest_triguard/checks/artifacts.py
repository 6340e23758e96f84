"""What a check leaves on disk: counterexamples, certificates and pictures.

Counterexamples are read back and checked again before their file gets its name. Certificates are
for others to check again. Pictures are there to be looked at.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pytest_triguard.checks.finding import Counterexample
from pytest_triguard.engine.model import Model
from pytest_triguard.errors import TriGuardWarning
from pytest_triguard.verification import Certificate, write_certificates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOLERANCE = 1e-6
"""How far outside ball and bounds a counterexample may lie, as a share of the largest of eps, the
bounds and 1. Rounding takes it there; dtypes coarser than float32 are allowed more."""

_LONGEST = 80


def save_counterexamples(
    folder: Path, nodeid: str, name: str, examples: list[Counterexample], model: Model
) -> Path | None:
    """Save counterexamples that hold when they are read back.

    The file is a `.npz` without pickled objects: `ids`, `clean` and `broken` `(n, C, H, W)`,
    `labels`, `targets` (-1 where any class but the label counts), `eps` (NaN where there is no
    ball) and `norms`. Nothing that does not hold is ever seen under its name.

    Args:
        folder: Where to save; made if it is not there.
        nodeid: Node id of the test.
        name: Name of the check.
        examples: What to save.
        model: The network they are to break.

    Returns:
        The path, or None if there is nothing that holds or the folder cannot be written.
    """
    if not examples:
        return None
    path = folder / f"{artifact_name(nodeid, name)}.npz"
    try:
        while examples:
            folder.mkdir(parents=True, exist_ok=True)
            with _temporary(folder) as written:
                _write(written, examples)
                holding = [
                    each
                    for each, holds in zip(examples, _hold(written, model), strict=True)
                    if holds
                ]
                if len(holding) == len(examples):
                    os.replace(written, path)
                    return path
            examples = holding
        path.unlink(missing_ok=True)  # what an earlier run left there
    except OSError as error:
        warnings.warn(
            f"counterexamples could not be saved to {path}: {error}", TriGuardWarning, stacklevel=2
        )
    return None


def save_certificates(
    folder: Path, nodeid: str, name: str, certificates: Sequence[Certificate]
) -> Path | None:
    """Save the certificates of a check in one file, whole or not at all.

    The file is JSON, as `verification.write_certificates` writes it.

    Args:
        folder: Where to save; made if it is not there.
        nodeid: Node id of the test.
        name: Name of the check.
        certificates: What to save.

    Returns:
        The path, or None if there is nothing to save or the folder cannot be written.
    """
    path = folder / f"{artifact_name(nodeid, name)}.certificates.json"
    try:
        if certificates:
            write_certificates(path, certificates)
            return path
        if path.exists():  # what an earlier run left there
            path.unlink()
    except OSError as error:
        warnings.warn(
            f"certificates could not be saved to {path}: {error}", TriGuardWarning, stacklevel=2
        )
    return None


def save_picture(
    folder: Path, nodeid: str, name: str, draw: Callable[[], Figure] | None
) -> Path | None:
    """Save the picture of a failed check as a `.png`, whole or not at all.

    Nothing that goes wrong on the way is raised, also where warnings are errors: it is the failed
    check that its reader is to see.

    Args:
        folder: Where to save; made if it is not there.
        nodeid: Node id of the test.
        name: Name of the check.
        draw: Makes the picture; None where there is none.

    Returns:
        The path, or None if there is no picture.
    """
    if draw is None:
        return None
    path = folder / f"{artifact_name(nodeid, name)}.png"
    try:
        figure = draw()
        folder.mkdir(parents=True, exist_ok=True)
        with _temporary(folder) as written:
            figure.savefig(written, format="png")
            os.replace(written, path)
    except Exception as error:
        with suppress(OSError):
            path.unlink(missing_ok=True)  # what an earlier run left there
        with suppress(TriGuardWarning):
            warnings.warn(
                f"the picture {path} could not be made: {error}", TriGuardWarning, stacklevel=2
            )
        return None
    return path


def artifact_name(nodeid: str, name: str) -> str:
    """Return a file name that every platform takes: short, plain, and one per check."""
    key = f"{nodeid}::{name}".encode(errors="surrogatepass")
    digest = hashlib.blake2b(key, digest_size=8).hexdigest()
    file, _, test = nodeid.partition("::")
    plain = re.sub(r"[^A-Za-z0-9]+", "-", f"{file.rpartition('/')[2]}-{test}-{name}")
    return f"check-{plain.strip('-').lower()[:_LONGEST].strip('-')}-{digest}"


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """Hold the path of a new file in a folder, which is gone afterwards unless it was renamed."""
    path = folder / f".{secrets.token_hex(8)}.tmp"  # tempfile's own are for nobody else to read
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _write(path: Path, examples: list[Counterexample]) -> None:
    with path.open("wb") as file:
        np.savez(
            file,
            ids=np.array([str(each.sample) for each in examples]),
            clean=_stacked([each.clean for each in examples]),
            broken=_stacked([each.broken for each in examples]),
            labels=np.array([each.label for each in examples]),
            targets=np.array([-1 if each.target is None else each.target for each in examples]),
            eps=np.array([np.nan if each.eps is None else each.eps for each in examples]),
            norms=np.array([each.norm for each in examples]),
        )


def _stacked(inputs: list[Tensor]) -> np.ndarray[tuple[int, ...], np.dtype[np.floating]]:
    stacked = torch.stack([each.detach().cpu() for each in inputs])
    # numpy has no bfloat16; every number of it is one of float32.
    return (stacked.float() if stacked.dtype == torch.bfloat16 else stacked).numpy()


def _hold(path: Path, model: Model) -> list[bool]:
    """Read counterexamples back, and return which of them break their property."""
    with np.load(path, allow_pickle=False) as saved:
        clean, broken = (
            torch.from_numpy(saved[name]).to(dtype=model.dtype) for name in ("clean", "broken")
        )
        asked = [saved[name].tolist() for name in ("labels", "targets", "eps", "norms")]
    predicted = model.predict(broken.to(model.device)).tolist()
    low, high = (each.cpu().double() for each in model.bounds(broken.dtype))
    slack = max(TOLERANCE, 2 * torch.finfo(broken.dtype).eps)
    largest = max(1.0, float(low.abs().max()), float(high.abs().max()))
    clean, broken = clean.double(), broken.double()
    outside = torch.maximum(low - broken, broken - high).flatten(1).amax(1).tolist()
    return [
        (found != label if target < 0 else found == target)
        and beyond <= slack * largest
        and not _distance(offset, norm) > eps + slack * max(largest, eps)
        for found, beyond, offset, label, target, eps, norm in zip(
            predicted, outside, broken - clean, *asked, strict=True
        )
    ]


def _distance(offset: Tensor, norm: str) -> float:
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    return float(torch.linalg.vector_norm(offset, ord=order))
