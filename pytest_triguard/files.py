"""Files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

_LOCKS = 16


def write(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; a link stays a link, and missing folders are made.

    Raises:
        OSError: If the file cannot be written; one that was there before is then unchanged.
    """
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


Identity = tuple[int, ...]
"""What tells one version of a file from another."""


def identity(path: Path) -> Identity | None:
    """Return what tells this version of a file from any other, or None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def beside(path: Path) -> Path:
    """Return the path of a file that is not there yet, such as `report-2.json`."""
    names = (f"{path.stem}-{number}{path.suffix}" for number in count(2))
    return next(free for name in names if not (free := path.with_name(name)).exists())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other runs of this user from writing a file for a `with` block.

    The lock lies in the folder for temporary files, as nobody wants to commit it. Files share a
    few locks, which are left there: to delete a lock would let two others hold it at once.
    """
    from filelock import FileLock  # a requirement of torch

    user = os.getuid() if hasattr(os, "getuid") else ""  # else the folder is the user's own
    number = hashlib.blake2b(os.fsencode(path.resolve()), digest_size=1).digest()[0] % _LOCKS
    with FileLock(Path(tempfile.gettempdir(), f"pytest-triguard-{user}-{number}.lock")):
        yield
