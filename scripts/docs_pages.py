"""A hook of mkdocs: pages of the site that are not written by hand in docs/.

- `commands.md`: the reference of commands, read from the program itself, so that it cannot fall behind.
- Pages that live at the root of the repository, where people look for them there (README, changelog and the like).

Pages of docs/ link to files of the repository as its host resolves them (`../ARCHITECTURE.md`). In the site those that
are pages are linked as pages, and the name alone is left of the others: the site does not know where the repository is.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

#: Files at the root and the pages that they are in the site.
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
_CODE = re.compile(r"`[^`]*`")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^()\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    made = {page: relink((ROOT / name).read_text("utf-8"), "") for name, page in PAGES.items()}
    made["commands.md"] = commands_page()
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Also: a bar in code in a table is written `\\|` for the repository's host, and stands as it is for mkdocs."""
    text = markdown if page.file.generated_by else relink(markdown, "docs")
    return re.sub(
        r"(?m)^\|.*$", lambda line: _CODE.sub(lambda code: code[0].replace("\\|", "|"), line[0]), text
    )


def relink(text: str, folder: str) -> str:
    """Links of a Markdown file in a folder of the repository, as the site needs them."""

    def replace(found: re.Match[str]) -> str:
        words, (target, _, anchor) = found[1], found[2].partition("#")
        if "://" in target or not target:
            return found[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        page = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else "")
        if not page:
            if not (ROOT / path).exists():
                raise FileNotFoundError(f"{found[0]}: there is no {path} in the repository")
            return words
        return f"[{words}]({page}{'#' + anchor if anchor else ''})"

    return _LINK.sub(replace, text)


# ---------------------------------------------------------------------------------------------------------------------


def commands_page() -> str:
    """Every command with usage, options, defaults and values, as the program has them."""
    import typer

    sys.path.insert(0, str(ROOT))  # this checkout's program, whatever is installed
    from ssclf import __version__
    from ssclf.cli.app import app

    parts = [
        "# Commands\n",
        f"Read from ssclf {__version__} when this page was made; `ssclf COMMAND --help` says the same. Names and "
        "defaults are promises: [what you can rely on](contract.md#commands).\n",
    ]
    for name, command in walk(typer.main.get_command(app), "ssclf"):
        parts += [describe(name, command, typer.Context(command, info_name=name))]
    return "\n".join(parts)


def walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, command
    for word, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            yield from walk(child, f"{name} {word}")


def describe(name: str, command: Any, context: Any) -> str:
    below = getattr(command, "commands", {})
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    lines = [f"## `{name}`\n", f"{plain(command.help)}\n", f"```\n{usage}\n```\n"]
    if below:
        lines += ["| command | does |", "|---|---|"]
        for word, child in below.items():
            anchor = f"{name} {word}".replace(" ", "-")
            lines.append(f"| [`{word}`](#{anchor}) | {cell(plain(child.help).splitlines()[0])} |")
        lines.append("")
    panels: dict[str, list[Any]] = {}
    for parameter in command.params:
        if not getattr(parameter, "hidden", False) and parameter.name != "help":
            usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
            panels.setdefault(getattr(parameter, "rich_help_panel", None) or usual, []).append(parameter)
    for panel, parameters in panels.items():
        lines += [f"**{panel}**\n", "| name | value | default | meaning |", "|---|---|---|---|"]
        lines += [row(parameter, context) for parameter in parameters]
        lines.append("")
    return "\n".join(lines)


def row(parameter: Any, context: Any) -> str:
    flag = getattr(parameter, "is_flag", False)
    argument = parameter.param_type_name == "argument"
    names = [parameter.name.upper()] if argument else [*parameter.opts, *parameter.secondary_opts]
    value = "" if flag else f"`{cell(parameter.display_type(context).strip('<>'))}`"
    if getattr(parameter, "multiple", False) or parameter.nargs == -1:
        value += " (several)"
    cells = [
        "<br>".join(f"`{name}`" for name in names),
        value,
        default(parameter),
        cell(plain(parameter.help)),
    ]
    return f"| {' | '.join(cells)} |"


def default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required:
        return "required"
    if value is None or parameter.show_default is False or callable(value):
        return ""
    if isinstance(value, bool):
        return (
            ""
            if not parameter.secondary_opts
            else f"`{parameter.opts[0] if value else parameter.secondary_opts[0]}`"
        )
    if isinstance(value, list | tuple):
        return " ".join(f"`{getattr(item, 'value', item)}`" for item in value)
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{getattr(value, 'value', value)}`"


def plain(text: str | None) -> str:
    """Help without rich's markup, with Markdown's own signs taken literally."""
    from rich.text import Text

    shown = Text.from_markup(text or "").plain.strip()
    return re.sub(r"([*_<])", r"\\\1", shown)


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
