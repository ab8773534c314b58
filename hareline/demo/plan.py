"""What the demo publishes, and what must become of each job. Pure: the same count and seed, the same plan."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel

from consumers.jobs.email import Email
from consumers.jobs.http import Sync
from consumers.jobs.media import Thumbnail
from hareline.demo.contracts import make_thumbnail, send_email, sync_document
from hareline.demo.errand import Errand, run_errand
from topology.contract import JobType

Phase = Literal["steady", "burst"]
End = Literal["done", "dead"]

SIZES: Final = [320, 96]
STEADY_SHARE: Final = 0.4
DELAYED_SHARE: Final = 0.05
PICTURES: Final = 40

_SHARES: Final = {"email.send": 0.40, "http.sync": 0.35, "media.thumbnail": 0.15, "demo.poison": 0.10}

# What goes wrong with how many of a type's jobs (at least one each); the others go right at once.
_TROUBLE: Final[dict[str, dict[str, float]]] = {
    "email.send": {"greylisted-1": 0.03, "greylisted-2": 0.02, "nobody": 0.01},
    "http.sync": {
        "busy": 0.04,
        "limited": 0.02,
        "dropped": 0.02,
        "slow": 0.04,
        "missing": 0.01,
        "garbage": 0.01,
    },
    "media.thumbnail": {"cut-off.jpg": 0.01, "flipped.png": 0.01, "text.jpg": 0.01, "nowhere.jpg": 0.01},
    "demo.poison": {},
}
_DEADLY: Final = {
    "nobody",
    "missing",
    "garbage",
    "cut-off.jpg",
    "flipped.png",
    "text.jpg",
    "nowhere.jpg",
    "poisoned",
}
_RETRIED: Final = {"greylisted-1", "greylisted-2", "busy", "limited", "dropped"}


@dataclass(frozen=True, slots=True)
class Planned:
    """One job. ``trouble`` is what goes wrong with it, "" for nothing; ``delay`` is seconds."""

    number: int
    job_type: JobType[Any]
    payload: BaseModel
    trouble: str
    phase: Phase
    delay: float | None = None
    priority: int | None = None

    @property
    def end(self) -> End:
        """Where the job must end: with its effect, or in the dead-letter queue."""
        return "dead" if self.trouble in _DEADLY else "done"

    @property
    def is_retried(self) -> bool:
        """Whether the world refuses it at first."""
        return self.trouble in _RETRIED


def plan(count: int, seed: int = 1) -> list[Planned]:
    """About ``count`` jobs in the order of their publication: first the steady phase, then the burst."""
    chance = random.Random(seed)  # noqa: S311 - a mix, not a secret
    mixed = list(_mix(count))
    chance.shuffle(mixed)
    steady = round(len(mixed) * STEADY_SHARE)
    # The poisoned job goes into the midst of the steady phase, where its neighbours are at work.
    mixed.insert(steady // 3, (run_errand, "poisoned"))
    jobs = []
    for number, (job_type, trouble) in enumerate(mixed):
        delayed = trouble != "poisoned" and chance.random() < DELAYED_SHARE
        urgent = job_type.priority and chance.random() < 0.1  # noqa: PLR2004 - every tenth
        jobs.append(
            Planned(
                number,
                job_type,
                _PAYLOADS[job_type.name](number, trouble),
                trouble,
                "steady" if number < steady else "burst",
                round(chance.uniform(1.0, 5.0), 1) if delayed else None,
                9 if urgent else None,
            )
        )
    return jobs


def _mix(count: int) -> Iterator[tuple[JobType[Any], str]]:
    for job_type in (send_email, sync_document, make_thumbnail, run_errand):
        trouble = _TROUBLE[job_type.name]
        total = max(len(trouble) + 1, round(count * _SHARES[job_type.name]))
        left = total
        for kind, share in trouble.items():
            affected = max(1, round(total * share))
            left -= affected
            yield from ((job_type, kind) for _ in range(affected))
        yield from ((job_type, "") for _ in range(max(left, 0)))


def _email(number: int, trouble: str) -> BaseModel:
    mailbox = f"{trouble}-ann{number}" if trouble else f"ann{number}"
    return Email(
        to=f"{mailbox}@example.com",
        subject=f"Your order {number} is on its way",
        text=f"Dear Ann,\n\nyour order {number} left our house today.\n",
        html=f"<p>Dear Ann,</p><p>your order <b>{number}</b> left our house today.</p>",
    )


def _sync(number: int, trouble: str) -> BaseModel:
    return Sync(
        path=f"/{trouble or 'ready'}/products/{number}",
        document={"sku": f"P-{number:05d}", "stock": number % 50, "price": "19.90"},
    )


def _thumbnail(number: int, trouble: str) -> BaseModel:
    name = trouble or f"picture-{number % PICTURES:03d}.{'png' if number % 4 == 3 else 'jpg'}"  # noqa: PLR2004
    return Thumbnail(source=f"originals/{name}", sizes=SIZES, output_dir=f"thumbnails/{number}")


def _errand(_: int, trouble: str) -> BaseModel:
    return Errand(poisoned=trouble == "poisoned")


_PAYLOADS: Final[dict[str, Callable[[int, str], BaseModel]]] = {
    "email.send": _email,
    "http.sync": _sync,
    "media.thumbnail": _thumbnail,
    "demo.poison": _errand,
}
