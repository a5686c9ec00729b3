"""Self-contained HTML pages: one file that needs no network, opens from disk and can be mailed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from ssclf import __version__
from ssclf.io.files import whole_file

NOTICE = "Research use only. Not a medical device; not for diagnosis or treatment."


def write_page(template: str, path: Path, **values: Any) -> None:
    """Render a template of `ssclf/reporting/templates` into a file that appears whole.

    Iterables among the values are consumed while the page is written, so a page with thousands of pictures
    never lies in memory.

    Raises:
        OutputError: it cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ssclf.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).generate(notice=NOTICE, version=__version__, **values)
    with whole_file(path) as file:
        file.writelines(page)
