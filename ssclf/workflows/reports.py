"""Pages and pictures of results that are there: one that cannot be made costs itself, never what it shows."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ssclf.errors import SsclfError

log = logging.getLogger(__name__)


def try_report(what: str, write: Callable[[], object]) -> bool:
    """Whether a report was written; if not, the log says why in one line.

    Args:
        what: its name for people.
    """
    try:
        write()
    except Exception as exc:
        text = (
            str(exc)
            if isinstance(exc, SsclfError)
            else f"{type(exc).__name__}: {' '.join(str(exc).split())[:300]}"
        )
        log.error("%s: could not be written (%s); the results themselves are there", what, text)
        log.debug("%s", what, exc_info=True)
        return False
    return True
