"""The headers that say why a job is dead: cut to fit, whatever the error."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pika.spec import BasicProperties

from consumers.dead_letter import MESSAGE_LIMIT, TRACEBACK_LIMIT, bare_dead_letter, can_be_sent, cut, dead_letter
from consumers.outcome import Dead
from topology.envelope import Message, open_envelope
from topology.spec import Names
from topology.subscription import Delivery

NAMES = Names("test")
FRAME = 131_072 - 8 - 14


class Consumer:
    """What a delivery takes over from its subscription."""

    acks: Any = None
    queue = "test.email.send"
    job_type = "email.send"


def letter(error: BaseException, reason: str = "permanent", **properties: Any) -> Message:
    delivery = Delivery(Consumer(), 1, False, BasicProperties(**properties), b"{}")  # type: ignore[arg-type]
    opened = open_envelope(delivery.properties, delivery.body, "email.send")
    return dead_letter(NAMES, delivery, opened, Dead(reason, error), None)


def raised(error: BaseException) -> BaseException:
    try:
        raise error  # noqa: TRY301 - for its traceback
    except BaseException as caught:  # noqa: BLE001 - all it does
        return caught


def size(message: Message) -> int:
    return sum(map(len, message.properties.encode()))


@given(st.text(max_size=300), st.integers(80, 200))
def test_a_cut_text_fits_and_keeps_both_ends(text: str, limit: int) -> None:
    """Never more bytes than the limit, never broken UTF-8; what fits is left as it is."""
    shown = cut(text, limit)
    assert len(shown.encode()) <= limit
    if len(text.encode(errors="backslashreplace")) <= limit:
        assert shown == text.encode(errors="backslashreplace").decode()


def test_the_end_of_a_long_text_is_kept() -> None:
    """A traceback's last line says what happened."""
    shown = cut("first line\n" + "x" * 100_000 + "\nlast line", 1_000)
    assert shown.startswith("first line\n")
    assert shown.endswith("\nlast line")
    assert "bytes cut" in shown


def test_surrogates_do_not_stop_a_dead_letter() -> None:
    """Text from a file name or a broken decoder may hold lone surrogates, which UTF-8 has not."""
    headers = letter(raised(ValueError("broken \udce4 name"))).properties.headers
    assert headers["hareline-error-message"] == r"broken \udce4 name"
    assert can_be_sent(letter(raised(ValueError("\ud800" * 5_000))))


def test_a_huge_error_fits_into_one_frame() -> None:
    """An error of megabytes, with a traceback to match, still leaves as headers of a few KB."""

    def sink(depth: int) -> None:
        if depth:
            sink(depth - 1)
        raise ValueError("ä" * 2_000_000)

    try:
        sink(300)
    except ValueError as error:
        message = letter(error)
    headers = message.properties.headers
    assert len(headers["hareline-error-message"].encode()) <= MESSAGE_LIMIT
    assert len(headers["hareline-traceback"].encode()) <= TRACEBACK_LIMIT
    assert size(message) < FRAME
    assert can_be_sent(message)


def test_an_error_that_cannot_be_shown_is_dead_lettered_all_the_same() -> None:
    """An exception whose own __str__ raises."""

    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    headers = letter(raised(Unspeakable())).properties.headers
    assert headers["hareline-error"] == "Unspeakable"
    assert "cannot be shown" in headers["hareline-error-message"]


def test_a_copy_that_no_frame_holds_is_known() -> None:
    """Headers near the frame's limit came in, and with ours they would not go out: the bare letter does."""
    error = raised(ValueError("x" * 5_000))
    message = letter(error, message_id="j-1", headers={"theirs": "x" * 125_000})
    assert not can_be_sent(message)
    delivery = Delivery(Consumer(), 1, False, message.properties, b"body")  # type: ignore[arg-type]
    opened = open_envelope(BasicProperties(message_id="j-1"), b"body", "email.send")
    bare = bare_dead_letter(NAMES, delivery, opened, Dead("exhausted", error))
    assert can_be_sent(bare)
    assert (bare.body, bare.properties.message_id) == (b"body", "j-1")
    assert bare.properties.headers["hareline-reason"] == "exhausted"
    assert "too large" in bare.properties.headers["hareline-undecodable"]


def test_a_copy_that_amqp_cannot_carry_is_known() -> None:
    """A message id that grew over 255 bytes when its invalid UTF-8 was replaced, for example."""
    grown = "\N{REPLACEMENT CHARACTER}" * 200
    assert not can_be_sent(letter(raised(ValueError("x")), message_id=grown))
    delivery = Delivery(Consumer(), 1, False, BasicProperties(message_id=grown), b"")  # type: ignore[arg-type]
    opened = open_envelope(delivery.properties, b"", "email.send")
    assert can_be_sent(bare_dead_letter(NAMES, delivery, opened, Dead("invalid", ValueError("x"))))


def test_what_the_message_carried_goes_along() -> None:
    """The dead letter is the original with headers added; what the broker wrote on the way is left out."""
    carried = {"theirs": 1, "x-death": [{"count": 3}], "x-delivery-count": 2}
    message = letter(raised(ValueError("x")), message_id="j-1", type="email.send", priority=7, headers=carried)
    properties = message.properties
    assert (message.exchange, message.routing_key, message.body) == ("test.dlx", "email.send", b"{}")
    assert (properties.message_id, properties.type, properties.priority) == ("j-1", "email.send", 7)
    assert properties.headers["theirs"] == 1
    assert not any(name.startswith("x-") for name in properties.headers)
