"""The app: which job types a service knows, and which handlers run them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from consumers.breaker import Breaker
from consumers.registry import Registry
from producers.declaration import Schedule
from producers.webhooks.catchall import webhook_received
from producers.webhooks.source import WebhookSource
from topology.contract import JobType
from topology.errors import ContractError

F = TypeVar("F", bound=Callable[..., Any])


class App:
    """The one object that ``HARELINE_APP=module:attribute`` names.

    A service that only publishes lists its job types; one that works them adds handlers. ``schedules`` are made so
    in the database by each ``hareline scheduler`` at its start; their job types must be listed, and their names differ.
    ``webhooks`` are served by `hareline webhooks`; their job types must be listed too. One without ``default`` adds
    the catch-all `webhook_received`. ``breakers`` are those that handlers use without declaring them: these too are
    shared between the replicas.
    """

    def __init__(
        self,
        *,
        job_types: Iterable[JobType[Any]] = (),
        schedules: Iterable[Schedule] = (),
        webhooks: Iterable[WebhookSource] = (),
        breakers: Iterable[Breaker] = (),
    ) -> None:
        self.registry = Registry(job_types)
        for breaker in breakers:
            self.registry.guard(breaker)
        self.schedules = tuple(schedules)
        self.webhooks = tuple(webhooks)
        _check(self.schedules, self.job_types)
        _check_webhooks(self.webhooks, self.job_types)
        if any(source.default is None for source in self.webhooks):
            self.registry.declare(webhook_received)

    @property
    def job_types(self) -> tuple[JobType[Any], ...]:
        """All job types, in the order of their declaration."""
        return self.registry.job_types

    def handler(
        self,
        job_type: JobType[Any],
        *,
        permanent: Iterable[type[BaseException]] = (),
        transient: Iterable[type[BaseException]] = (),
        breaker: Breaker | Iterable[Breaker] = (),
    ) -> Callable[[F], F]:
        """Registers the decorated function as the handler: ``(payload, job)`` or ``(payload)``, async or plain.

        ``permanent`` and ``transient`` are exception classes that decide about a retry by themselves. A plain
        function runs in a thread, which a timeout cannot stop: it only ends the waiting for it.

        ``breaker`` guards a service, or several do, that every job of the type needs: while one is open, no job of
        the type is consumed. What calls the service still stands in ``async with breaker:``.
        """
        breakers = (breaker,) if isinstance(breaker, Breaker) else tuple(breaker)

        def register(function: F) -> F:
            self.registry.register(job_type, function, permanent=permanent, transient=transient, breakers=breakers)
            return function

        return register


def _check(schedules: tuple[Schedule, ...], job_types: tuple[JobType[Any], ...]) -> None:
    known = {job_type.name for job_type in job_types}
    names: set[str] = set()
    for schedule in schedules:
        if schedule.job_type.name not in known:
            raise ContractError(
                f"schedule '{schedule.name}': add '{schedule.job_type.name}' to the app's job_types, or nobody runs it"
            )
        if schedule.name in names:
            raise ContractError(f"two schedules have the name '{schedule.name}': it is what tells them apart")
        names.add(schedule.name)


def _check_webhooks(sources: tuple[WebhookSource, ...], job_types: tuple[JobType[Any], ...]) -> None:
    known = {job_type.name for job_type in job_types}
    names: set[str] = set()
    for source in sources:
        for job_type in source.job_types:
            if job_type.name not in known:
                raise ContractError(
                    f"webhook source '{source.name}': add '{job_type.name}' to the app's job_types, or nobody runs it"
                )
        if source.name in names:
            raise ContractError(f"two webhook sources have the name '{source.name}': it is in their address")
        names.add(source.name)
