"""The fenced blocks of a Markdown page, in their order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^```(?P<info>[^`\n]+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_OPTION = re.compile(r"^:(?P<name>[a-z-]+):\s*(?P<value>.*)\n", re.MULTILINE)


@dataclass(frozen=True)
class Fence:
    """One block.

    Attributes:
        language: What it is written in.
        caption: Its caption, by which it names a file, or empty.
        text: What stands in it.
        line: Line of the page on which it begins.
    """

    language: str
    caption: str
    text: str
    line: int


def fences(page: Path) -> Iterator[Fence]:
    """Yield the blocks of a page."""
    whole = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(whole):
        options, text = {}, match["body"]
        if match["info"].startswith("{"):
            while option := _OPTION.match(text):
                options[option["name"]] = option["value"]
                text = text[option.end() :]
            text = text.removeprefix("\n")
        language = match["info"].removeprefix("{code-block}").strip()
        line = whole.count("\n", 0, match.start()) + 1
        yield Fence(language, options.get("caption", ""), text, line)
