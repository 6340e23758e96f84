"""Text of users on its way into a report."""

from __future__ import annotations

import unicodedata


def plain(text: str) -> str:
    """Return a text on one line that cannot steer a terminal and that every encoding of it takes.

    Control characters, line ends and lone surrogates become spaces. Spaces of other scripts stay,
    as the path of a file may have some.
    """
    return "".join(
        char if char.isprintable() or unicodedata.category(char) == "Zs" else " " for char in text
    )
