"""Durations as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topology.duration import format_duration, parse_duration
from topology.errors import OptionInvalid


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("30s", 30), ("30", 30), ("1.5", 1.5), ("5m", 300), ("2h", 7200), ("7d", 604800),
     (" 10 S ", 10), ("0", 0)],
)  # fmt: skip
def test_the_forms_that_are_read(text: str, seconds: float) -> None:
    """A number with an optional unit; a bare number is seconds."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "1w", "1h30m", "nan", "inf", "1e3", "1,5", "ten", "1.s"])
def test_all_else_is_an_error_that_shows_the_forms(text: str) -> None:
    """The message is what a person on the command line sees."""
    with pytest.raises(OptionInvalid, match="write 250ms, 30s, 5m, 2h or 7d"):
        parse_duration(text)


@given(milliseconds=st.integers(0, 10**12))
def test_what_is_written_is_read_back(milliseconds: int) -> None:
    """Exact to the millisecond."""
    assert round(parse_duration(format_duration(milliseconds / 1000)) * 1000) == milliseconds
