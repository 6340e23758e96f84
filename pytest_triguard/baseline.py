"""Baselines: what the checks of a test module found before, in a file that is committed.

There is one file per test module, `FOLDER/path/of/test_module.py.json`, and in it one line per
check, so that a diff can be read. Nothing here imports more than the standard library.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from pytest_triguard import files
from pytest_triguard.errors import ConfigError
from pytest_triguard.record import Record, Relation

SCHEMA_VERSION = 1

OUTCOMES = "YNU-"
"""Per-sample outcomes of a rate: it has the property, has it not, unknown, does not count."""

SIGNIFICANT_DIGITS = 6
"""Digits a per-sample value is rounded to."""

_SUFFIX = ".json"
_VERSIONS = ("pytest-triguard", "torch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one check found when the baseline was written.

    Attributes:
        test: Name of the test in its module, with classes and parameters.
        check: Name of the check in its test.
        assertion: Name of the assertion.
        metric: What was measured.
        relation: How the value is held against a threshold, which tells which way is worse.
        value: The measured number.
        n: Number of samples it was computed from.
        parameters: Method and parameters.
        data: Fingerprint of inputs, labels and ids.
        classifier: Fingerprint of the classifier.
        device: Device the check ran on.
        chunk: Rows per pass, or None where nothing was chunked.
        versions: Versions of the packages that decide results.
        ids: Sample ids, or None where they are 0, 1, 2, ...
        outcomes: One letter of `OUTCOMES` per sample, for a rate.
        values: One rounded value per sample, None where undefined, for a statistic.
    """

    test: str
    check: str
    assertion: str
    metric: str
    relation: Relation
    value: float
    n: int
    parameters: dict[str, Any]
    data: str
    classifier: str
    device: str
    chunk: int | None
    versions: dict[str, str]
    ids: list[int | str] | None = None
    outcomes: str | None = None
    values: list[float | None] | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Test and check, which are unique in a module."""
        return self.test, self.check

    @property
    def samples(self) -> int:
        """Number of samples, with those that do not count."""
        return len(self.outcomes if self.outcomes is not None else self.values or ())

    def to_json(self) -> str:
        """Return the entry as one line, without what it has none of."""
        kept = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(kept, allow_nan=False)

    @classmethod
    def of(cls, record: Record, versions: Mapping[str, str]) -> Entry:
        """Return the entry of a check that has passed.

        Args:
            record: The record, with what it found per sample.
            versions: Versions of packages, of which those that decide results are kept.
        """
        if record.value is None or record.per_sample is None:
            raise ValueError(f"the record of {record.name!r} has nothing to compare with")
        return cls(
            test=split(record.nodeid)[1],
            check=record.name,
            assertion=record.assertion,
            metric=record.metric,
            relation=record.relation,
            value=record.value,
            n=record.n,
            parameters=record.parameters,
            data=record.data,
            classifier=record.classifier,
            device=record.device,
            chunk=record.chunk,
            versions={name: versions[name] for name in _VERSIONS if name in versions},
            **record.per_sample,
        )


def split(nodeid: str) -> tuple[str, str]:
    """Return the module of a node id and the name of the test in it."""
    module, _, test = nodeid.partition("::")
    return module, test


def rounded(value: float) -> float | None:
    """Return a per-sample value as a baseline keeps it; None for NaN."""
    return None if math.isnan(value) else float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def path_of(folder: Path, module: str) -> Path:
    """Return the file of a test module, always inside the folder.

    Args:
        folder: Folder of the baselines.
        module: Path of the module as node ids have it, relative to the root folder of the tests.

    Raises:
        ConfigError: If the test is outside that folder, where pytest knows no module.
    """
    parts = ["_up" if part == ".." else part for part in PurePosixPath(module).parts]
    inside = PurePosixPath(*(part for part in parts if part != "/"))
    if not inside.name:
        raise ConfigError(
            "a test outside the root folder has no module that a baseline could be named after: "
            "choose a folder above it with --rootdir"
        )
    return folder / inside.with_name(inside.name + _SUFFIX)


class Baselines:
    """The baselines of a run, read as tests ask for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._modules: dict[str, dict[tuple[str, str], Entry]] = {}

    def find(self, nodeid: str, check: str) -> Entry | None:
        """Return the baseline of a check, or None where there is none.

        Raises:
            ConfigError: If the file of its module is no baseline, or there can be none.
        """
        module, test = split(nodeid)
        if module not in self._modules:
            self._modules[module] = read(path_of(self.folder, module), module)
        return self._modules[module].get((test, check))


def not_made(folder: Path, records: Iterable[Record]) -> list[str]:
    """Return the checks of a baseline that the tests of the same modules did not make.

    Args:
        folder: Folder of the baselines.
        records: The checks that were made.

    Returns:
        Node id and name of each check, in order.

    Raises:
        ConfigError: If a file is no baseline.
    """
    made: dict[str, set[tuple[str, str]]] = {}
    for record in records:
        module, test = split(record.nodeid)
        made.setdefault(module, set()).add((test, record.name))
    return [
        f"{module}::{test} ({check})"
        for module, checks in made.items()
        for test, check in sorted(read(path_of(folder, module), module).keys() - checks)
    ]


def check_folder(folder: Path) -> None:
    """Read every baseline in a folder, so that a broken one is found before any test.

    Raises:
        ConfigError: If the folder is a file, or a file in it is no baseline.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is no folder")
    for path in sorted(folder.rglob(f"*{_SUFFIX}")):
        if not path.name.startswith("."):  # one that another run is about to write
            read(path)


def read(path: Path, module: str | None = None) -> dict[tuple[str, str], Entry]:
    """Return the entries of a file by test and check; none where there is no file.

    Args:
        path: The file.
        module: The test module it has to be of, or None for any.

    Raises:
        ConfigError: If it is no baseline of that module: the sentence tells which check is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a baseline: {error}") from error
    return _parsed(text, path, module)


def _parsed(text: str, path: Path, module: str | None) -> dict[tuple[str, str], Entry]:
    try:
        document = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
        return _entries(document, module)
    except RecursionError:
        raise ConfigError(f"{path} is no baseline: it is nested too deeply") from None
    except ValueError as error:  # json.JSONDecodeError among them
        raise ConfigError(f"{path} is no baseline: {error}") from error


def write(folder: Path, records: Iterable[Record], versions: Mapping[str, str]) -> list[Path]:
    """Write the entries of some checks beside those that are there; delete none.

    Args:
        folder: Folder of the baselines; made if it does not exist.
        records: Records of checks that passed.
        versions: Versions of the packages that decide results.

    Returns:
        The files, in order; one whose checks are what they were is left alone.

    Raises:
        OSError: If a file cannot be written; it is then as it was.
        ConfigError: If a file that is there is no baseline, or what would be written is none.
    """
    modules: dict[str, list[Entry]] = {}
    for record in records:
        modules.setdefault(split(record.nodeid)[0], []).append(Entry.of(record, versions))
    paths = []
    for module, entries in sorted(modules.items()):
        path = path_of(folder, module)
        _merge(path, module, entries)
        paths.append(path)
    return paths


def _merge(path: Path, module: str, entries: Iterable[Entry]) -> None:
    with files.locked(path):  # another run may be updating other checks of the module
        merged = read(path, module) | {entry.key: entry for entry in entries}
        lines = ",\n".join(merged[key].to_json() for key in sorted(merged))
        text = (
            f'{{\n"schema_version": {SCHEMA_VERSION},\n"module": {json.dumps(module)},\n'
            f'"checks": [\n{lines}\n]\n}}\n'
        )
        _parsed(text, path, module)  # nobody could read it, and every later run would stop
        files.write(path, text)


# --- reading what somebody may have edited by hand ----------------------------------------------


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} occurs twice in one object")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _entries(document: Any, module: str | None) -> dict[tuple[str, str], Entry]:
    if not isinstance(document, dict) or "schema_version" not in document:
        raise ValueError("it must hold an object with schema_version, module and checks")
    version = document["schema_version"]
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"its schema_version is {version!r}, but this version of pytest-triguard reads "
            f"{SCHEMA_VERSION}; delete it and write it anew with --triguard-update"
        )
    if not isinstance(document.get("module"), str) or not isinstance(document.get("checks"), list):
        raise ValueError("it must hold an object with schema_version, module and checks")
    if module is not None and document["module"] != module:
        raise ValueError(f"it is of the module {document['module']!r}, not of {module!r}")
    found: dict[tuple[str, str], Entry] = {}
    for place, values in enumerate(document["checks"], start=1):
        entry = _entry(values, place)
        if entry.key in found:
            raise ValueError(f"the check {entry.check!r} of {entry.test!r} occurs twice")
        found[entry.key] = entry
    return found


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("test", "check", "assertion", "metric", "relation"), (str,)),
    **dict.fromkeys(("data", "classifier", "device"), (str,)),
    "value": (int, float),
    "n": (int,),
    "parameters": (dict,),
    "versions": (dict,),
    "chunk": (int, type(None)),
    "ids": (list, type(None)),
    "outcomes": (str, type(None)),
    "values": (list, type(None)),
}
_OPTIONAL = {"chunk": None}


def _entry(values: Any, place: int) -> Entry:
    """Return an entry if it is one through and through."""
    if not isinstance(values, dict):
        raise ValueError(f"check {place} is no object")
    named = f"check {place} ({values.get('check')!r} of {values.get('test')!r})"
    names = {each.name for each in fields(Entry)}
    if unknown := sorted(values.keys() - names):
        raise ValueError(f"{named} has the unknown key {unknown[0]!r}")
    values = _OPTIONAL | values
    for name, types in _TYPES.items():
        value = values.get(name)
        if not isinstance(value, types) or isinstance(value, bool):
            raise ValueError(f"{named} has no valid {name!r}: {_short(value)}")
    try:
        entry = Entry(**values)
    except TypeError as error:  # a key is missing that may not be
        raise ValueError(f"{named} is incomplete: {error}") from error
    _check_samples(entry, named)
    return entry


def _check_samples(entry: Entry, named: str) -> None:
    if entry.relation not in get_args(Relation) or not _is_number(entry.value):
        raise ValueError(f"{named} has no valid relation and value")
    if (entry.outcomes is None) == (entry.values is None):
        raise ValueError(f"{named} must have either outcomes or values")
    if entry.outcomes is not None and (strange := set(entry.outcomes) - set(OUTCOMES)):
        raise ValueError(f"{named} has the outcome {min(strange)!r}, but only {OUTCOMES} are known")
    if not all(each is None or _is_number(each) for each in entry.values or ()):
        raise ValueError(f"{named} has values that are no finite numbers")
    kept = entry.outcomes if entry.outcomes is not None else entry.values or ()
    counted = sum(each not in ("-", None) for each in kept)
    if counted != entry.n:
        raise ValueError(f"{named} has n {entry.n}, but {counted} samples that count")
    found = None if entry.outcomes is None else entry.outcomes.count("Y")
    if found is not None and abs(entry.value * counted - found) > 0.5:
        raise ValueError(f"{named} has the value {entry.value}, but {found} of {counted}")
    ids = entry.ids
    if ids is None:
        return
    if not all(isinstance(each, int | str) and not isinstance(each, bool) for each in ids):
        raise ValueError(f"{named} has ids that are neither whole numbers nor strings")
    if len(ids) != entry.samples or len(set(ids)) != len(ids):
        raise ValueError(f"{named} has {len(set(ids))} different ids for {entry.samples} samples")


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max  # also of a whole number that no float can hold


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
