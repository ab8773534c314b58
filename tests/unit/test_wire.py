"""The short way in and out speaks the same AMQP as pika, byte for byte."""

from __future__ import annotations

import asyncio
import struct
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pika import frame, spec
from pika.spec import BasicProperties

from topology.envelope import UNDECODABLE, Message
from topology.wire import Wire, decode_properties, encode_properties, encode_publish

CHANNEL = 3


def short_text(most: int = 255) -> st.SearchStrategy[str]:
    return st.text(max_size=most).filter(lambda text: len(text.encode(errors="replace")) <= most and _is_utf8(text))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


SHORT = short_text(60)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | short_text(80)
    | st.binary(max_size=40)
    | st.decimals(-1000, 1000, places=3)
    | st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)).map(lambda t: t.replace(microsecond=0, tzinfo=UTC)),  # noqa: DTZ001 - hypothesis wants naive bounds
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(short_text(20), inner, max_size=3),
    max_leaves=8,
)
PROPERTIES = st.builds(
    BasicProperties,
    content_type=st.none() | SHORT,
    content_encoding=st.none() | SHORT,
    headers=st.none() | st.dictionaries(short_text(20), VALUES, max_size=4),
    delivery_mode=st.none() | st.integers(1, 255),
    priority=st.none() | st.integers(0, 255),
    correlation_id=st.none() | SHORT,
    reply_to=st.none() | SHORT,
    expiration=st.none() | SHORT,
    message_id=st.none() | SHORT,
    timestamp=st.none() | st.integers(0, 2**64 - 1),
    type=st.none() | SHORT,
    user_id=st.none() | SHORT,
    app_id=st.none() | SHORT,
    cluster_id=st.none() | SHORT,
)
# What a fresh job carries: the way that does not go through pika's codec.
PLAIN = st.builds(
    BasicProperties,
    content_type=SHORT,
    delivery_mode=st.integers(1, 2),
    priority=st.none() | st.integers(0, 255),
    correlation_id=st.none() | SHORT,
    message_id=SHORT,
    timestamp=st.integers(0, 2**64 - 1),
    type=st.none() | SHORT,
)


def frames_of_pika(message: Message) -> bytes:
    method = spec.Basic.Publish(exchange=message.exchange, routing_key=message.routing_key, mandatory=message.mandatory)
    frames = [frame.Method(CHANNEL, method), frame.Header(CHANNEL, len(message.body), message.properties)]
    if message.body:
        frames.append(frame.Body(CHANNEL, message.body))
    return b"".join(item.marshal() for item in frames)


@given(
    exchange=short_text(),
    key=short_text(),
    properties=PROPERTIES | PLAIN,
    body=st.binary(max_size=300),
    mandatory=st.booleans(),
)
@example(exchange="é" * 127, key="k" * 255, properties=BasicProperties(), body=b"", mandatory=False)
def test_a_publish_is_what_pika_would_send(
    exchange: str, key: str, properties: BasicProperties, body: bytes, mandatory: bool
) -> None:
    """Whatever the properties, texts and table of headers: the same bytes."""
    message = Message(exchange, key, properties, body, mandatory)
    assert encode_publish(CHANNEL, message) == frames_of_pika(message)


@pytest.mark.parametrize(
    "properties",
    [
        {"message_id": "é" * 128},
        {"priority": 256},
        {"priority": -1},
        {"timestamp": -1},
        {"type": "t" * 256},
        {"headers": {"h": object()}},
        {"headers": {"h" * 256: 1}},
    ],
    ids=str,
)
def test_what_amqp_cannot_hold_is_an_error_and_not_a_broken_frame(properties: dict[str, Any]) -> None:
    """The encoder raises; it never cuts or wraps around a value, which would break the connection."""
    usual = {"content_type": "t", "delivery_mode": 2, "message_id": "i", "timestamp": 1}
    with pytest.raises(Exception, match=r"."):
        encode_properties(BasicProperties(**{**usual, **properties}))


# -- in ----------------------------------------------------------------------------------------------------------------

DELIVERIES = st.tuples(
    st.integers(1, 2**64 - 1),
    st.booleans(),
    PLAIN | PROPERTIES,
    st.lists(st.binary(min_size=1, max_size=60), max_size=4),
    short_text(30),
)
OTHERS = st.sampled_from([
    frame.Heartbeat().marshal(),
    frame.Method(CHANNEL, spec.Basic.Ack(7, multiple=True)).marshal(),
    frame.Method(9, spec.Channel.Flow(active=True)).marshal(),
    frame.Method(0, spec.Connection.Blocked("low on memory")).marshal(),
])  # fmt: skip


class Recorder(Wire):
    """A wire without a connection: what reaches pika's own machinery is kept."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(custom_ioloop=loop, internal_connection_workflow=False)
        self.left: list[frame.Frame] = []

    def _process_frame(self, frame_value: frame.Frame) -> None:
        self.left.append(frame_value)


@pytest.fixture(scope="module")
def loop() -> Any:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def plain(value: Any) -> Any:
    """Comparable: pika's objects have no equality of their own for nested values."""
    return vars(value) if isinstance(value, BasicProperties) else value


@given(
    items=st.lists(DELIVERIES | OTHERS, max_size=6),
    cuts=st.lists(st.integers(0, 4000), max_size=12),
    whole=st.booleans(),
)
def test_deliveries_come_out_of_any_cutting_of_the_stream(
    loop: asyncio.AbstractEventLoop, items: list[Any], cuts: list[int], whole: bool
) -> None:
    """Bodies of none, one or many frames, other frames between them, reads of any size: what pika would deliver."""
    expected: list[Any] = []
    stream: list[bytes] = []
    others: list[bytes] = []
    for item in items:
        if isinstance(item, bytes):
            stream.append(item)
            others.append(item)
            continue
        tag, redelivered, properties, parts, consumer = item
        body = b"".join(parts)
        method = spec.Basic.Deliver(consumer, tag, redelivered, "exchange", "key")
        header = frame.Header(CHANNEL, len(body), properties)
        stream += [frame.Method(CHANNEL, method).marshal(), header.marshal()]
        stream += [frame.Body(CHANNEL, part).marshal() for part in parts]
        by_pika = frame.decode_frame(header.marshal())[1].properties
        expected.append((tag, redelivered, plain(by_pika), body))
    data = b"".join(stream)
    wire, seen = Recorder(loop), []
    wire.take(CHANNEL, lambda tag, again, properties, body: seen.append((tag, again, plain(properties), body)))
    if whole:
        cuts = []
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, end in pairwise(places):
        wire._on_data_available(data[start:end])
    assert seen == expected
    assert [item.marshal() for item in wire.left] == others
    assert wire.bytes_received == len(data)


def test_one_byte_at_a_time(loop: asyncio.AbstractEventLoop) -> None:
    """The slowest network there is still delivers."""
    properties = BasicProperties(message_id="m", headers={"a": [1, {"b": Decimal("1.5")}]})
    data = b"".join(
        item.marshal()
        for item in (
            frame.Method(CHANNEL, spec.Basic.Deliver("c", 1, True, "e", "k")),
            frame.Header(CHANNEL, 4, properties),
            frame.Heartbeat(),
            frame.Body(CHANNEL, b"ab"),
            frame.Body(CHANNEL, b"cd"),
        )
    )
    wire, seen = Recorder(loop), []
    wire.take(CHANNEL, lambda *delivery: seen.append(delivery))
    for byte in data:
        wire._on_data_available(bytes((byte,)))
    [(tag, redelivered, decoded, body)] = seen
    assert (tag, redelivered, decoded.headers, body) == (1, True, properties.headers, b"abcd")


def test_a_frame_without_its_end_mark_is_an_error(loop: asyncio.AbstractEventLoop) -> None:
    """Bytes out of step are noticed at once; the connection is then given up and made anew."""
    wire = Recorder(loop)
    wire.take(CHANNEL, lambda *_: None)
    data = bytearray(frame.Method(CHANNEL, spec.Basic.Deliver("c", 1, False, "e", "k")).marshal())
    data[-1] = 0
    with pytest.raises(Exception, match="FRAME_END"):
        wire._on_data_available(bytes(data) + b"more")


def test_a_message_with_an_empty_body_between_full_ones(loop: asyncio.AbstractEventLoop) -> None:
    """An empty message is complete with its header; the next one is not mistaken for its body."""
    wire, seen = Recorder(loop), []
    wire.take(CHANNEL, lambda tag, _, __, body: seen.append((tag, body)))
    for tag, body in ((1, b"x"), (2, b""), (3, b"y")):
        wire._on_data_available(frame.Method(CHANNEL, spec.Basic.Deliver("c", tag, False, "e", "k")).marshal())
        wire._on_data_available(frame.Header(CHANNEL, len(body), BasicProperties()).marshal())
        if body:
            wire._on_data_available(frame.Body(CHANNEL, body).marshal())
    assert seen == [(1, b"x"), (2, b""), (3, b"y")]


# -- what cannot be decoded --------------------------------------------------------------------------------------------

BAD = b"\xff\xfe"
FLAGS = {"content_type": 0x8000, "correlation_id": 0x0400, "message_id": 0x0080, "type": 0x0020, "app_id": 0x0008}


@pytest.mark.parametrize("name", FLAGS)
def test_a_text_that_is_not_utf8_is_marked_and_left_out(name: str) -> None:
    """The marker names it; a copy of such a message can be written again."""
    encoded = struct.pack(">H", FLAGS[name]) + bytes((len(BAD),)) + BAD
    properties = decode_properties(b"before" + encoded + b"after", 6, 6 + len(encoded))
    assert name in properties.headers[UNDECODABLE]
    assert getattr(properties, name) is None
    encode_properties(properties)


def test_what_else_a_bad_message_carries_is_kept() -> None:
    """A job whose type is unreadable keeps its id, so that the dead letter can be found by it."""
    encoded = struct.pack(">H", FLAGS["message_id"] | FLAGS["type"]) + b"\x05job-1" + b"\x02" + BAD
    properties = decode_properties(encoded, 0, len(encoded))
    assert properties.message_id == "job-1"
    assert properties.headers == {UNDECODABLE: "not UTF-8: type"}


def table(content: bytes) -> bytes:
    return struct.pack(">HI", 0x2000, len(content)) + content


@pytest.mark.parametrize(
    "content",
    [
        b"\x01aZ\x00\x00",
        b"\x01aT" + b"\xff" * 8,
        b"\x01ad" + struct.pack(">d", float("nan")),
        b"\x01aS\x00\x00\xff",
        b"\x02\xff\xfeV",
    ],
    ids=["unknown type", "a time beyond all calendars", "not a number", "cut off", "a name that is not UTF-8"],
)
def test_a_header_table_that_cannot_be_read_is_marked(content: bytes) -> None:
    """One such message costs itself, not the connection."""
    encoded = table(content)
    properties = decode_properties(encoded, 0, len(encoded))
    assert list(properties.headers) == [UNDECODABLE]
    encode_properties(properties)


@given(encoded=st.binary(min_size=2, max_size=80))
def test_no_bytes_whatever_raise(encoded: bytes) -> None:
    """Garbage in the place of properties gives properties, marked or not, that can be written again."""
    properties = decode_properties(encoded + b"\xce", 0, len(encoded))
    assert all(not isinstance(value, bytes) for value in vars(properties).values())


def test_properties_do_not_read_on_into_the_next_frame() -> None:
    """A text that claims to be longer than its frame does not swallow what follows."""
    encoded = struct.pack(">H", FLAGS["type"]) + b"\x20short"
    properties = decode_properties(encoded + b"\xce" + b"next frame's secret" * 3, 0, len(encoded))
    assert UNDECODABLE in properties.headers
    assert properties.type is None
