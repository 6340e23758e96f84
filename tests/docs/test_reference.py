"""The built reference names everything there is, and sends its reader nowhere else."""

from __future__ import annotations

import html
import json
import re
from dataclasses import fields

import pytest

import pytest_triguard
from pytest_triguard import (
    attacks,
    attribution_attacks,
    attributions,
    backdoors,
    listing,
    markers,
    metrics,
    plugin,
    verification,
)
from pytest_triguard.checks.check import CheckOptions
from pytest_triguard.record import Record
from tests.docs.pages import DOCS

jsonschema = pytest.importorskip("jsonschema")

FAMILIES = (attacks, attribution_attacks, attributions, backdoors, metrics, verification)
RUN = """
    import pytest
    import torch
    from pytest_triguard import Classifier, assert_accuracy, assert_robust

    @pytest.mark.triguard(compare="eps")
    @pytest.mark.parametrize("eps", [0.0, 0.1])
    def test_gate(eps):
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        images, labels = torch.rand(8, 1, 2, 2), torch.zeros(8, dtype=torch.int64)
        assert_accuracy(Classifier(module), images, labels, at_least=0.0)
        assert_robust(Classifier(module), images, labels, eps=eps, at_least=1.0)
"""


def page(built, name):
    """Return the text of a page, tags and all that is not shown left out."""
    text = (built / f"{name}.html").read_text(encoding="utf-8")
    text = text[text.index("<article") : text.index("</article>")]
    return html.unescape(re.sub(r"<[^>]+>", "", text))


def words(built, name):
    return set(re.findall(r"[\w-]+", page(built, name)))


class Registered:
    """Notes the names of options and ini keys in place of pytest's parser."""

    def __init__(self):
        self.names = []

    def getgroup(self, *_):
        return self

    def addoption(self, name, **_):
        self.names.append(name)

    def addini(self, name, *_, **__):
        self.names.append(name)


def test_every_option_and_ini_key_is_there(built):
    registered = Registered()
    plugin.pytest_addoption(registered)
    assert len(registered.names) >= 13
    assert set(registered.names) <= words(built, "reference/options")


def test_the_marker_and_every_fixture_are_there(built):
    text = page(built, "reference/pytest")
    call, _, meaning = markers.DESCRIPTION.partition(": ")
    assert set(re.findall(r"\w+", call)) <= words(built, "reference/pytest")
    assert meaning.rstrip(".")[1:] in " ".join(text.split())
    for name in plugin.__all__:
        assert name in text


def test_every_assertion_is_there_with_what_all_take(built):
    names = [name for name in pytest_triguard.__all__ if name.startswith("assert_")]
    assert len(names) >= 7
    assert {*names, *CheckOptions.__annotations__} <= words(built, "reference/assertions")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda each: each.__name__.rpartition(".")[2])
def test_every_method_is_there_with_its_hyperparameters(built, family):
    text = (built / f"reference/{family.__name__.rpartition('.')[2]}.html").read_text()
    for name in family.names():
        place = re.sub(r"\W|_", "-", name)
        section = text.partition(f'id="{place}"')[2].partition("<section")[0]
        assert section, name
        if family is not verification:
            for each in fields(family.get(name)):
                assert f">{each.name}<" in section, (name, each.name)


def test_every_public_name_is_somewhere(built):
    inventory = " ".join(
        page(built, f"reference/{each.stem}") for each in (DOCS / "reference").glob("*.md")
    )
    for name in set(pytest_triguard.__all__) - {
        each.__name__.rpartition(".")[2] for each in FAMILIES
    }:
        assert re.search(rf"\b{name}\b", inventory), name


@pytest.fixture
def published(built):
    return json.loads((built / "reference" / "report.schema.json").read_text(encoding="utf-8"))


def test_a_real_report_keeps_the_published_schema(published, pytester):
    pytester.makepyfile(RUN)
    pytester.runpytest_inprocess(
        "-p", "no:randomly", "-p", "no:cacheprovider", "--triguard-json=report.json"
    )
    written = json.loads((pytester.path / "report.json").read_text(encoding="utf-8"))
    assert {check["verdict"] for check in written["checks"]} == {"passed", "failed"}
    assert len(written["comparisons"]) == 2
    jsonschema.Draft202012Validator.check_schema(published)
    jsonschema.validate(written, published)


def test_the_schema_refuses_what_is_no_report(published):
    keys = published["properties"]["checks"]["items"]["properties"]
    assert set(keys) <= {each.name for each in fields(Record)}
    assert {"nodeid", "value", "threshold", "verdict", "counts", "parameters"} <= set(keys)
    for wrong in ({}, {"schema_version": 0, "run": {}, "checks": []}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, published)


def test_the_link_to_the_schema_leads_to_it(built):
    text = (built / "reference" / "report.html").read_text(encoding="utf-8")
    assert 'href="report.schema.json"' in text


def test_pages_load_nothing_from_elsewhere(built):
    """Scripts, styles, fonts and pictures come with the pages."""
    loads = re.compile(
        r"""<(?:script|img|iframe)[^>]*\bsrc="(?:https?:)?//|<link[^>]*rel="""
        r""""(?:stylesheet|preload|icon)"[^>]*href="(?:https?:)?//|url\(["']?https?:"""
    )
    files = [*built.rglob("*.html"), *built.rglob("*.css")]
    assert len(files) > 25
    for file in files:
        assert not loads.search(file.read_text(encoding="utf-8")), file


def test_every_relative_link_and_anchor_leads_somewhere(built):
    anchors = {
        file: set(re.findall(r'\bid="([^"]+)"', file.read_text(encoding="utf-8")))
        for file in built.rglob("*.html")
    }
    for file in anchors:
        for link in re.findall(r'<a[^>]+href="([^"]+)"', file.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = html.unescape(link).partition("#")
            target = (file.parent / path).resolve() if path else file
            assert target.exists(), (file, link)
            if anchor and target.suffix == ".html":
                assert anchor in anchors[target], (file, link)


def test_the_page_of_methods_has_their_facts(built):
    text = page(built, "methods")
    for family in listing.FAMILIES:
        for each in listing.methods(family):
            for fact in (each.name, each.cost, each.sign, *each.axioms, each.source):
                assert fact in text, (each.name, fact)


def test_links_of_the_readme_lead_somewhere():
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", readme)
    assert len(links) > 5
    for link in links:
        assert link.startswith("https://") or (DOCS.parent / link).exists(), link
