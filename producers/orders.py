"""From a call of ``enqueue`` to the message that leaves: every check that needs no broker."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from topology.contract import DEFAULT_PRIORITY, HIGHEST_PRIORITY, LOWEST_PRIORITY, JobType
from topology.envelope import Message, new_id, new_job, trace_headers
from topology.errors import OptionInvalid, PayloadTooLarge
from topology.settings import Settings
from topology.spec import Names

_SHORT_STRING = 255  # AMQP's limit for message id, correlation id and routing key
_LONGEST_TIMEOUT = 365 * 86400.0
_OUT_OF_REACH = 1e12  # seconds: more than any ladder holds, and few enough to be a float


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
        if len(body) > self._max_payload:
            raise PayloadTooLarge(
                f"{job_type.name}: the payload is {len(body):,} bytes, the limit is {self._max_payload:,} "
                "(HARELINE_MAX_PAYLOAD); store the data elsewhere and send a reference"
            )
        return new_job(
            self._names,
            job_type.name,
            body,
            job_id=new_id() if key is None else job_type.id_for_key(_checked("key", key)),
            delay=_delay(delay, at),
            priority=_priority(job_type, priority),
            correlation_id=None if correlation_id is None else _checked("correlation_id", correlation_id),
            headers=trace_headers(),
        )

    def timeout(self, seconds: float | None) -> float:
        """How long a publish may take: ``seconds``, or the setting. Infinity is a year."""
        if seconds is None:
            return self._publish_timeout
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
            raise OptionInvalid(f"timeout is {seconds!r}: zero or more seconds are needed")
        return float(min(seconds, _LONGEST_TIMEOUT))


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
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise OptionInvalid(f"{name} is {text!r}: {error.reason}") from None
    if name == "correlation_id" and size > _SHORT_STRING:
        raise OptionInvalid(f"{name} has {size} bytes: at most {_SHORT_STRING} fit into a message")
    return text


def job_id_of(message: Message) -> str:
    """The id of the job that a message of the order book's carries."""
    job_id: str = message.properties.message_id
    return job_id
