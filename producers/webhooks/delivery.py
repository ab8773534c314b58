"""A delivery as it came over the wire, and what a scheme reads out of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Delivery:
    """Headers and the raw bytes of the body: signatures are over these bytes, before anything is parsed."""

    headers: tuple[tuple[str, str], ...]
    body: bytes

    @classmethod
    def of(cls, headers: Iterable[tuple[str, str]], body: bytes) -> Delivery:
        """With header names as they come, in any case."""
        return cls(tuple((name.lower(), value) for name, value in headers), body)

    def header(self, name: str) -> str | None:
        """The value of a header, whatever its case; None where it is missing.

        None also where it is there twice: two readers could take different ones, and one of them may be forged.
        """
        found = [value for key, value in self.headers if key == name.lower()]
        return found[0] if len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class Identity:
    """What a delivery says of itself: the event that it tells of, and what tells it from every other delivery.

    ``delivery_id`` is None where nothing does: then each one is new. ``fingerprint`` are bytes that a repeat has in
    common with the first; None means the whole body.
    """

    event: str | None = None
    delivery_id: str | None = None
    fingerprint: bytes | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that a scheme gives by itself, with status 200, where a provider only tries the address."""

    body: bytes
    content_type: str = "application/json"


@runtime_checkable
class Scheme(Protocol):
    """How one kind of sender signs and names its deliveries. Write one for a sender that none of the seven fits.

    `verify` sees raw bytes from anybody: it must compare in constant time (`hmac.compare_digest`) and return False,
    not raise, for whatever it cannot understand. `identify` is called for verified deliveries only.
    """

    def check(self, secret: str) -> None:
        """Raises ValueError, without the secret in its text, where ``secret`` can be none of this scheme's."""

    def verify(self, delivery: Delivery, secret: str, now: float, window: float) -> bool:
        """Whether ``secret`` signed it, not more than ``window`` seconds from ``now`` (Unix seconds)."""
        ...

    def identify(self, delivery: Delivery, document: object) -> Identity:
        """``document`` is the body, parsed."""
        ...


@runtime_checkable
class Signing(Protocol):
    """A scheme that can also sign, for test deliveries."""

    def sign(
        self, secret: str, body: bytes, *, event: str, delivery_id: str, now: float
    ) -> tuple[dict[str, str], bytes]:
        """Headers and body of a signed delivery; event and id are put where the scheme has them."""
        ...


@runtime_checkable
class Answering(Protocol):
    """A scheme whose senders try the address before they use it."""

    def unsigned(self, delivery: Delivery) -> Reply | None:
        """The answer to a ping that is never signed; it must start nothing and tell nothing."""
        ...

    def signed(self, delivery: Delivery, document: object) -> Reply | None:
        """The answer to a verified try-out."""
        ...
