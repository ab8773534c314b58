"""The delay ladder's arithmetic, against a model of topic exchanges."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from topology import ladder
from topology.errors import OptionInvalid

UNITS = st.integers(1, ladder.MAX_UNITS)
WORD = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-", min_size=1, max_size=8)
DESTINATION = st.lists(WORD, min_size=1, max_size=4).map(".".join)


def matches(pattern: str, key: str) -> bool:
    """Whether a topic exchange would route ``key`` by ``pattern``: * is one word, # any number of them."""

    def match(left: list[str], right: list[str]) -> bool:
        if not left:
            return not right
        if left[0] == "#":
            return match(left[1:], right) or (bool(right) and match(left, right[1:]))
        return bool(right) and left[0] in {"*", right[0]} and match(left[1:], right[1:])

    return match(pattern.split("."), key.split("."))


def walk(units: int, key: str) -> tuple[list[int], bool]:
    """The levels that hold a message on its way down, and whether each knew exactly one way."""
    held, unique = [], True
    for level in range(ladder.entry_level(units), -1, -1):
        bits = [bit for bit in (0, 1) if matches(ladder.level_pattern(level, bit), key)]
        unique = unique and len(bits) == 1
        if bits == [1]:
            held.append(level)
    return held, unique


@given(UNITS, DESTINATION)
@example(1, "a")
@example(ladder.MAX_UNITS, "0.1")
@example(2 ** (ladder.LEVELS - 1), "0.0.0")
def test_a_key_is_held_exactly_as_long_as_it_says(units: int, destination: str) -> None:
    """The queues on the way are as many as the delay has 1 bits, and their TTLs add up to the delay."""
    held, unique = walk(units, ladder.routing_key(units, destination))
    assert unique
    assert len(held) == units.bit_count()
    assert sum(ladder.UNIT_MS * 2**level for level in held) == units * ladder.UNIT_MS


@given(UNITS)
def test_a_message_enters_at_its_highest_bit(units: int) -> None:
    """The entry level holds the message: no empty hops before it."""
    level = ladder.entry_level(units)
    assert 2**level <= units < 2 ** (level + 1)
    assert 0 <= level < ladder.LEVELS


@given(UNITS, DESTINATION, DESTINATION)
@example(5, "a.b", "b")
@example(5, "a.b", "a")
@example(1, "0", "1")
def test_the_last_exchange_tells_destinations_apart(units: int, destination: str, other: str) -> None:
    """A delayed job goes to its own queue and to no other, however their names overlap."""
    key = ladder.routing_key(units, destination)
    assert matches(ladder.exit_pattern(destination), key)
    assert matches(ladder.exit_pattern(other), key) == (other == destination)


@given(UNITS, DESTINATION)
def test_the_destination_can_be_read_back(units: int, destination: str) -> None:
    """What went into the key comes out of it."""
    assert ladder.destination_of(ladder.routing_key(units, destination)) == destination


@given(DESTINATION)
def test_a_key_without_bits_is_its_own_destination(destination: str) -> None:
    """A job that was never delayed keeps its routing key."""
    assert ladder.destination_of(destination) == destination


@given(st.floats(0, ladder.MAX_DELAY))
@example(0.3)
@example(0.1)
@example(1e-9)
def test_a_delay_is_never_cut_short(delay: float) -> None:
    """Units cover the delay, to the microsecond, and never by more than one unit."""
    seconds = ladder.units_of(delay) * ladder.UNIT_MS / 1000
    assert seconds >= delay - 1e-5
    assert seconds - delay < ladder.UNIT_MS / 1000 + 1e-5


def test_a_round_delay_costs_no_extra_unit() -> None:
    """0.3 s is three units, though 0.3 / 0.1 is a little more than three."""
    assert ladder.units_of(0.3) == 3
    assert ladder.units_of(0) == 0


@pytest.mark.parametrize("delay", [-0.1, float("nan"), float("inf"), ladder.MAX_DELAY + 1])
def test_a_delay_out_of_reach_is_refused(delay: float) -> None:
    """Negative, endless, or over the ladder's reach: a typed error, before anything is sent."""
    with pytest.raises(OptionInvalid):
        ladder.units_of(delay)


@pytest.mark.parametrize("units", [0, -1, ladder.MAX_UNITS + 1])
def test_no_level_for_units_out_of_reach(units: int) -> None:
    """The entry level exists for the ladder's own range alone."""
    with pytest.raises(ValueError, match="out of reach"):
        ladder.entry_level(units)
