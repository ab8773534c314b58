"""The app: which job types a service knows, and which handlers run them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from consumers.breaker import Breaker
from consumers.registry import Registry
from producers.declaration import Schedule
from producers.webhooks.catchall import webhook_received
from producers.webhooks.declared import declared_webhooks
from producers.webhooks.source import WebhookSource
from topology.contract import JobType
from topology.errors import ContractError
from topology.saga import Saga
from topology.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])


class App:
    """The one object that ``HARELINE_APP=module:attribute`` names.

    A service that only publishes lists its job types; one that works them adds handlers. ``sagas`` bring the job types
    of their steps and undos along. ``schedules`` are made so in the database by each ``hareline scheduler`` at its
    start; their job types must be listed, and their names differ. ``webhooks`` are served by `hareline webhooks`; what
    they start must be listed too. One without ``default`` adds the catch-all `webhook_received`. ``breakers`` are
    those that handlers use without declaring them: these too are shared between the replicas.
    """

    def __init__(
        self,
        *,
        job_types: Iterable[JobType[Any]] = (),
        sagas: Iterable[Saga[Any]] = (),
        schedules: Iterable[Schedule] = (),
        webhooks: Iterable[WebhookSource] = (),
        breakers: Iterable[Breaker] = (),
    ) -> None:
        self.registry = Registry(job_types)
        self.sagas = tuple(sagas)
        _check_sagas(self.sagas)
        for job_type in (job_type for saga in self.sagas for job_type in saga.job_types):
            self.registry.declare(job_type)
        for breaker in breakers:
            self.registry.guard(breaker)
        self.schedules = tuple(schedules)
        self.webhooks = tuple(webhooks)
        _check(self.schedules, self.job_types)
        _check_webhooks(self.webhooks, self.job_types, self.sagas)
        if any(source.catches for source in self.webhooks):
            self.registry.declare(webhook_received)

    def webhooks_with(self, settings: Settings) -> tuple[WebhookSource, ...]:
        """The sources of the code, and those that ``HARELINE_WEBHOOKS`` declares. Raises DeclarationInvalid."""
        names = [source.name for source in self.webhooks]
        return (*self.webhooks, *declared_webhooks(settings, (*self.job_types, *self.sagas), names))

    def job_types_with(self, settings: Settings) -> tuple[JobType[Any], ...]:
        """`job_types`, and the catch-all where a source of ``HARELINE_WEBHOOKS`` needs it.

        Raises DeclarationInvalid.
        """
        declared = declared_webhooks(
            settings, (*self.job_types, *self.sagas), [source.name for source in self.webhooks]
        )
        missing = webhook_received not in self.job_types and any(source.catches for source in declared)
        return (*self.job_types, webhook_received) if missing else self.job_types

    @property
    def job_types(self) -> tuple[JobType[Any], ...]:
        """All job types, in the order of their declaration."""
        return self.registry.job_types

    @property
    def undos(self) -> tuple[JobType[Any], ...]:
        """The job types that undo a step of a saga: their queues take compensation events too."""
        return tuple({undo.name: undo for saga in self.sagas for undo in saga.undos}.values())

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


def _check_sagas(sagas: tuple[Saga[Any], ...]) -> None:
    names = [saga.name for saga in sagas]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ContractError(f"two sagas are called '{twice[0]}': it is what tells them apart")


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


def _check_webhooks(
    sources: tuple[WebhookSource, ...], job_types: tuple[JobType[Any], ...], sagas: tuple[Saga[Any], ...]
) -> None:
    known = {job_type.name for job_type in job_types}
    names: set[str] = set()
    for source in sources:
        for started in source.startables:
            if isinstance(started, Saga):
                missing = "sagas" if started not in sagas else None
            else:
                missing = "job_types" if started.name not in known else None
            if missing:
                raise ContractError(
                    f"webhook source '{source.name}': add '{started.name}' to the app's {missing}, or nobody runs it"
                )
        if source.name in names:
            raise ContractError(f"two webhook sources have the name '{source.name}': it is in their address")
        names.add(source.name)
