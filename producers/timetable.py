"""What somebody asks of a schedule, checked, and as the columns of its row; and a row's recurrence again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, get_args

from pydantic_core import PydanticSerializationError, to_jsonable_python

from producers.declaration import Misfire, Overlap
from producers.orders import OrderBook
from producers.recurrence import Cron, Every, Once, Recurrence
from store.schedules import ACTIVE, ALIVE, STATUSES, Anything, Filters, ScheduleRecord, payload_hash
from topology.contract import JobType
from topology.envelope import new_id
from topology.errors import OptionInvalid, PayloadInvalid, ScheduleInvalid
from topology.text import expect_storable, flaw_of, shown

TICK: Final = timedelta(microseconds=1)
"""The finest difference between two times."""
_LONGEST_TEXT: Final = 200


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything about a schedule that is neither its job nor its time. Raises ScheduleInvalid.

    ``misfire_window`` is seconds: an occurrence that is later than this is never made up for.
    """

    name: str | None = None
    group: str | None = None
    misfire: Misfire = "latest"
    misfire_window: float | None = None
    overlap: Overlap = "allow"

    def __post_init__(self) -> None:
        for what, text in (("name", self.name), ("group", self.group)):
            if text is not None and (not isinstance(text, str) or not text or len(text) > _LONGEST_TEXT):
                raise ScheduleInvalid(f"{what} is {shown(text)}: a text of 1 to {_LONGEST_TEXT} characters is needed")
            flaw = None if text is None else flaw_of(text)
            if flaw is not None:
                raise ScheduleInvalid(f"{what} is {shown(text)}: {flaw}")
        if self.misfire not in get_args(Misfire):
            raise ScheduleInvalid(f"misfire is {self.misfire!r}: use latest, all or skip")
        if self.overlap not in get_args(Overlap):
            raise ScheduleInvalid(f"overlap is {self.overlap!r}: use allow, skip or buffer_one")
        window = self.misfire_window
        if window is not None and (isinstance(window, bool) or not isinstance(window, int | float) or not window > 0):
            raise ScheduleInvalid(f"misfire_window is {window!r}: more than zero seconds are needed")

    def columns(self) -> dict[str, Any]:
        """As the row has them."""
        return {
            "name": self.name,
            "group_name": self.group,
            "misfire": self.misfire,
            "misfire_window": self.misfire_window,
            "overlap": self.overlap,
        }


def moment_of(what: str, moment: datetime) -> datetime:
    """``moment``, which must have a zone. Raises ScheduleInvalid."""
    if not isinstance(moment, datetime):
        raise ScheduleInvalid(f"{what} is {moment!r}: a datetime is needed")
    if moment.utcoffset() is None:
        raise ScheduleInvalid(f"{what} is {moment.isoformat()}: a time needs a zone, for example datetime.now(UTC)")
    return moment


def seconds_of(what: str, duration: float | timedelta) -> float:
    """Seconds, which must be a number. Raises ScheduleInvalid."""
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise ScheduleInvalid(f"{what} is {duration!r}: seconds or a timedelta are needed")
    return float(seconds)


def group_of(job_type: JobType[Any], group: str | None) -> str | None:
    """The group that was asked for, or else the job type's own."""
    return job_type.group if group is None else group


def columns_of(recurrence: Recurrence) -> dict[str, Any]:
    """The columns that say when."""
    columns: dict[str, Any] = dict.fromkeys(("expression", "zone", "interval_seconds", "start_at"))
    if isinstance(recurrence, Once):
        return columns | {"kind": "once", "start_at": recurrence.at}
    if isinstance(recurrence, Every):
        return columns | {"kind": "every", "interval_seconds": recurrence.interval, "start_at": recurrence.start}
    return columns | {"kind": "cron", "expression": recurrence.expression, "zone": recurrence.zone}


def job_columns(orders: OrderBook, job_type: JobType[Any], payload: Any, priority: int | None) -> dict[str, Any]:
    """The columns that say what. Raises PayloadInvalid, PayloadTooLarge and OptionInvalid, as ``enqueue`` does."""
    message = orders.message(job_type, payload, priority=priority)
    return {
        "job_type": job_type.name,
        "job_group": job_type.group,
        "record": job_type.record,
        "timeout": job_type.timeout,
        "payload": message.body.decode(),
        "payload_hash": payload_hash(json.loads(message.body)),
        "priority": message.properties.priority,
    }


def new_columns(due: datetime | None, now: datetime, source: str) -> dict[str, Any]:
    """The columns of a schedule that begins."""
    return {
        "id": new_id(),
        "status": ACTIVE,
        "next_run_at": due,
        "source": source,
        "runs": 0,
        "created_at": now,
        "updated_at": now,
    }


def first_run(recurrence: Every | Cron, now: datetime) -> datetime:
    """When a new schedule runs first: now at the earliest. Raises ScheduleInvalid where it never would."""
    due = recurrence.next_after(now - TICK)
    if due is None:
        raise ScheduleInvalid(f"{recurrence} has no run after {now.isoformat()}")
    return due


def every_of(every: float | timedelta, start: datetime | None, now: datetime) -> Every:
    """The recurrence; without a ``start`` the first run is when one interval has passed."""
    seconds = seconds_of("every", every)
    if start is not None:
        return Every(seconds, moment_of("start", start))
    Every(seconds, now)  # what it refuses shall be said before anything is added to a time
    try:
        return Every(seconds, now + timedelta(seconds=seconds))
    except OverflowError:
        raise ScheduleInvalid(f"every is {every}: that is beyond the year 9999") from None


def recurrence_of(record: ScheduleRecord) -> Recurrence:
    """When the schedule of a row runs."""
    if record.kind == "cron":
        return Cron(record.expression or "", record.zone or "UTC")
    assert record.start_at is not None
    if record.kind == "once":
        return Once(record.start_at)
    return Every(record.interval or 0.0, record.start_at)


def due_between(recurrence: Recurrence, start: datetime, end: datetime) -> Iterator[datetime]:
    """Every due time from ``start`` to ``end``, both included."""
    due = recurrence.next_after(start - TICK)
    while due is not None and due <= end:
        yield due
        due = recurrence.next_after(due)


def hash_of(job_type: JobType[Any] | str | None, args: Any) -> str:
    """The payload hash that a schedule made with ``args`` has. Raises PayloadInvalid.

    A JobType fills in its model's defaults; where its name alone is known, ``args`` must be the whole payload.
    """
    if isinstance(job_type, JobType):
        return payload_hash(json.loads(job_type.encode(args)))
    try:
        return payload_hash(to_jsonable_python(args))
    except (PydanticSerializationError, ValueError) as error:
        raise PayloadInvalid(f"args cannot be written as JSON: {error}") from None


def filters_of(
    job_type: JobType[Any] | str | None,
    args: Any,
    group: str | None,
    statuses: tuple[str, ...] = (),
    due_from: datetime | None = None,
    due_before: datetime | None = None,
) -> Filters:
    """What a caller asks for, as a query takes it. Raises PayloadInvalid, OptionInvalid and ScheduleInvalid."""
    type_name = job_type.name if isinstance(job_type, JobType) else job_type
    expect_storable(type=type_name, group=group)
    return Filters(
        statuses,
        type_name,
        group,
        None if isinstance(args, Anything) else hash_of(job_type, args),
        None if due_from is None else moment_of("due_from", due_from),
        None if due_before is None else moment_of("due_before", due_before),
    )


def statuses_of(status: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """One status, several, or none for all. Raises OptionInvalid."""
    statuses = () if status is None else (status,) if isinstance(status, str) else tuple(status)
    for name in statuses:
        if name not in STATUSES:
            raise OptionInvalid(f"status is {name!r}: use {', '.join(STATUSES)}")
    return statuses


def expect_alive(record: ScheduleRecord, verb: str) -> None:
    """Raises ScheduleInvalid for a schedule that has ended."""
    if record.status not in ALIVE:
        raise ScheduleInvalid(f"schedule {record.id} is {record.status} and cannot be {verb}: make a new one")
