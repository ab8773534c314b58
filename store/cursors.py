"""Page cursors: where the next page of a listing begins. Opaque to callers, and checked when they come back."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any, Final

from topology.errors import CursorInvalid

_CHECK: Final = 6


def encode_cursor(listing: str, position: list[Any]) -> str:
    """The cursor after ``position`` (JSON values) in ``listing``, which names the query and its filters."""
    body = json.dumps(position, separators=(",", ":")).encode()
    return _written(_check(listing, body) + body)


def decode_cursor(listing: str, cursor: str) -> list[Any]:
    """The position that `encode_cursor` was given. Raises CursorInvalid for one that was altered, or is another's."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        position = json.loads(raw[_CHECK:])
    except ValueError:
        raw, position = b"", None
    if not isinstance(position, list) or raw[:_CHECK] != _check(listing, raw[_CHECK:]) or _written(raw) != cursor:
        raise CursorInvalid(
            "this cursor is damaged or belongs to another listing: take it from 'next' of the page before, "
            "with the same filters"
        )
    return position


def _written(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _check(listing: str, body: bytes) -> bytes:
    # Not a secret: it keeps mistakes apart from pages. Whoever forges one sees a page of what may be listed anyway.
    return hashlib.sha256(listing.encode() + b"\0" + body).digest()[:_CHECK]
