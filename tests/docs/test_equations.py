"""Equations are outlines on the page, in the colour of the text."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import DOCS

pytest.importorskip("matplotlib")

FAMILIES = sorted(
    page for page in (DOCS / "explanation").glob("*.md") if "$$" in page.read_text(encoding="utf-8")
)


@pytest.fixture
def outline(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "_ext")
    from equations import outline

    return outline


def test_an_equation_has_no_identifiers_and_says_what_it_is(outline):
    drawn = outline(r"a < \dfrac{1}{2}")
    assert drawn.startswith('<svg class="equation" role="img"')
    assert r'aria-label="a &lt; \dfrac{1}{2}"' in drawn
    assert 'fill="currentColor"' in drawn
    assert "id=" not in drawn


def test_an_equation_that_is_not_understood_is_an_error(outline):
    with pytest.raises(ValueError, match="unknown"):
        outline(r"\unknown{x}")


@pytest.mark.parametrize("page", FAMILIES, ids=lambda page: page.stem)
def test_every_equation_of_a_family_is_drawn(built, page):
    text = page.read_text(encoding="utf-8")
    blocks = len(re.findall(r"^\$\$$", text, re.MULTILINE)) // 2
    shown = (built / "explanation" / f"{page.stem}.html").read_text(encoding="utf-8")
    assert shown.count('<p class="equation"><svg') == blocks > 0
    assert "<img" in shown or page.stem == "attention"
