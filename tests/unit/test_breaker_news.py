"""What replicas say of their breakers: whole, late, twice, or nonsense."""

from __future__ import annotations

import json

import hypothesis.strategies as st
import pytest
from hypothesis import given

from consumers.breaker import Standing
from consumers.breaker_news import ASK, CLOSED, OPENED, STATE, News, applies, decode
from consumers.circuit import State


def standing(state: State = State.OPEN, age: float | None = 1.0) -> Standing:
    return Standing("smtp", state, age, 30.0 if state is State.OPEN else 0.0, 5, "ConnectionError: refused")


def test_news_survives_the_way() -> None:
    """Every kind of it."""
    for news in (
        News(OPENED, "host:1:ab", 7, 1764018000.5, standing()),
        News(CLOSED, "host:1:ab", 8, 1764018000.5, standing(State.CLOSED)),
        News(STATE, "host:1:ab", 9, 1764018000.5, standing(State.HALF_OPEN, None)),
        News(ASK, "host:1:ab", 10, 1764018000.5, everything=True),
    ):
        assert decode(news.encoded()) == news


@given(st.binary() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner)
       | st.dictionaries(st.text(), inner), max_leaves=5).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_nonsense_is_no_news(body: bytes) -> None:
    """It never raises."""
    assert decode(body) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"event": "breaker.exploded"},
        {"event": CLOSED},
        {"state": "ajar"},
        {"remaining": -1},
        {"remaining": float("nan")},
        {"remaining": "60"},
        {"remaining": True},
        {"age": float("inf")},
        {"seq": None},
        {"name": 5},
        {"reason": None},
        {"failures": 1e400},
    ],
)
def test_a_field_that_makes_no_sense_spoils_the_news(changes: dict[str, object]) -> None:
    """Rather nothing than half of it."""
    body = json.loads(News(OPENED, "w", 1, 1.0, standing()).encoded())
    assert decode(json.dumps({**body, **changes}).encode()) is None


def test_a_change_is_followed_and_a_state_only_if_it_is_younger() -> None:
    """Who missed a change learns it from the ages; who never changed knows nothing and believes."""
    change = News(OPENED, "w", 1, 1.0, standing())
    assert applies(change, standing(State.CLOSED, 0.1))
    assert not applies(change, standing(State.OPEN, 50.0))
    told = News(STATE, "w", 1, 1.0, standing(State.OPEN, 10.0))
    assert applies(told, standing(State.CLOSED, 11.0))
    assert applies(told, standing(State.CLOSED, None))
    assert not applies(told, standing(State.CLOSED, 9.0))
    fresh = News(STATE, "w", 1, 1.0, standing(State.CLOSED, None))
    assert not applies(fresh, standing(State.OPEN, 9.0))
    assert not applies(News(ASK, "w", 1, 1.0), standing())
