"""Text of users on its way into a report."""

from __future__ import annotations


def plain(text: str) -> str:
    """Return a text on one line that cannot steer a terminal and that every encoding of it takes.

    Control characters, line ends and lone surrogates become spaces.
    """
    return "".join(char if char.isprintable() else " " for char in text)
