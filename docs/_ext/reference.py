"""Sphinx extension: directives that write the reference from the code.

Each directive makes Markdown, or reStructuredText for autodoc, and has it parsed in its place, so
that a page of the reference says where things stand and the code says what they are.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import plugin_facts
import report_schema
from docstrings import entries, sections
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

import pytest_triguard
from pytest_triguard import listing, verification
from pytest_triguard.verification.methods import BOUNDS, FALSIFIERS, STAGES

SCHEMA_FILE = "report.schema.json"
"""Stands beside the page that describes it."""


class Generated(SphinxDirective):
    """A directive whose content is text that is made when the page is built."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the made text, parsed."""
        container = nodes.Element()
        container.document = self.state.document
        text = "\n".join(self.lines()).splitlines()
        self.state.nested_parse(text, self.content_offset, container, match_titles=True)
        return list(container.children)

    def lines(self) -> Iterator[str]:
        """Yield the text, in Markdown."""
        raise NotImplementedError


class Options(Generated):
    """Every option of the command line."""

    def lines(self) -> Iterator[str]:
        """Yield one entry per option."""
        for option in plugin_facts.options():
            twin = f"Ini key: `{option.key}`." if option.key else "Command line only; no ini key."
            usage = f"{option.flag}={option.metavar}" if option.metavar else option.flag
            yield from (
                "",
                f":::{{option}} {usage}",
                _literal(_sentence(option.help)),
                "",
                twin,
                ":::",
            )


class Marker(Generated):
    """The marker."""

    def lines(self) -> Iterator[str]:
        """Yield its call and its description."""
        call, text = plugin_facts.marker()
        yield from (f":::{{py:decorator}} pytest.mark.{call}", _sentence(text), ":::")


class Fixtures(Generated):
    """Every fixture."""

    def lines(self) -> Iterator[str]:
        """Yield one row per fixture."""
        yield from ("| fixture | scope | gives |", "|---|---|---|")
        for each in plugin_facts.fixtures():
            yield f"| `{each.name}` | {each.scope} | {_literal(' '.join(each.text.split()))} |"


class Public(Generated):
    """Documentation of objects by their docstrings, through autodoc."""

    has_content = True

    def lines(self) -> Iterator[str]:
        """Yield one autodoc directive per line `kind name`, or per assertion."""
        wanted = list(self.content) or [
            f"function pytest_triguard.{name}"
            for name in pytest_triguard.__all__
            if name.startswith("assert_")
        ]
        for line in wanted:
            kind, name, *settings = line.split()
            if not self.content:
                yield from ("", f"## `{name.rpartition('.')[2]}`", "")
            yield from ("```{eval-rst}", f".. auto{kind}:: {name}")
            yield from (
                f"   :{each.replace('=', ': ')}{'' if '=' in each else ':'}" for each in settings
            )
            yield from ("```", "")


class Methods(Generated):
    """Every method of one family, with its hyperparameters and their defaults."""

    required_arguments = 1

    def lines(self) -> Iterator[str]:
        """Yield one section per method."""
        family = importlib.import_module(f"pytest_triguard.{self.arguments[0]}")
        for name in family.names():
            yield from ("", f"## `{name}`", "", *_method(family._FAMILY.find(name)))


class Table(Generated):
    """Every method of one family with its facts, one row each."""

    required_arguments = 1

    def lines(self) -> Iterator[str]:
        """Yield the table; a column that would be empty is left out."""
        rows = [
            {
                "name": f"`{each.name}`",
                "method": each.summary,
                "passes": each.cost,
                "sign": each.sign,
                "axioms": ", ".join(each.axioms),
                "source": each.source,
                "checked against": each.checked or "no",
            }
            for each in listing.methods(self.arguments[0])
        ]
        kept = [title for title in rows[0] if any(row[title] for row in rows)]
        yield from (_table_row(kept), _table_row("---" for _ in kept))
        for row in rows:
            yield _table_row(row[title].replace("|", "\\|") for title in kept)


def _table_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


class Verifiers(Generated):
    """Every method of the verifier, with the stages it runs."""

    def lines(self) -> Iterator[str]:
        """Yield one section per method."""
        for name in verification.names():
            stages = STAGES[name]
            yield from ("", f"## `{name}`", "")
            told = [
                f"the {'attack' if each in FALSIFIERS else 'bound'} `{each}`" for each in stages
            ]
            if len(stages) > 1:
                yield f"Stages: clean prediction, {', '.join(told)},"
                yield "each on the samples that are still open."
            else:
                yield f"Stages: clean prediction, then {told[0]}. No attack is run."
            if name in stages:
                yield from ("", *_method(BOUNDS.find(name)))


class Schema(Generated):
    """Every key of the report."""

    def lines(self) -> Iterator[str]:
        """Yield one row per key of the run and of a check."""
        whole = report_schema.schema()
        compared = whole["properties"]["comparisons"]["items"]
        for title, part in (
            ("run", whole["properties"]["run"]),
            ("checks", whole["properties"]["checks"]["items"]),
            ("comparisons", compared),
            ("rows", compared["properties"]["rows"]["items"]),
        ):
            yield from ("", f"## `{title}`", "", "| key | type | meaning |", "|---|---|---|")
            for name, kind in part["properties"].items():
                yield f"| `{name}` | {_type(kind)} | {kind['description']} |"


def _sentence(text: str) -> str:
    """Return a text that begins with a capital letter and ends with a full stop."""
    return text[0].upper() + text[1:].rstrip(".") + "."


def _literal(text: str) -> str:
    """Return a text whose options are set as code."""
    return re.sub(r"(?<![`\w-])(--[a-z][\w-]*)", r"`\1`", text)


def _type(kind: dict[str, Any]) -> str:
    """Return a schema in a few words."""
    if "enum" in kind:
        return ", ".join(f"`{json.dumps(each)}`" for each in kind["enum"])
    if "anyOf" in kind:
        return " or ".join(_type(each) for each in kind["anyOf"])
    if "prefixItems" in kind:
        return f"array of {len(kind['prefixItems'])} numbers"
    names = kind.get("type", "any")
    if names == "array":
        return f"array of {_type(kind['items'])}"
    return " or ".join([names] if isinstance(names, str) else names)


def _method(method: type) -> Iterator[str]:
    """Yield what a method is, its hyperparameters, and where it comes from."""
    told = sections(method)
    yield from (told[""], "")
    texts = {}
    for each in reversed(method.__mro__):
        texts |= entries(each)
    rows = [
        f"| `{each.name}` | {_default(method, each.name)} | {texts[each.name]} |"
        for each in (fields(method) if hasattr(method, "__dataclass_fields__") else ())
    ]
    if rows:
        yield from ("| hyperparameter | default | meaning |", "|---|---|---|", *rows, "")
    if "References" in told:
        yield f"*{' '.join(told['References'].split())}*"


def _default(method: type, name: str) -> str:
    """Return a default as the source spells it, `8 / 255` rather than its many digits."""
    for owner in method.__mro__:
        if name in vars(owner).get("__annotations__", {}):
            body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
            for line in getattr(body, "body", ()):
                if isinstance(line, ast.AnnAssign) and getattr(line.target, "id", "") == name:
                    return "required" if line.value is None else f"`{ast.unparse(line.value)}`"
    raise LookupError(f"{method.__name__} has no field {name!r}")


def link_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Link an object that annotations name by its module to where its public name is described."""
    short = node["reftarget"].rpartition(".")[2]
    home = node["reftarget"].partition(".")[0]
    if node["refdomain"] != "py" or (home != "pytest_triguard" and home != short):
        return None
    domain = env.domains.python_domain
    for name, entry in domain.objects.items():
        if name.rpartition(".")[2] == short and entry.objtype in ("class", "exception"):
            return domain.resolve_xref(
                env, node["refdoc"], app.builder, entry.objtype, name, node, content
            )
    return None


def write_schema(app: Sphinx, error: Exception | None) -> None:
    """Write the schema beside the page that describes it."""
    if error is None and app.builder.format == "html":
        text = json.dumps(report_schema.schema(), indent=2)
        (Path(app.outdir) / "reference" / SCHEMA_FILE).write_text(text + "\n", encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directives."""
    directives: dict[str, type[Generated]] = {
        "options": Options,
        "marker": Marker,
        "fixtures": Fixtures,
        "public": Public,
        "methods": Methods,
        "table": Table,
        "verifiers": Verifiers,
        "schema": Schema,
    }
    for name, directive in directives.items():
        app.add_directive(f"triguard-{name}", directive)
    app.connect("missing-reference", link_public_name)
    app.connect("build-finished", write_schema)
    return {"version": pytest_triguard.__version__, "parallel_read_safe": True}
