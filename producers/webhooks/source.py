"""A source of webhooks, as an app declares it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from producers.webhooks.catchall import webhook_received
from producers.webhooks.delivery import Delivery, Identity, Scheme, Signing
from producers.webhooks.location import Location
from producers.webhooks.rate import Rate
from producers.webhooks.schemes import SCHEMES, SchemeName
from topology.contract import JobType
from topology.errors import ContractError, SettingsError
from topology.saga import Saga

Startable = JobType[Any] | Saga[Any]
"""What an event can start."""

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class WebhookSource:
    """Who may send webhooks to ``/webhooks/{name}``, and what each event starts.

    ``scheme`` is one of the seven by name, or a `Scheme` of your own. ``secrets`` are all valid at once, so that one
    can be replaced by another; None takes them from ``HARELINE_WEBHOOKS_SECRETS_{NAME}``, comma-separated.
    ``events`` maps the sender's event names to job types or sagas, which get the body as their payload; ``default``
    gets the others, and without it they become ``webhook.received``. ``window`` is how many seconds a signed time may
    be off. ``event_at`` and ``delivery_id_at`` say where these two are, ``header:X-Event`` or ``body:data.type``, for a
    sender that has them elsewhere than its scheme. ``secrets_file`` holds a secret a line, read when the receiver
    starts. ``rate`` is how many verified deliveries a second one process takes, a number or a `Rate`; more get 429.

    Raises ContractError, and SettingsError for a secret that is missing or cannot be one. Neither shows a secret.
    """

    name: str
    scheme: SchemeName | Scheme = "generic"
    secrets: Sequence[str] | None = field(default=None, repr=False)
    events: Mapping[str, Startable] = field(default_factory=dict)
    default: Startable | None = None
    window: float = 300.0
    event_at: str | None = None
    delivery_id_at: str | None = None
    secrets_file: str | Path | None = None
    rate: Rate | float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ContractError(f"WebhookSource({self.name!r}): letters, digits, - and _, 64 at most; it is in the URL")
        if not isinstance(self.scheme, Scheme) and self.scheme not in SCHEMES:
            raise ContractError(
                f"webhook source '{self.name}': scheme {self.scheme!r} is none: use {', '.join(SCHEMES)}, or your own"
            )
        if not self.window > 0:
            raise ContractError(f"webhook source '{self.name}': window is {self.window}: seconds above zero are needed")
        object.__setattr__(self, "events", dict(self.events))
        for name in ("event_at", "delivery_id_at"):
            try:
                self._location(name)
            except ValueError as error:
                raise ContractError(f"webhook source '{self.name}': {name}: {error}") from None
        if self.secrets_file is not None:
            if self.secrets is not None:
                raise ContractError(f"webhook source '{self.name}': secrets and secrets_file: give one of them")
            object.__setattr__(self, "secrets_file", Path(self.secrets_file))
        if self.rate is not None and not isinstance(self.rate, Rate):
            object.__setattr__(self, "rate", Rate(self.rate))
        if self.secrets is not None:
            object.__setattr__(self, "secrets", _checked(self))

    @property
    def rules(self) -> Scheme:
        """The scheme itself."""
        return SCHEMES[self.scheme] if isinstance(self.scheme, str) else self.scheme

    @property
    def variable(self) -> str:
        """The environment's name for the secrets that are not in the code."""
        return f"HARELINE_WEBHOOKS_SECRETS_{self.name.upper().replace('-', '_')}"

    @property
    def startables(self) -> tuple[Startable, ...]:
        """All that it can start, the catch-all aside."""
        named = (*self.events.values(), *(() if self.default is None else (self.default,)))
        return tuple(started for started in named if started is not webhook_received)

    @property
    def catches(self) -> bool:
        """Whether a delivery of it may become the catch-all `webhook_received`."""
        return self.default is None or webhook_received in (self.default, *self.events.values())

    def armed(self, environment: Mapping[str, str]) -> WebhookSource:
        """The source with its secrets, from its file or the environment where the code gives none.

        Raises SettingsError.
        """
        if self.secrets is not None:
            return self
        if self.secrets_file is not None:
            return replace(self, secrets=_read(self.name, Path(self.secrets_file)), secrets_file=None)
        found = [part.strip() for part in environment.get(self.variable, "").split(",") if part.strip()]
        if not found:
            raise SettingsError(
                f"webhook source '{self.name}' has no secret: set {self.variable}, or give it secrets or a "
                "secrets_file; without one anybody could start jobs"
            )
        return replace(self, secrets=found)

    def verify(self, delivery: Delivery, now: float) -> bool:
        """Whether one of the secrets signed it in time. All are tried, whichever fits."""
        rules = self.rules
        return any(rules.verify(delivery, secret, now, self.window) for secret in self.secrets or ())

    def identify(self, delivery: Delivery, document: object) -> Identity:
        """What the scheme makes of a verified delivery, and what stands where this source has event and id."""
        identity = self.rules.identify(delivery, document)
        event, delivery_id = self._location("event_at"), self._location("delivery_id_at")
        if event is not None:
            identity = replace(identity, event=event.find(delivery, document))
        if delivery_id is not None:
            identity = replace(identity, delivery_id=delivery_id.find(delivery, document))
        return identity

    def sign(self, body: bytes, *, event: str, delivery_id: str, now: float) -> tuple[dict[str, str], bytes]:
        """Headers and body of a test delivery, signed with the first secret. Raises ContractError where none can be."""
        rules = self.rules
        if not isinstance(rules, Signing) or not self.secrets:
            raise ContractError(f"the scheme of '{self.name}' cannot sign: give it sign(), as hareline's own have")
        headers: dict[str, str] = {}
        for name, value in (("event_at", event), ("delivery_id_at", delivery_id)):
            location = self._location(name)
            if location is not None:
                body = location.body(body, value)
                headers |= location.headers(value)
        signature, body = rules.sign(self.secrets[0], body, event=event, delivery_id=delivery_id, now=now)
        placed = {header.lower() for header in headers}
        return {header: value for header, value in signature.items() if header.lower() not in placed} | headers, body

    def _location(self, name: str) -> Location | None:
        text = getattr(self, name)
        return None if text is None else Location.of(text)

    def starts(self, event: str | None) -> Startable | None:
        """The job type or saga for ``event``; None means the catch-all."""
        found = self.default if event is None else self.events.get(event, self.default)
        return None if found is webhook_received else found


def _read(name: str, file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise SettingsError(f"webhook source '{name}': secrets_file {file} cannot be read: {cause}") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise SettingsError(f"webhook source '{name}': secrets_file {file} is empty: write a secret a line")
    return found


def _checked(source: WebhookSource) -> tuple[str, ...]:
    if isinstance(source.secrets, str):
        raise ContractError(f"webhook source '{source.name}': secrets is a text: write secrets=[...]")
    secrets = tuple(source.secrets or ())
    if not secrets:
        raise SettingsError(f"webhook source '{source.name}' has no secret: without one anybody could start jobs")
    for number, secret in enumerate(secrets, start=1):
        if not isinstance(secret, str):
            raise SettingsError(f"webhook source '{source.name}', secret {number} of {len(secrets)}: it is no text")
        try:
            source.rules.check(secret)
        except ValueError as error:
            raise SettingsError(f"webhook source '{source.name}', secret {number} of {len(secrets)}: {error}") from None
    return secrets
