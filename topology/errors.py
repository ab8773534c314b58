"""Every error that Hareline raises, in one tree, so that a caller can catch as widely or narrowly as it likes."""

from __future__ import annotations


class HarelineError(Exception):
    """The root of the tree. Its text names the cause and, where there is one, the cure."""


class SettingsError(HarelineError):
    """A setting is missing or makes no sense."""


class DeclarationInvalid(SettingsError):
    """What a setting declares, webhook sources above all, cannot be: its text names the file, the key and the cure."""


class ContractError(HarelineError):
    """A job type, a retry policy or an app is declared in a way that cannot work."""


class EnqueueError(HarelineError):
    """A job was not accepted. Every error that ``enqueue`` raises derives from this one."""


class PayloadInvalid(EnqueueError):
    """The payload does not fit the job type's model. Nothing was sent."""


class PayloadTooLarge(EnqueueError):
    """The encoded payload exceeds ``HARELINE_MAX_PAYLOAD``. Nothing was sent."""


class OptionInvalid(EnqueueError):
    """Priority, delay, time, key or correlation id is out of range. Nothing was sent."""


class PublishError(EnqueueError):
    """The broker did not take the message, or nobody knows whether it did.

    ``maybe_enqueued`` is True where the message was sent and no answer came: it may run all the same. Enqueueing
    it again with the same ``key`` gives it the same job id.
    """

    maybe_enqueued: bool = False


class Unroutable(PublishError):
    """No queue is bound for the message: the topology is not applied, or lacks this job type. Not enqueued."""


class Refused(PublishError):
    """The broker answered with a nack, for example since the queue is full. Not enqueued."""


class NotConfirmed(PublishError):
    """The message was sent, but no confirm came within the timeout. It may or may not be enqueued."""


class BrokerBlocked(PublishError):
    """The broker takes no publishes (memory or disk alarm) and the timeout passed."""


class ConnectionLost(PublishError):
    """No connection to any broker within the timeout."""


class ProducerClosed(PublishError):
    """The producer was closed, or never opened. Not enqueued."""


class TopologyError(HarelineError):
    """The broker's exchanges, queues and bindings are not what the code expects, or cannot be changed."""


class BrokerUnreachable(TopologyError):
    """No broker answered at any of the URLs."""


class ManagementError(HarelineError):
    """The management API did not answer, refused the user, or said something unexpected."""


class ScheduleInvalid(HarelineError):
    """A schedule that makes no sense: its expression, zone, interval, time or policy. Nothing was stored."""


class StoreError(HarelineError):
    """Something about the database. Every error that the store raises derives from this one."""


class DatabaseUnavailable(StoreError):
    """The database is gone, locked, full or read-only. Nothing was written; the same call may succeed later."""


class SchemaOutdated(StoreError):
    """The database lacks Hareline's tables, or has those of another version."""


class CursorInvalid(StoreError):
    """A page cursor was cut, altered, or belongs to another listing."""


class NotFound(StoreError):
    """There is no such job, schedule or dead letter."""


class BatchError(EnqueueError):
    """Some jobs of an ``enqueue_many`` were not accepted.

    ``accepted`` holds the ids of those that were, ``failed`` pairs of (index in the batch, error) for the others.
    """

    def __init__(self, accepted: list[str], failed: list[tuple[int, EnqueueError]]) -> None:
        index, first = failed[0]
        super().__init__(
            f"{len(failed)} of {len(accepted) + len(failed)} jobs were not accepted; number {index}: {first}"
        )
        self.accepted = accepted
        self.failed = failed
