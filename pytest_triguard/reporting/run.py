"""Facts about a run that its reports state: device, seed, versions, commit, times."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any

from pytest_triguard.record import Record
from pytest_triguard.settings import Settings

_PACKAGES = ("pytest-triguard", "pytest", "torch", "captum", "numpy", "scipy")
_GIT_SECONDS = 10.0


def version_of(package: str) -> str | None:
    """Return the version of an installed package, which is not imported."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide results."""
    found = {package: version_of(package) for package in _PACKAGES}
    known = {package: version for package, version in found.items() if version is not None}
    return {"python": python_version()} | known


def header(settings: Settings) -> str:
    """Return the line at the top of a run that was given an option or an ini key."""
    facts = [f"device {settings.device or 'of the model'}", f"seed {settings.seed}"]
    if settings.samples is not None:
        facts.append(f"samples {settings.samples}")
    if settings.confidence is not None:
        facts.append(f"confidence {settings.confidence:g}")
    if (torch := version_of("torch")) is not None:
        facts.append(f"torch {torch}")
    return f"triguard: {', '.join(facts)}"


@dataclass(kw_only=True)
class Run:
    """One pytest run.

    Attributes:
        settings: Settings of the run.
        folder: Root folder of the tests.
        started: When the run started, with its time zone.
        seconds: How long it took.
    """

    settings: Settings
    folder: Path
    started: datetime
    seconds: float

    def device(self, records: Iterable[Record]) -> str | None:
        """Return the device that was asked for, else those that the checks ran on."""
        used = dict.fromkeys(record.device for record in records)
        return self.settings.device or ", ".join(used) or None

    @cached_property
    def commit(self) -> str | None:
        """Commit that is checked out, or None where git knows none."""
        try:
            done = subprocess.run(
                ["git", "rev-parse", "HEAD"],
                cwd=self.folder,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                text=True,
                timeout=_GIT_SECONDS,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() or None

    @cached_property
    def versions(self) -> dict[str, str]:
        """Versions of Python and of the packages that decide results."""
        return installed_versions()

    def to_dict(self, records: Iterable[Record]) -> dict[str, Any]:
        """Return the facts as plain values."""
        return {
            "device": self.device(records),
            "seed": self.settings.seed,
            "versions": self.versions,
            "commit": self.commit,
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 3),
        }
