"""Text of others where people read it."""

from __future__ import annotations


def visible(text: str) -> str:
    """Text with every character to be seen: control and direction characters as escapes, such as \\u202e."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def visible_lines(text: str) -> str:
    """The same for text of several lines, which stay lines."""
    return "\n".join(visible(line) for line in text.split("\n"))
