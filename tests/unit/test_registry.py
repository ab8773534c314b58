"""Which handler runs which job type, and what a handler may look like."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from consumers.registry import Registry
from hareline import JobType
from tests.lab import Number
from topology.errors import ContractError

EMAIL = JobType("email.send", Number)
DIGEST = JobType("email.digest", Number)
THUMBNAIL = JobType("media.thumbnail", Number)


async def handle(payload: Number) -> None:
    """Does nothing."""


def registry() -> Registry:
    made = Registry([EMAIL, DIGEST, THUMBNAIL])
    for job_type in (EMAIL, DIGEST, THUMBNAIL):
        made.register(job_type, handle)
    return made


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        ((), ["email.digest", "email.send", "media.thumbnail"]),
        (("email.send",), ["email.send"]),
        (("email.*",), ["email.digest", "email.send"]),
        (("*.send", "media.*"), ["email.send", "media.thumbnail"]),
        (("email.send", "email.*"), ["email.digest", "email.send"]),
        (("[em]*",), ["email.digest", "email.send", "media.thumbnail"]),
    ],
)
def test_names_and_globs_select_routes(patterns: tuple[str, ...], chosen: list[str]) -> None:
    """Each route once, in order of its name; none given means all."""
    assert [route.job_type.name for route in registry().select(patterns)] == chosen


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    """A typing error must not become a worker with nothing to do; the text names what there is. Case counts."""
    with pytest.raises(ContractError, match=r"no handler for 'Email\.\*'.*email\.send, media\.thumbnail"):
        registry().select(["email.*", "Email.*"])


def test_an_app_without_handlers_is_an_error() -> None:
    """Job types alone make no worker."""
    with pytest.raises(ContractError, match=r"no handlers: decorate one"):
        Registry([EMAIL]).select()


def test_a_job_type_has_one_handler() -> None:
    """The second one is refused, and so is another job type of the same name."""
    made = registry()
    with pytest.raises(ContractError, match="has a handler already"):
        made.register(EMAIL, handle)
    with pytest.raises(ContractError, match=r"two job types are called 'email\.send'"):
        made.declare(JobType("email.send", dict))


def test_registering_declares_the_job_type() -> None:
    """A handler for a job type that the app was not given is enough."""
    made = Registry()
    made.register(EMAIL, handle)
    assert made.job_types == (EMAIL,)


class Callables:
    """Handlers in all the shapes that services have them in."""

    async def bound(self, payload: Number, job: Any) -> None: ...

    async def __call__(self, payload: Number) -> None: ...


async def with_job(payload: Number, job: Any) -> None: ...
def plain(payload: Number) -> None: ...
def plain_with_job(payload: Number, job: Any) -> None: ...
def named_job(payload: Number, job: Any = None) -> None: ...
def own_option(payload: Number, retries: int = 3) -> None: ...
def anything(*arguments: Any) -> None: ...
def payload_and_more(payload: Number, *more: Any) -> None: ...
def optional_keyword(payload: Number, *, verbose: bool = False) -> None: ...


@pytest.mark.parametrize(
    ("handler", "is_async", "wants_job"),
    [
        (handle, True, False),
        (with_job, True, True),
        (plain, False, False),
        (plain_with_job, False, True),
        (named_job, False, True),
        (own_option, False, False),
        (anything, False, True),
        (payload_and_more, False, True),
        (optional_keyword, False, False),
        (Callables().bound, True, True),
        (Callables(), True, False),
        (functools.partial(with_job, job=1), True, False),
    ],
)
def test_a_handler_takes_the_payload_and_may_take_the_job(
    handler: Callable[..., Any], is_async: bool, wants_job: bool
) -> None:
    """Functions, methods, callables and partials; a parameter with a default of its own keeps it."""
    made = Registry()
    made.register(EMAIL, handler)
    [route] = made.select()
    assert (route.is_async, route.wants_job) == (is_async, wants_job)


def nothing() -> None: ...
def three(payload: Number, job: Any, more: Any) -> None: ...
def three_and_more(payload: Number, job: Any, more: Any, *rest: Any) -> None: ...
def needs_keyword(payload: Number, *, database: Any) -> None: ...
def generator(payload: Number) -> Iterator[int]:
    yield payload.n


async def async_generator(payload: Number) -> AsyncIterator[int]:
    yield payload.n


@pytest.mark.parametrize("handler", [nothing, three, three_and_more, needs_keyword, generator, async_generator])
def test_a_handler_that_could_never_run_is_refused(handler: Callable[..., Any]) -> None:
    """At registration, not at the first job: wrong parameters, and generators, whose call runs nothing."""
    with pytest.raises(ContractError, match=r"the handler of 'email\.send'"):
        Registry().register(EMAIL, handler)
