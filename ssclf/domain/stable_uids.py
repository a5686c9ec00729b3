"""UIDs that are the same whenever they are made from the same things, so that running again does not multiply."""

from __future__ import annotations

import uuid

#: Of ssclf alone: what others derive from the same texts differs. Never changes.
_NAMESPACE = uuid.UUID("5e0a3a4e-5d0b-5f0c-9a38-8c1f3cbb7e11")


def stable_uid(*parts: str) -> str:
    """A DICOM UID below 2.25 (PS3.5, B.2) from a name-based UUID (RFC 9562, version 5)."""
    name = "\n".join(f"{len(part)} {part}" for part in parts)  # lengths: no two lists give one text
    return f"2.25.{uuid.uuid5(_NAMESPACE, name).int}"
