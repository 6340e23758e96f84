"""Every Python snippet of the documentation runs, page by page and in order.

A snippet that begins with a comment that names a file is that file; one whose tests take fixtures
of the plugin is a file of tests; any other is run as it stands, with the names of `stand_ins`
defined. In the end pytest runs the files of the page, and all of their tests pass. A comment
`skip: next` before a snippet marks it as an illustration.
"""

from __future__ import annotations

import re

import pytest

import pytest_triguard.assertions  # noqa: F401 - in-process runs drop what they import first
import tests.docs.stand_ins as stand_ins
from tests.docs.pages import DOCS, ROOT

sybil = pytest.importorskip("sybil")
from sybil.evaluators.python import PythonEvaluator  # noqa: E402
from sybil.parsers.myst import CodeBlockParser, SkipParser  # noqa: E402

FOLLOWED = "tutorial.md"
"""This page is followed as a whole, by a test of its own."""

ILLUSTRATIONS_AT_MOST = 2
QUIET = ("-q", "-p", "no:randomly", "-p", "no:cacheprovider")
NAMES = ", ".join(name for name in vars(stand_ins) if not name.startswith("_") and name != "nn")
PRELUDE = f"from tests.docs.stand_ins import {NAMES.replace('annotations, ', '')}\n"
FIXTURES = """
import pytest
from tests.docs.stand_ins import classifier, images, labels

@pytest.fixture(scope="session")
def triguard_classifier():
    return classifier

@pytest.fixture(scope="session")
def triguard_data():
    return images, labels
"""
RED_GATE = """
from pytest_triguard import assert_robust

def test_red(triguard_classifier, triguard_data):
    assert_robust(triguard_classifier, *triguard_data, eps=0.3, at_least=1.0)
"""
TAKES_FIXTURES = re.compile(r"^def test_\w+\([^)]*\btriguard_", re.MULTILINE)
FILE = re.compile(r"# (\w+\.py)\n")
PAGES = sorted(
    page
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md"))
    if page.name != FOLLOWED and re.search(r"^```(\{code-block\} )?python", page.read_text(), re.M)
)


class Files:
    """Takes the snippets of a page that are files, and runs the others."""

    def __init__(self, folder):
        self.folder = folder
        self.tests = []
        self.run = PythonEvaluator()

    def __call__(self, example):
        text = str(example.parsed)
        if named := FILE.match(text):
            self.write(named[1], PRELUDE + text)
        elif TAKES_FIXTURES.search(text):
            fragment = "import pytest\nfrom pytest_triguard import *\n" + PRELUDE
            self.write(f"test_line_{example.line}.py", fragment + text)
        else:
            self.run(example)

    def write(self, name, text):
        (self.folder / name).write_text(text, encoding="utf-8")
        if name.startswith("test_"):
            self.tests.append(name)


def read(page, evaluator):
    parsers = [CodeBlockParser("python", evaluator), SkipParser()]
    return sybil.Sybil(parsers=parsers).parse(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets_run(page, pytester, monkeypatch):
    pytester.makeconftest(FIXTURES)
    if ".triguard/artifacts" in page.read_text(encoding="utf-8"):
        pytester.makepyfile(test_red=RED_GATE)
        pytester.runpytest_inprocess(*QUIET).assert_outcomes(failed=1)
    files = Files(pytester.path)
    document = read(page, files)
    document.namespace.update(vars(stand_ins))
    for example in document.examples():
        example.evaluate()
    if files.tests:
        options = QUIET
        if any("max_regression" in (pytester.path / name).read_text() for name in files.tests):
            monkeypatch.delenv("CI", raising=False)
            options = (*QUIET, "--triguard-baseline=baseline")
            pytester.runpytest_inprocess(*options, *files.tests, "--triguard-update")
        result = pytester.runpytest_inprocess(*options, *files.tests)
        outcomes = result.parseoutcomes()
        assert outcomes.keys() <= {"passed", "deselected"}, page
        assert outcomes["passed"] >= len(files.tests)


def test_few_snippets_are_illustrations():
    marked = [page for page in PAGES if "skip: next" in page.read_text(encoding="utf-8")]
    assert len(marked) <= ILLUSTRATIONS_AT_MOST, marked


@pytest.mark.parametrize("snippet", ["1 / 0", "def test_wrong(triguard_data):\n    assert False"])
def test_a_snippet_that_fails_is_noticed(pytester, snippet):
    pytester.makeconftest(FIXTURES)
    page = pytester.path / "page.md"
    page.write_text(f"# Page\n\n```python\n{snippet}\n```\n", encoding="utf-8")
    files = Files(pytester.path)

    def follow():
        for example in read(page, files).examples():
            example.evaluate()
        pytester.runpytest_inprocess(*QUIET, *files.tests).assert_outcomes(passed=1)

    with pytest.raises((ZeroDivisionError, AssertionError)):
        follow()
