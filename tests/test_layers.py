"""The shape of the package: imports point down, and every public name resolves."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_triguard
from pytest_triguard import attacks, attribution_attacks, attributions, backdoors, metrics

ROOT = Path(pytest_triguard.__file__).parent

LAYERS = (
    "errors",
    "files",
    "validation",
    "registry",
    "facts",
    "device_names",
    "record",
    "baseline",
    "settings",
    "statistics",
    "gate",
    "comparison",
    "ranking",
    "measurement",
    "reporting",
    "engine",
    "sources",
    "data",
    "classifier",
    "running",
    "backdoors",
    "attacks",
    "attributions",
    "metrics",
    "pictures",
    "attribution_attacks",
    "verification",
    "checks",
    "assertions",
    "strategies",
    "listing",
    "cli",
    "inifile",
    "options",
    "markers",
    "reproduce",
    "runtime",
    "minimum",
    "seeder",
    "fixtures",
    "plugin",
)
"""Modules and packages from the bottom up; each may import those before it."""

PYTEST_BEGINS = LAYERS.index("inifile")
FAMILIES = {
    each.__name__: each for each in (attacks, attribution_attacks, attributions, backdoors, metrics)
}
METHODS = [
    pytest.param(family, name, id=f"{short.rpartition('.')[2]}-{name}")
    for short, family in FAMILIES.items()
    for name in family.names()
]


def sources():
    return sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem[0] != "_")


def layer_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path):
    """Return the full names a file imports at run time, wherever in it they stand."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            found += [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found += [f"{node.module}.{each.name}" for each in node.names]
        waiting += ast.iter_child_nodes(node)
    return found


def test_every_module_has_its_layer():
    assert {layer_of(path) for path in sources()} == set(LAYERS)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    own = LAYERS.index(layer_of(path))
    for name in imported(path):
        package, _, rest = name.partition(".")
        if package != "pytest_triguard":
            continue
        other = LAYERS.index(rest.partition(".")[0])
        assert other <= own, f"{path} imports {name}, which is above it"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_plugin_knows_pytest_and_reports_know_no_torch(path):
    own = layer_of(path)
    foreign = {name.partition(".")[0] for name in imported(path)}
    if own == "reporting":
        assert foreign.isdisjoint({"torch", "numpy", "captum", "scipy"})
    elif LAYERS.index(own) < PYTEST_BEGINS:
        assert foreign.isdisjoint({"pytest", "_pytest"})
    assert own == "strategies" or "hypothesis" not in foreign


HEAVY = ("torch", "numpy", "captum", "scipy", "pytest", "hypothesis")


def loaded_by(code):
    """Return the heavy libraries that running some code in a new interpreter loads."""
    script = f"{code}\nimport sys\nprint(*(n for n in {HEAVY} if n in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    return done.stdout.split()


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_by("import pytest_triguard") == []


def test_importing_reports_loads_no_torch():
    names = ", ".join(
        f"pytest_triguard.reporting.{path.stem}"
        for path in (ROOT / "reporting").glob("*.py")
        if path.stem != "__init__"
    )
    assert set(loaded_by(f"import {names}")) <= {"pytest"}


def test_importing_the_engines_loads_no_pytest():
    packages = (
        "engine",
        "attacks",
        "attribution_attacks",
        "attributions",
        "metrics",
        "backdoors",
        "verification",
    )
    files = [path for each in packages for path in (ROOT / each).rglob("*.py")]
    names = [
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in files
    ]
    assert "pytest" not in loaded_by(f"import {', '.join(names)}")


def test_only_the_strategies_load_hypothesis():
    names = ", ".join(f"pytest_triguard.{name}" for name in LAYERS if name != "strategies")
    assert "hypothesis" not in loaded_by(f"import {names}")
    assert "hypothesis" in loaded_by("import pytest_triguard; pytest_triguard.strategies")


def test_every_public_name_resolves():
    assert sorted(pytest_triguard.__all__) == list(pytest_triguard.__all__)
    for name in pytest_triguard.__all__:
        assert getattr(pytest_triguard, name).__doc__
        assert name in dir(pytest_triguard)
    with pytest.raises(AttributeError, match="has no attribute 'assert_rubust'"):
        _ = pytest_triguard.assert_rubust


@pytest.mark.parametrize(("family", "name"), METHODS)
def test_every_method_of_a_family_resolves_and_is_documented(family, name):
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name)
    method = family._FAMILY.find(name)
    assert method.name == name
    assert "facts" in vars(method), "facts are not inherited: each method states its own"
    if family is not metrics:  # of which some are the project's own
        assert "References:" in inspect.getdoc(method)
    for own in (each for each in vars(method).values() if inspect.isfunction(each)):
        assert own.__name__.startswith("_") or inspect.getdoc(own), own
    for parameter in inspect.signature(method).parameters:
        documented = "\n".join(inspect.getdoc(each) or "" for each in method.__mro__)
        assert re.search(rf"^\s*{parameter}: ", documented, re.MULTILINE), parameter
