"""Where in a delivery something stands, as a source may say of its event and its delivery id. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from producers.webhooks.delivery import Delivery
from producers.webhooks.signatures import text_at

_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_CURE: Final = "write header:X-Event, or body:data.type for a member of the JSON document"


@dataclass(frozen=True, slots=True)
class Location:
    """``header:NAME``, or ``body:a.b.c``: the member ``c`` of ``b`` of ``a``. Its value is a text or a whole number."""

    kind: str
    path: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Location:
        """Raises ValueError, with the cure in its text."""
        kind, _, rest = text.partition(":") if isinstance(text, str) else ("", "", "")
        path = (rest,) if kind == "header" else tuple(rest.split("."))
        if kind not in {"header", "body"} or not all(path) or (kind == "header" and not _HEADER.fullmatch(rest)):
            raise ValueError(f"{text!r} is no place in a delivery: {_CURE}")
        return cls(kind, path)

    def find(self, delivery: Delivery, document: object) -> str | None:
        """What stands there; None where nothing does, and for a header that came twice."""
        if self.kind == "header":
            return delivery.header(self.path[0]) or None
        return text_at(document, *self.path)

    def headers(self, value: str) -> dict[str, str]:
        """The header that a test delivery needs for it."""
        return {self.path[0]: value} if self.kind == "header" else {}

    def body(self, body: bytes, value: str) -> bytes:
        """The body of a test delivery with ``value`` there, unless it has something there or cannot."""
        if self.kind == "header":
            return body
        try:
            document: Any = json.loads(body)
        except (ValueError, RecursionError):
            return body
        place = document
        for name in self.path[:-1]:
            place = place.setdefault(name, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict) or self.path[-1] in place:
            return body
        place[self.path[-1]] = value
        return json.dumps(document, separators=(",", ":")).encode()
