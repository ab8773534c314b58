"""From a call of ``enqueue`` to the message that leaves, or the outbox row: every check that needs no broker."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from topology.contract import DEFAULT_PRIORITY, HIGHEST_PRIORITY, LOWEST_PRIORITY, JobType
from topology.envelope import RECORD, Message, new_id, new_job, trace_headers
from topology.errors import BatchError, EnqueueError, OptionInvalid, PayloadTooLarge
from topology.saga import Saga
from topology.settings import Settings
from topology.slip import Slip, first, message_of
from topology.spec import Names
from topology.text import expect_storable

if TYPE_CHECKING:
    from store.outbox import OutboxRow  # at run time only where a connection is given: it needs the server extra

_SHORT_STRING = 255  # AMQP's limit for message id, correlation id and routing key
_LONGEST_TIMEOUT = 365 * 86400.0
_OUT_OF_REACH = 1e12  # seconds: more than any ladder holds, and few enough to be a float


class JobId(str):
    """A job's id, and what is known of it.

    ``existed`` is whether a job of the same key was there before; None where nobody has looked, as without the
    outbox or without a key.
    """

    __slots__ = ("existed",)
    existed: bool | None

    def __new__(cls, value: str, existed: bool | None = None) -> Self:
        """A text like any other."""
        made = super().__new__(cls, value)
        made.existed = existed
        return made


@dataclass(frozen=True, slots=True)
class SagaOrder:
    """A saga that is to start: its slip, the messages of its first steps, and its payload."""

    slip: Slip
    messages: list[Message]
    body: bytes

    def rows(self, origin: str = "saga") -> list[OutboxRow]:
        """Its first steps as outbox rows."""
        return [row_of(message, origin, None) for message in self.messages]


class OrderBook:
    """Turns payloads and options into messages. Raises an EnqueueError before anything is sent."""

    def __init__(self, settings: Settings) -> None:
        self._names = Names(settings.namespace)
        self._max_payload = settings.max_payload
        self._publish_timeout = settings.publish_timeout

    def message(
        self,
        job_type: JobType[Any],
        payload: Any,
        *,
        priority: int | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        key: str | None = None,
        correlation_id: str | None = None,
    ) -> Message:
        """The message for one job."""
        body = job_type.encode(payload)
        self._expect_fitting(job_type.name, body)
        return new_job(
            self._names,
            job_type.name,
            body,
            job_id=new_id() if key is None else job_type.id_for_key(_checked("key", key)),
            delay=_delay(delay, at),
            priority=_priority(job_type, priority),
            correlation_id=None if correlation_id is None else _checked("correlation_id", correlation_id),
            headers=_headers(job_type),
        )

    def row(
        self, job_type: JobType[Any], payload: Any, *, ordering_key: str | None = None, **options: Any
    ) -> OutboxRow:
        """The outbox row for one job, with the options of `message`: what that refuses is refused here too."""
        row = row_of(self.message(job_type, payload, **options), "enqueue", job_type.group)
        return row if ordering_key is None else replace(row, ordering_key=_checked("ordering_key", ordering_key))

    def saga(self, saga: Saga[Any], payload: Any, *, key: str | None = None) -> SagaOrder:
        """The messages that a saga begins with: one, or several where its first steps are parallel."""
        body = saga.encode(payload)
        self._expect_fitting(saga.name, body)
        saga_id = new_id() if key is None else saga.id_for_key(_checked("key", key))
        return saga_order(self._names, saga.slip(saga_id, time.time()), body, trace_headers())

    def rows(self, job_type: JobType[Any], payloads: Iterable[Any], **options: Any) -> list[OutboxRow]:
        """As `row`, for each; raises BatchError if any is refused, and then nothing is to be written."""
        rows: list[OutboxRow] = []
        failed: list[tuple[int, EnqueueError]] = []
        for index, payload in enumerate(payloads):
            try:
                rows.append(self.row(job_type, payload, **options))
            except EnqueueError as error:
                failed.append((index, error))
        if failed:
            raise BatchError([], failed)
        return rows

    def _expect_fitting(self, name: str, body: bytes) -> None:
        if len(body) > self._max_payload:
            raise PayloadTooLarge(
                f"{name}: the payload is {len(body):,} bytes, the limit is {self._max_payload:,} "
                "(HARELINE_MAX_PAYLOAD); store the data elsewhere and send a reference"
            )

    def timeout(self, seconds: float | None) -> float:
        """How long a publish may take: ``seconds``, or the setting. Infinity is a year."""
        if seconds is None:
            return self._publish_timeout
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
            raise OptionInvalid(f"timeout is {seconds!r}: zero or more seconds are needed")
        return float(min(seconds, _LONGEST_TIMEOUT))


def saga_order(names: Names, slip: Slip, body: bytes, headers: Mapping[str, str] | None) -> SagaOrder:
    """What a saga begins with. ``body`` is its payload, ``headers`` go along with all its steps. Pure."""
    return SagaOrder(slip, [message_of(names, hop, body, headers) for hop in first(slip)], body)


def row_of(message: Message, origin: str, group: str | None) -> OutboxRow:
    """The outbox row that becomes ``message`` once the relay has it."""
    from store.outbox import OutboxRow  # noqa: PLC0415 - see above

    properties = message.properties
    return OutboxRow(
        job_id=job_id_of(message),
        job_type=properties.type or "",
        body=message.body,
        origin=origin,
        priority=properties.priority,
        due_at=None if message.due_at is None else datetime.fromtimestamp(message.due_at, UTC),
        correlation_id=properties.correlation_id,
        headers=properties.headers,
        group_name=group,
    )


def _priority(job_type: JobType[Any], priority: int | None) -> int | None:
    if not job_type.priority:
        if priority is not None:
            raise OptionInvalid(
                f"{job_type.name} has no priorities: declare JobType(..., priority=True), then 'topology migrate'"
            )
        # A quorum queue would honour any priority it sees, and break first-in, first-out.
        return None
    if priority is None:
        return DEFAULT_PRIORITY
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise OptionInvalid(f"priority is {priority!r}: a whole number from 0 to 9 is needed")
    if not LOWEST_PRIORITY <= priority <= HIGHEST_PRIORITY:
        raise OptionInvalid(f"priority is {priority}: it must be from {LOWEST_PRIORITY} to {HIGHEST_PRIORITY}")
    return priority


def _headers(job_type: JobType[Any]) -> Mapping[str, str] | None:
    """What travels along: where it comes from, and what is to be recorded of it, for whoever knows no job types."""
    trace = trace_headers()
    return trace if job_type.record == "all" else {**(trace or {}), RECORD: job_type.record}


def _delay(delay: float | None, at: datetime | None) -> float:
    """Seconds until the job is due. A time that has passed means now."""
    if delay is not None and at is not None:
        raise OptionInvalid("give either delay or at, not both")
    if at is not None:
        if not isinstance(at, datetime):
            raise OptionInvalid(f"at is {at!r}: a datetime is needed")
        if at.utcoffset() is None:
            raise OptionInvalid(f"at is {at.isoformat()}: a time needs a zone, for example datetime.now(UTC)")
        return max(0.0, (at - datetime.now(UTC)).total_seconds())
    if delay is None:
        return 0.0
    if isinstance(delay, bool) or not isinstance(delay, int | float):
        raise OptionInvalid(f"delay is {delay!r}: seconds are needed")
    if not delay >= 0:
        raise OptionInvalid(f"delay is {delay}: it must be zero or more seconds")
    return float(min(delay, _OUT_OF_REACH))


def _checked(name: str, text: str) -> str:
    if not isinstance(text, str) or not text:
        raise OptionInvalid(f"{name} is {text!r}: a text that is not empty is needed")
    expect_storable(**{name: text})
    size = len(text.encode())
    if name == "correlation_id" and size > _SHORT_STRING:
        raise OptionInvalid(f"{name} has {size} bytes: at most {_SHORT_STRING} fit into a message")
    return text


def needs_no_order(ordering_key: str | None) -> None:
    """Raises OptionInvalid for an ordering key where no outbox is used: the broker's confirm order promises nothing."""
    if ordering_key is not None:
        raise OptionInvalid("ordering_key needs connection=: it is the outbox that keeps the order")


def job_id_of(message: Message) -> JobId:
    """The id of the job that a message of the order book's carries."""
    return JobId(message.properties.message_id)
