"""What commands say in plain lines. Names of files and of classes may hold anything; a terminal acts on some of it."""

from __future__ import annotations

import typer

from ssclf.domain.visible import visible_lines


def say(text: str, *, err: bool = False) -> None:
    """One or more lines to stdout, or to stderr, with every character to be seen."""
    typer.echo(visible_lines(text), err=err)
