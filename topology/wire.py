"""The hot path's frames: publishes encoded as one buffer, deliveries decoded without pika's frame objects.

pika stays in charge of everything else: handshake, heartbeats, channels, RPCs, flow. What is done here by hand is
what happens once per job: pika makes three frames and three system calls of a publish, and about twenty objects of
a delivery. AMQP 0-9-1, sections 2.3.5 (frames), 4.2.6 (content header) and 1.8 (basic) of its specification.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from pika.adapters.asyncio_connection import AsyncioConnection
from pika.exceptions import InvalidFrameError
from pika.frame import decode_frame
from pika.spec import BasicProperties

from topology.envelope import UNDECODABLE, Message

OnDelivery = Callable[[int, bool, BasicProperties, bytes], None]
"""Delivery tag, redelivered, properties, body."""

BURST: Final = 100
"""Publishes that are written together, at most."""

_METHOD, _HEADER, _BODY, _END = 1, 2, 3, 0xCE
_DELIVER: Final = b"\x00\x3c\x00\x3c"
_HEADER_START: Final = struct.Struct(">HHQ")
_FRAME: Final = struct.Struct(">BHI")
_TAG: Final = struct.Struct(">QB")
_LONGLONG: Final = struct.Struct(">Q")
_SHORT: Final = struct.Struct(">H")
_SIZE: Final = struct.Struct(">I")
_LONG_TEXT: Final = struct.Struct(">BI")
_IS_TEXT: Final = ord("S")

_CONTENT_TYPE, _DELIVERY_MODE, _PRIORITY, _CORRELATION = 0x8000, 0x1000, 0x0800, 0x0400
_MESSAGE_ID, _TIMESTAMP, _TYPE, _HEADERS = 0x0080, 0x0040, 0x0020, 0x2000
_PLAIN: Final = _CONTENT_TYPE | _HEADERS | _DELIVERY_MODE | _PRIORITY | _CORRELATION | _MESSAGE_ID | _TIMESTAMP | _TYPE
"""The properties of a fresh job. Anything beyond these, and headers that are no text, goes through pika's own codec."""


# -- out ---------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _publish_frame(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    payload = b"\x00\x3c\x00\x28\x00\x00" + _short(exchange) + _short(routing_key) + bytes([mandatory])
    return _FRAME.pack(_METHOD, channel, len(payload)) + payload + b"\xce"


def _short(text: str) -> bytes:
    encoded = text.encode()
    return bytes([len(encoded)]) + encoded  # raises ValueError over 255 bytes


_word: Final = lru_cache(maxsize=4096)(_short)
"""Of what is the same in many messages."""


def encode_properties(properties: BasicProperties) -> bytes:
    """Flags and values, as the content header carries them."""
    p = properties
    headers = b"" if p.headers is None else _table(p.headers)
    if (
        headers is None
        or p.content_encoding is not None
        or p.reply_to is not None
        or p.expiration is not None
        or p.user_id is not None
        or p.app_id is not None
        or p.cluster_id is not None
        or p.message_id is None
        or p.content_type is None
        or p.timestamp is None
        or p.delivery_mode is None
    ):
        return b"".join(p.encode())
    flags = _CONTENT_TYPE | _DELIVERY_MODE | _MESSAGE_ID | _TIMESTAMP
    if headers:
        flags |= _HEADERS
    middle = b""
    if p.priority is not None:
        flags |= _PRIORITY
        middle = bytes((p.priority,))
    if p.correlation_id is not None:
        flags |= _CORRELATION
        middle += _short(p.correlation_id)
    end = b""
    if p.type is not None:
        flags |= _TYPE
        end = _word(p.type)
    return b"".join((
        _SHORT.pack(flags),
        _word(p.content_type),
        headers,
        bytes((p.delivery_mode,)),
        middle,
        _short(p.message_id),
        _LONGLONG.pack(p.timestamp),
        end,
    ))  # fmt: skip


def _table(headers: Mapping[str, Any]) -> bytes | None:
    """The table of headers that are texts, as they are on fresh jobs and steps of sagas; None for any other."""
    pieces = [b""]
    for name, value in headers.items():
        if type(value) is not str or type(name) is not str:
            return None
        encoded = value.encode()
        pieces += (_word(name), _LONG_TEXT.pack(_IS_TEXT, len(encoded)), encoded)
    pieces[0] = _SIZE.pack(sum(map(len, pieces)))
    return b"".join(pieces)


def encode_publish(channel: int, message: Message) -> bytes:
    """The frames of one basic.publish whose body fits into one frame."""
    properties = encode_properties(message.properties)
    body = message.body
    size = len(body)
    head = (
        _publish_frame(channel, message.exchange, message.routing_key, message.mandatory),
        _FRAME.pack(_HEADER, channel, 12 + len(properties)),
        _HEADER_START.pack(60, 0, size),
        properties,
    )
    if not size:
        return b"".join((*head, b"\xce"))
    return b"".join((*head, b"\xce", _FRAME.pack(_BODY, channel, size), body, b"\xce"))


# -- in ----------------------------------------------------------------------------------------------------------------


def decode_properties(buffer: bytes, at: int, stop: int) -> BasicProperties:  # noqa: PLR0912 - one for each property
    """Properties from a content header whose flags begin at ``at`` and which ends before ``stop``.

    What cannot be decoded is left out and named in the header UNDECODABLE: one bad message must not cost the
    connection, on which it would be delivered again and again.
    """
    (flags,) = _SHORT.unpack_from(buffer, at)
    if flags & ~_PLAIN:
        return _decode_by_pika(buffer[at:stop])
    start = at
    at += 2
    values: dict[str, Any] = {}
    try:
        if flags & _CONTENT_TYPE:
            values["content_type"], at = _text(buffer, at, stop)
        if flags & _HEADERS:
            headers = _texts(buffer, at, stop)
            if headers is None:
                return _decode_by_pika(buffer[start:stop])
            values["headers"], at = headers
        if flags & _DELIVERY_MODE:
            values["delivery_mode"] = buffer[at]
            at += 1
        if flags & _PRIORITY:
            values["priority"] = buffer[at]
            at += 1
        if flags & _CORRELATION:
            values["correlation_id"], at = _text(buffer, at, stop)
        if flags & _MESSAGE_ID:
            values["message_id"], at = _text(buffer, at, stop)
        if flags & _TIMESTAMP:
            (values["timestamp"],) = _LONGLONG.unpack_from(buffer, at)
            at += 8
        if flags & _TYPE:
            values["type"], at = _text(buffer, at, stop)
    except UnicodeDecodeError:
        return _decode_by_pika(buffer[start:stop])
    except (IndexError, struct.error):
        at = stop + 1
    if at > stop:
        return BasicProperties(headers={UNDECODABLE: "the properties end before they should"})
    return BasicProperties(**values)


def _texts(buffer: bytes, at: int, stop: int) -> tuple[dict[str, str], int] | None:
    """A table that holds texts alone, and where it ends; None for any other."""
    (size,) = _SIZE.unpack_from(buffer, at)
    at += 4
    end = at + size
    if end > stop:
        raise IndexError
    found: dict[str, str] = {}
    while at < end:
        name, at = _text(buffer, at, end)
        kind, length = _LONG_TEXT.unpack_from(buffer, at)
        if kind != _IS_TEXT:
            return None
        at += 5
        if at + length > end:
            raise IndexError
        found[name] = buffer[at : at + length].decode()
        at += length
    return found, end


def _decode_by_pika(encoded: bytes) -> BasicProperties:
    properties = BasicProperties()
    try:
        properties.decode(encoded)
    except Exception as error:  # noqa: BLE001 - pika lets a dozen kinds through
        return BasicProperties(headers={UNDECODABLE: f"{type(error).__name__}: {error}"})
    # pika hands out as bytes what should be a text and is not UTF-8.
    bad = [name for name, value in vars(properties).items() if isinstance(value, bytes)]
    for name in bad:
        setattr(properties, name, None)
    headers = properties.headers
    if headers and not all(isinstance(name, str) for name in headers):
        bad.append("a header's name")
        headers = {name: value for name, value in headers.items() if isinstance(name, str)}
    if bad:
        properties.headers = {**(headers or {}), UNDECODABLE: f"not UTF-8: {', '.join(bad)}"}
    return properties


def _text(buffer: bytes, at: int, stop: int) -> tuple[str, int]:
    start = at + 1
    end = start + buffer[at]
    if end > stop:
        raise IndexError
    return buffer[start:end].decode(), end


class _Taker:
    """The deliveries of one channel: what has come of the current one, and who gets it when it is whole."""

    __slots__ = ("on_delivery", "parts", "properties", "redelivered", "remaining", "tag")

    def __init__(self, on_delivery: OnDelivery) -> None:
        self.on_delivery = on_delivery
        self.tag = 0
        self.redelivered = False
        self.properties: BasicProperties | None = None
        self.remaining = 0
        self.parts: list[bytes] = []

    def begin(self, buffer: bytes, at: int) -> None:
        self.tag, redelivered = _TAG.unpack_from(buffer, at + 1 + buffer[at])  # behind the consumer tag
        self.redelivered = bool(redelivered)

    def header(self, buffer: bytes, at: int, stop: int) -> None:
        (self.remaining,) = _LONGLONG.unpack_from(buffer, at + 4)
        self.properties = decode_properties(buffer, at + 12, stop)
        if not self.remaining:
            self._finish(b"")

    def body(self, part: bytes) -> None:
        self.remaining -= len(part)
        if self.remaining > 0:
            self.parts.append(part)
        elif self.parts:
            self.parts.append(part)
            whole, self.parts = b"".join(self.parts), []
            self._finish(whole)
        else:
            self._finish(part)

    def _finish(self, body: bytes) -> None:
        properties, self.properties = self.properties, None
        tag, self.tag = self.tag, 0
        assert properties is not None
        self.on_delivery(tag, self.redelivered, properties, body)


class Wire(AsyncioConnection):  # type: ignore[misc]  # pika brings no types
    """pika's asyncio connection with a short way in and out for jobs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._frame_buffer: bytes
        self._takers: dict[int, _Taker] = {}
        self._outgoing: list[bytes] = []
        self._collecting = False
        super().__init__(*args, **kwargs)

    def take(self, channel: int, on_delivery: OnDelivery) -> None:
        """From now on the deliveries of ``channel`` go to ``on_delivery``, whichever consumer they are for."""
        self._takers[channel] = _Taker(on_delivery)

    def publish(self, channel: Any, message: Message) -> None:
        """Sends a message with this turn of the event loop; what else the turn publishes leaves in one write."""
        if len(message.body) > self._body_max_length:
            self.flush()
            channel.basic_publish(
                message.exchange, message.routing_key, message.body, message.properties, message.mandatory
            )
            return
        frames = encode_publish(channel.channel_number, message)
        if not self._collecting:
            # The first of a turn leaves at once: a lone publish waits for nobody.
            self._collecting = True
            self.ioloop.call_soon(self.flush)
            self._write(frames)
            return
        self._outgoing.append(frames)
        if len(self._outgoing) >= BURST:
            # In a long turn the broker works on the first hundred while the next are being made.
            self._spill()

    def flush(self) -> None:
        """Writes what `publish` has collected. What a closed connection cannot take is unconfirmed, and known to be."""
        self._collecting = False
        self._spill()

    def abort(self) -> None:
        """Drops the TCP connection without a word. ``on_close_callback`` follows, unless it is gone already."""
        if self._transport is not None:
            self._transport.abort()

    def _on_connection_workflow_done(self, conn_or_exc: Any) -> None:
        # Closed amid the handshake, pika gives the error's class in place of an error, and then trips over that.
        super()._on_connection_workflow_done(conn_or_exc() if isinstance(conn_or_exc, type) else conn_or_exc)

    def _spill(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if outgoing and self.is_open:
            self._write(b"".join(outgoing))

    def _write(self, data: bytes) -> None:
        idle = not self._transport.get_write_buffer_size()
        self._output_marshaled_frames([data])
        if idle:
            # pika would wait for the selector to say that the socket takes data: it does, nearly always.
            self._transport._on_socket_writable()  # noqa: SLF001

    def _output_marshaled_frames(self, marshaled_frames: Sequence[bytes]) -> None:
        # What pika says goes out behind what was published before it. A publish that followed pika's answer to the
        # broker closing the channel would be one on no channel, and cost the connection.
        if self._outgoing:
            self._spill()
        super()._output_marshaled_frames(marshaled_frames)

    def _on_data_available(self, data_in: bytes) -> None:
        if not self._takers:
            super()._on_data_available(data_in)
            return
        buffer = self._frame_buffer + data_in if self._frame_buffer else data_in
        at, end = 0, len(buffer)
        while end - at > 7:  # noqa: PLR2004 - a frame's header, and at least its end
            kind, channel, size = _FRAME.unpack_from(buffer, at)
            start = at + 7
            stop = start + size
            if stop >= end:
                break
            if buffer[stop] != _END:
                raise InvalidFrameError("Invalid FRAME_END marker")
            taker = self._takers.get(channel)
            if taker is None:
                self._leave_to_pika(buffer[at : stop + 1])
            elif kind == _METHOD and buffer[start : start + 4] == _DELIVER:
                taker.begin(buffer, start + 4)
            elif kind == _HEADER and taker.tag:
                taker.header(buffer, start, stop)
            elif kind == _BODY and taker.tag:
                taker.body(buffer[start:stop])
            else:
                self._leave_to_pika(buffer[at : stop + 1])
            at = stop + 1
        self.bytes_received += at  # the heartbeat checker looks at this
        self._frame_buffer = buffer[at:]

    def _leave_to_pika(self, raw: bytes) -> None:
        _, frame = decode_frame(raw)
        if frame is not None:
            self._process_frame(frame)
