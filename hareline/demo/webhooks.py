"""The demo's webhooks: two senders that sign, repeat themselves, and are impersonated; over real HTTP."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from producers.webhooks.delivery import Signing
from producers.webhooks.schemes import SCHEMES
from topology.errors import HarelineError

SENDERS: Final = {"shop": ("woocommerce", "order.created"), "github": ("github", "push")}
EACH: Final = 25
_ADDRESS: Final = re.compile(r"webhooks at (http://\S+)/webhooks/")

Until = Callable[[Callable[[], bool | Awaitable[bool]]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Deliveries:
    """What was answered, and what became of the jobs."""

    accepted: int
    repeats: int
    refused: int
    others: int
    done: int
    mails: int

    @property
    def is_good(self) -> bool:
        """Each signed delivery ran once, whatever was repeated, and no forgery did."""
        signed = EACH * len(SENDERS)
        return (self.accepted, self.repeats, self.refused) == (signed, signed, signed) and (
            self.others == 0 and self.done == self.mails == signed
        )

    def __str__(self) -> str:
        return (
            f"webhooks over HTTP from a shop and GitHub: {self.accepted} accepted, {self.repeats} duplicates known, "
            f"{self.refused} forgeries refused; {self.done} jobs done, {self.mails} mails"
        )


class Senders:
    """``environment`` is what the receiver needs to know them; ``log`` is where its process writes."""

    def __init__(self, log: Path, until: Until, mails_to: Callable[[str], int]) -> None:
        self._log = log
        self._until = until
        self._mails_to = mails_to
        self._secrets = {name: secrets.token_urlsafe(24) for name in SENDERS}
        self._token = secrets.token_urlsafe(24)

    @property
    def environment(self) -> dict[str, str]:
        """The secrets and the token, for the receiver alone."""
        known = {f"HARELINE_WEBHOOKS_SECRETS_{name.upper()}": secret for name, secret in self._secrets.items()}
        return {**known, "HARELINE_WEBHOOKS_TOKEN": self._token}

    async def go(self) -> Deliveries:
        """Every delivery twice and a forgery of it, all at once; then asks what became of each that was accepted."""
        async with httpx.AsyncClient(base_url=await self._address(), timeout=30.0) as client:
            wanted = [(name, number) for name in SENDERS for number in range(EACH)]
            answers = await asyncio.gather(
                *(self._send(client, *one, forged=forged) for one in wanted for forged in (False, False, True))
            )
            ids = {(name, answer.json()["webhook_id"]) for name, answer in answers if answer.status_code < 300}  # noqa: PLR2004

            async def all_done() -> bool:
                return await self._done(client, ids) == len(ids)

            await self._until(all_done)
            done = await self._done(client, ids)
        counts = Counter(answer.status_code for _, answer in answers)
        others = sum(number for status, number in counts.items() if status not in {200, 202, 401})
        mails = sum(self._mails_to(_mailbox(*one)) for one in wanted)
        return Deliveries(counts[202], counts[200], counts[401], others, done, mails)

    async def _send(
        self, client: httpx.AsyncClient, name: str, number: int, *, forged: bool
    ) -> tuple[str, httpx.Response]:
        scheme, event = SENDERS[name]
        rules = SCHEMES[scheme]
        assert isinstance(rules, Signing)
        document = {
            "id": number,
            "to": "forger@example.com" if forged else _mailbox(name, number),
            "subject": f"{event} {number}",
            "text": f"{name} says: {event}, number {number}.",
        }
        secret = "a guess" if forged else self._secrets[name]
        headers, body = rules.sign(
            secret, json.dumps(document).encode(), event=event, delivery_id=f"{name}-{number}", now=time.time()
        )
        return name, await client.post(f"/webhooks/{name}", content=body, headers=headers)

    async def _done(self, client: httpx.AsyncClient, ids: set[tuple[str, str]]) -> int:
        mine = {"Authorization": f"Bearer {self._token}"}
        answers = await asyncio.gather(*(client.get(f"/webhooks/{name}/{one}", headers=mine) for name, one in ids))
        return sum(answer.json().get("status") == "done" for answer in answers)

    async def _address(self) -> str:
        def listens() -> bool:
            return _ADDRESS.search(self._log.read_text(encoding="utf-8")) is not None

        await self._until(listens)
        found = _ADDRESS.search(self._log.read_text(encoding="utf-8"))
        if found is None:
            raise HarelineError(f"`hareline webhooks` does not listen: see {self._log}")
        return found[1]


def _mailbox(name: str, number: int) -> str:
    return f"{name}-{number}@example.com"
