"""Reads Google docstrings: the text before the sections, and the entries of a section."""

from __future__ import annotations

import inspect
import re
import textwrap

_SECTION = re.compile(
    r"^(Args|Attributes|Returns|Yields|Raises|References|Example|Examples):$", re.MULTILINE
)
_ENTRY = re.compile(r"^(\*{0,2}\w+): ", re.MULTILINE)


def sections(thing: object) -> dict[str, str]:
    """Return the text of each section by title; what stands before the first is under `""`."""
    parts = _SECTION.split(inspect.getdoc(thing) or "")
    titled = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {"": parts[0].strip()} | {
        title: textwrap.dedent(text).strip() for title, text in titled.items()
    }


def entries(thing: object) -> dict[str, str]:
    """Return the description of every argument or attribute, on one line, by its name."""
    found: dict[str, str] = {}
    for title in ("Args", "Attributes"):
        parts = _ENTRY.split(sections(thing).get(title, ""))
        names, texts = parts[1::2], parts[2::2]
        found |= {name: " ".join(text.split()) for name, text in zip(names, texts, strict=True)}
    return found
