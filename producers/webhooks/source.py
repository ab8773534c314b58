"""A source of webhooks, as an app declares it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from producers.webhooks.delivery import Delivery, Scheme
from producers.webhooks.schemes import SCHEMES, SchemeName
from topology.contract import JobType
from topology.errors import ContractError, SettingsError

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class WebhookSource:
    """Who may send webhooks to ``/webhooks/{name}``, and what each event starts.

    ``scheme`` is one of the seven by name, or a `Scheme` of your own. ``secrets`` are all valid at once, so that one
    can be replaced by another; None takes them from ``HARELINE_WEBHOOKS_SECRETS_{NAME}``, comma-separated.
    ``events`` maps the sender's event names to job types, which get the body as their payload; ``default`` gets the
    others, and without it they become ``webhook.received``. ``window`` is how many seconds a signed time may be off.

    Raises ContractError, and SettingsError for a secret that is missing or cannot be one. Neither shows a secret.
    """

    name: str
    scheme: SchemeName | Scheme = "generic"
    secrets: Sequence[str] | None = field(default=None, repr=False)
    events: Mapping[str, JobType[Any]] = field(default_factory=dict)
    default: JobType[Any] | None = None
    window: float = 300.0

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
    def job_types(self) -> tuple[JobType[Any], ...]:
        """All that it can start, the catch-all aside."""
        return (*self.events.values(), *(() if self.default is None else (self.default,)))

    def armed(self, environment: Mapping[str, str]) -> WebhookSource:
        """The source with its secrets, from the environment where the code gives none. Raises SettingsError."""
        if self.secrets is not None:
            return self
        found = [part.strip() for part in environment.get(self.variable, "").split(",") if part.strip()]
        if not found:
            raise SettingsError(
                f"webhook source '{self.name}' has no secret: give secrets=[...], or set {self.variable}; "
                "without one anybody could start jobs"
            )
        return replace(self, secrets=found)

    def verify(self, delivery: Delivery, now: float) -> bool:
        """Whether one of the secrets signed it in time. All are tried, whichever fits."""
        rules = self.rules
        return any(rules.verify(delivery, secret, now, self.window) for secret in self.secrets or ())

    def starts(self, event: str | None) -> JobType[Any] | None:
        """The job type for ``event``; None means the catch-all."""
        return self.default if event is None else self.events.get(event, self.default)


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
