"""HMAC-SHA256 over raw bytes, digests as senders write them, and time windows. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Iterable
from typing import Any, Final

_DIGEST: Final = 32
_HEX: Final = re.compile(r"[0-9a-fA-F]{64}")
_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}")


def digest(key: bytes, signed: bytes) -> bytes:
    """HMAC-SHA256."""
    return hmac.digest(key, signed, hashlib.sha256)


def any_equal(expected: bytes, presented: Iterable[bytes | None]) -> bool:
    """Whether one of the digests is the expected one. Each is compared in constant time, and all are."""
    found = False
    for candidate in presented:
        found |= hmac.compare_digest(expected, candidate or b"")
    return found


def from_hex(text: str) -> bytes | None:
    """The digest in 64 hexadecimal digits; None for anything else."""
    return bytes.fromhex(text) if _HEX.fullmatch(text) else None


def from_base64(text: str) -> bytes | None:
    """The digest in base64; None for anything else."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if len(raw) == _DIGEST else None


def to_base64(raw: bytes) -> str:
    """Base64 with padding."""
    return base64.b64encode(raw).decode()


def in_window(timestamp: str | None, now: float, window: float) -> bool:
    """Whether Unix seconds, as text, are within ``window`` seconds of ``now``, to either side."""
    if timestamp is None or not _TIMESTAMP.fullmatch(timestamp):
        return False
    return abs(now - int(timestamp)) <= window


def text_at(document: object, *path: str) -> str | None:
    """The text at ``path`` in nested objects; a whole number as text; None for anything else."""
    for name in path:
        if not isinstance(document, dict):
            return None
        document = document.get(name)
    if isinstance(document, int) and not isinstance(document, bool):
        return str(document)
    return document if isinstance(document, str) and document else None


def with_members(body: bytes, **members: str) -> bytes:
    """A JSON object with ``members`` that it lacked put in front; any other body as it is."""
    try:
        document: Any = json.loads(body)
    except (ValueError, RecursionError):
        return body
    if not isinstance(document, dict) or all(name in document for name in members):
        return body
    return json.dumps({**members, **document}, separators=(",", ":")).encode()
