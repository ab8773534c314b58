"""How a deployment is: one section for each kind of thing, each with what is wrong about it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from consumers.breaker_survey import Sighting, survey
from consumers.circuit import State
from hareline.app import App
from topology.control import Control, Counts
from topology.errors import BrokerUnreachable, PublishError, SettingsError
from topology.management import Management, QueueInfo
from topology.settings import Settings
from topology.spec import Names


@dataclass(frozen=True, slots=True)
class Asked:
    """What a section may look at. ``app`` is None where HARELINE_APP names none; ``patience`` is seconds."""

    settings: Settings
    app: App | None
    control: Control
    patience: float


@dataclass(frozen=True, slots=True)
class Section:
    """``items`` are for JSON, ``head`` and ``rows`` for people, ``problems`` for both."""

    name: str
    head: Sequence[str]
    items: list[dict[str, Any]]
    rows: list[Sequence[str]]
    problems: list[str] = field(default_factory=list)


async def look(settings: Settings, app: App | None, patience: float) -> list[Section]:
    """All sections, looked at at the same time. Raises BrokerUnreachable, and ManagementError where one is named."""
    async with await Control.connect(settings.broker_urls, name="hareline status") as control:
        asked = Asked(settings, app, control, patience)
        return list(await asyncio.gather(*(section(asked) for section in SECTIONS)))


# -- queues ------------------------------------------------------------------------------------------------------------


async def queues(asked: Asked) -> Section:
    """Queues of job types, and the two where jobs end up that no worker takes."""
    names = Names(asked.settings.namespace)
    management = Management.from_settings(asked.settings)
    seen: dict[str, QueueInfo] = {}
    if management is not None:
        seen = {info.name: info for info in await management.queues(names.namespace)}
    if asked.app is not None:
        wanted = [names.queue(job_type.name) for job_type in asked.app.job_types]
    elif management is not None:
        wanted = [name for name, info in seen.items() if not info.passing and not _is_plumbing(names, name)]
    else:
        raise SettingsError("no app and no management API: set HARELINE_APP or HARELINE_MANAGEMENT_URL")
    wanted = sorted({*wanted, names.dlq, names.unroutable})
    counts = await asyncio.gather(*(asked.control.counts(name) for name in wanted))
    section = Section("queues", ("QUEUE", "READY", "UNACKED", "CONSUMERS"), [], [])
    for name, count in zip(wanted, counts, strict=True):
        unacked = seen[name].unacknowledged if name in seen else None
        section.items.append({
            "name": name,
            "ready": count.ready if count else None,
            "unacknowledged": unacked,
            "consumers": count.consumers if count else None,
        })  # fmt: skip
        shown = (str(count.ready), _or_dash(unacked), str(count.consumers)) if count else ("missing", "-", "-")
        section.rows.append((name, *shown))
        if (problem := _problem(names, name, count)) is not None:
            section.problems.append(problem)
    return section


def _is_plumbing(names: Names, name: str) -> bool:
    return name.startswith(f"{names.namespace}.delay.") or name in names.for_recorders


def _problem(names: Names, name: str, count: Counts | None) -> str | None:
    if count is None:
        return f"{name} is missing: run `hareline topology apply`"
    if name == names.dlq or not count.ready:
        return None
    if name == names.unroutable:
        return f"{name} holds {count.ready} delayed jobs whose queue has gone"
    if not count.consumers:
        return f"{name} has {count.ready} jobs and no consumer: no worker runs for it, or one of its breakers is open"
    return None


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


# -- breakers ----------------------------------------------------------------------------------------------------------

_WORST: Final = (State.OPEN, State.HALF_OPEN, State.CLOSED)


async def breakers(asked: Asked) -> Section:
    """Breakers as the workers that run now see them."""
    section = Section("breakers", ("BREAKER", "STATE", "SINCE", "UNTIL", "WORKERS", "REASON"), [], [])
    try:
        sightings = await survey(asked.settings, asked.patience)
    except (BrokerUnreachable, PublishError) as error:
        section.problems.append(f"the workers cannot be asked for their breakers: {error}")
        return section
    for name in sorted({sighting.standing.name for sighting in sightings}):
        item = _breaker(name, [s for s in sightings if s.standing.name == name])
        section.items.append(item)
        section.rows.append((
            name,
            item["state"],
            item["since"] or "-",
            item["until"] or "-",
            str(len(item["workers"])),
            item["reason"] or "-",
        ))  # fmt: skip
        if item["state"] == State.OPEN:
            section.problems.append(f"breaker {name} is open until {item['until']}: {item['reason']}")
    return section


def _breaker(name: str, sightings: list[Sighting]) -> dict[str, Any]:
    """One breaker, of which workers may differ for a moment: the worst is shown, and who sees what."""
    worst = min(sightings, key=lambda s: (_WORST.index(s.standing.state), -(s.standing.age or 0.0)))
    standing = worst.standing
    until = worst.at + standing.remaining if standing.state is State.OPEN else None
    return {
        "name": name,
        "state": standing.state.value,
        "since": None if standing.age is None else _time(worst.at - standing.age),
        "until": None if until is None else _time(until),
        "failures": standing.failures,
        "reason": standing.reason,
        "workers": [{"worker": s.worker, "state": s.standing.state.value} for s in sightings],
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(max(0.0, min(seconds, time.time() + 366 * 86_400)), UTC).isoformat(timespec="seconds")


SECTIONS: Final[tuple[Callable[[Asked], Awaitable[Section]], ...]] = (queues, breakers)
"""In the order in which they are shown."""
