"""What every listing of a log asks of its caller, checked in one place."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Final

from topology.duration import ago
from topology.errors import OptionInvalid
from topology.text import expect_storable

LARGEST_PAGE: Final = 1000


def checked(
    now: datetime,
    *,
    status: str | None,
    statuses: Collection[str],
    limit: int,
    since: datetime | timedelta | None,
    **texts: str | None,
) -> datetime | None:
    """``since`` as a time, where it says so long ago. Raises OptionInvalid for what makes no sense."""
    if status is not None and status not in statuses:
        raise OptionInvalid(f"status '{status}' is none: use {', '.join(statuses)}")
    expect_storable(**texts)
    if not 1 <= limit <= LARGEST_PAGE:
        raise OptionInvalid(f"limit is {limit}: use 1 to {LARGEST_PAGE}")
    if isinstance(since, timedelta):
        return ago("since", since, now)
    if since is not None and since.utcoffset() is None:
        raise OptionInvalid(f"since {since.isoformat()} has no zone")
    return since
