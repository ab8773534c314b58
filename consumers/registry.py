"""Which handler runs which job type."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from consumers.breaker import Breaker
from topology.contract import JobType
from topology.errors import ContractError

Handler = Callable[..., Any]

_WITH_JOB = 2


@dataclass(frozen=True, slots=True)
class Route:
    """A job type with its handler. ``permanent`` and ``transient`` are exception classes that decide themselves.

    ``breakers`` guard what every job of the type needs: while one is open, none is consumed.
    """

    job_type: JobType[Any]
    handler: Handler
    is_async: bool
    wants_job: bool
    permanent: tuple[type[BaseException], ...] = ()
    transient: tuple[type[BaseException], ...] = ()
    breakers: tuple[Breaker, ...] = ()


class Registry:
    """The routes of an app, one per job type."""

    def __init__(self, job_types: Iterable[JobType[Any]] = ()) -> None:
        self._types: dict[str, JobType[Any]] = {}
        self._routes: dict[str, Route] = {}
        self._breakers: dict[str, Breaker] = {}
        for job_type in job_types:
            self.declare(job_type)

    @property
    def job_types(self) -> tuple[JobType[Any], ...]:
        """All declared job types, with or without a handler here."""
        return tuple(self._types.values())

    def declare(self, job_type: JobType[Any]) -> None:
        """Adds a job type. Raises ContractError if another one has its name."""
        known = self._types.setdefault(job_type.name, job_type)
        if known is not job_type:
            raise ContractError(f"two job types are called '{job_type.name}'")

    @property
    def breakers(self) -> tuple[Breaker, ...]:
        """All breakers that handlers declare, or the app itself."""
        return tuple(self._breakers.values())

    def guard(self, breaker: Breaker) -> None:
        """Adds a breaker. Raises ContractError if another one has its name."""
        if self._breakers.setdefault(breaker.name, breaker) is not breaker:
            raise ContractError(f"two breakers are called '{breaker.name}': make it once, and import it")

    def register(
        self,
        job_type: JobType[Any],
        handler: Handler,
        *,
        permanent: Iterable[type[BaseException]] = (),
        transient: Iterable[type[BaseException]] = (),
        breakers: Iterable[Breaker] = (),
    ) -> None:
        """Sets the handler of a job type, which takes ``(payload, job)`` or ``(payload)``."""
        self.declare(job_type)
        if job_type.name in self._routes:
            raise ContractError(f"'{job_type.name}' has a handler already: {self._routes[job_type.name].handler!r}")
        self._routes[job_type.name] = Route(
            job_type,
            handler,
            inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None)),  # noqa: B004
            _takes_job(job_type, handler),
            tuple(permanent),
            tuple(transient),
            tuple(breakers),
        )
        for breaker in self._routes[job_type.name].breakers:
            self.guard(breaker)

    def route(self, job_type: str) -> Route | None:
        """The route of a job type, or None."""
        return self._routes.get(job_type)

    def select(self, patterns: Iterable[str] = ()) -> tuple[Route, ...]:
        """The routes whose job type matches one of the names or globs; all of them where none is given.

        Raises ContractError for a pattern that matches nothing, and names what there is.
        """
        wanted = tuple(patterns)
        if not wanted:
            chosen = set(self._routes)
        else:
            chosen = set()
            for pattern in wanted:
                matching = {name for name in self._routes if fnmatchcase(name, pattern)}
                if not matching:
                    known = ", ".join(sorted(self._routes)) or "none"
                    raise ContractError(f"no handler for '{pattern}'; this app handles: {known}")
                chosen |= matching
        if not chosen:
            raise ContractError("this app has no handlers: decorate one with @app.handler(job_type)")
        return tuple(self._routes[name] for name in sorted(chosen))


def _takes_job(job_type: JobType[Any], handler: Handler) -> bool:
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise ContractError(f"the handler of '{job_type.name}' is a generator, which would never run: {handler!r}")
    parameters = list(inspect.signature(handler).parameters.values())
    positional = [p for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    required = [p for p in positional if p.default is p.empty]
    any_more = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    named = any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters)
    if named or len(required) > _WITH_JOB or not (positional or any_more):
        raise ContractError(f"the handler of '{job_type.name}' must take (payload, job) or (payload): {handler!r}")
    if len(positional) < _WITH_JOB:
        return any_more
    # A second parameter with a default is an option of the function's own, unless it is called what we would pass.
    return len(required) == _WITH_JOB or positional[1].name == "job"
