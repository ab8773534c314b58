"""What a role does while its database is away: it tries until it is let through, and no other error is hidden."""

from __future__ import annotations

import pytest

from store.recovery import persistently
from topology.errors import DatabaseUnavailable, SchemaOutdated

pytestmark = pytest.mark.machine


async def answer(failures: list[Exception]) -> str:
    if failures:
        raise failures.pop()
    return "done"


async def test_an_operation_is_tried_until_the_database_lets_it_through() -> None:
    """A plain function that returns a coroutine does as well as a coroutine function."""
    failures: list[Exception] = [DatabaseUnavailable("locked"), DatabaseUnavailable("gone")]
    assert await persistently("a test", lambda: answer(failures)) == "done"
    assert failures == []


async def test_other_errors_pass() -> None:
    with pytest.raises(SchemaOutdated):
        await persistently("a test", lambda: answer([SchemaOutdated("no tables")]))
