"""Hareline: background jobs on RabbitMQ.

Everything a service needs is importable from here; what is not used is not imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from consumers.breaker import Breaker, BreakerOpen
    from consumers.job import Job
    from consumers.outcome import AlreadyDone, Cancelled, Permanent, Snoozed, Transient
    from hareline.app import App
    from hareline.jobs import Jobs
    from hareline.sagas import Sagas
    from producers.blocking import BlockingProducer
    from producers.blocking_schedules import BlockingSchedules
    from producers.dead_letters import DeadLetterFilters, DeadLetters
    from producers.declaration import Schedule
    from producers.producer import Producer
    from producers.schedules import ANY, Schedules
    from producers.webhooks.catchall import WebhookReceived, webhook_received
    from producers.webhooks.delivery import Delivery, Identity
    from producers.webhooks.idempotency import Idempotency
    from producers.webhooks.rate import Rate
    from producers.webhooks.receiver import WebhookReceiver
    from producers.webhooks.source import WebhookSource
    from topology.contract import JobType, Retry
    from topology.errors import (
        BatchError,
        BrokerBlocked,
        ConnectionLost,
        EnqueueError,
        HarelineError,
        NotConfirmed,
        OptionInvalid,
        PayloadInvalid,
        PayloadTooLarge,
        PublishError,
        Refused,
        ScheduleInvalid,
        TopologyError,
        Unroutable,
    )
    from topology.saga import Parallel, Saga, Step
    from topology.settings import Settings

_HOMES = {
    "ANY": "producers.schedules",
    "AlreadyDone": "consumers.outcome",
    "App": "hareline.app",
    "BatchError": "topology.errors",
    "BlockingProducer": "producers.blocking",
    "BlockingSchedules": "producers.blocking_schedules",
    "Breaker": "consumers.breaker",
    "BreakerOpen": "consumers.breaker",
    "BrokerBlocked": "topology.errors",
    "Cancelled": "consumers.outcome",
    "ConnectionLost": "topology.errors",
    "DeadLetterFilters": "producers.dead_letters",
    "DeadLetters": "producers.dead_letters",
    "Delivery": "producers.webhooks.delivery",
    "EnqueueError": "topology.errors",
    "HarelineError": "topology.errors",
    "Idempotency": "producers.webhooks.idempotency",
    "Identity": "producers.webhooks.delivery",
    "Job": "consumers.job",
    "Jobs": "hareline.jobs",
    "JobType": "topology.contract",
    "NotConfirmed": "topology.errors",
    "OptionInvalid": "topology.errors",
    "PayloadInvalid": "topology.errors",
    "PayloadTooLarge": "topology.errors",
    "Parallel": "topology.saga",
    "Permanent": "consumers.outcome",
    "Producer": "producers.producer",
    "PublishError": "topology.errors",
    "Rate": "producers.webhooks.rate",
    "Refused": "topology.errors",
    "Retry": "topology.contract",
    "Saga": "topology.saga",
    "Sagas": "hareline.sagas",
    "Schedule": "producers.declaration",
    "ScheduleInvalid": "topology.errors",
    "Schedules": "producers.schedules",
    "Settings": "topology.settings",
    "Snoozed": "consumers.outcome",
    "Step": "topology.saga",
    "TopologyError": "topology.errors",
    "Transient": "consumers.outcome",
    "Unroutable": "topology.errors",
    "WebhookReceived": "producers.webhooks.catchall",
    "WebhookReceiver": "producers.webhooks.receiver",
    "WebhookSource": "producers.webhooks.source",
    "webhook_received": "producers.webhooks.catchall",
}

__all__ = [
    "ANY",
    "AlreadyDone",
    "App",
    "BatchError",
    "BlockingProducer",
    "BlockingSchedules",
    "Breaker",
    "BreakerOpen",
    "BrokerBlocked",
    "Cancelled",
    "ConnectionLost",
    "DeadLetterFilters",
    "DeadLetters",
    "Delivery",
    "EnqueueError",
    "HarelineError",
    "Idempotency",
    "Identity",
    "Job",
    "JobType",
    "Jobs",
    "NotConfirmed",
    "OptionInvalid",
    "Parallel",
    "PayloadInvalid",
    "PayloadTooLarge",
    "Permanent",
    "Producer",
    "PublishError",
    "Rate",
    "Refused",
    "Retry",
    "Saga",
    "Sagas",
    "Schedule",
    "ScheduleInvalid",
    "Schedules",
    "Settings",
    "Snoozed",
    "Step",
    "TopologyError",
    "Transient",
    "Unroutable",
    "WebhookReceived",
    "WebhookReceiver",
    "WebhookSource",
    "webhook_received",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'hareline' has no attribute '{name}'")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value
