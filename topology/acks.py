"""Acknowledgements of one channel: batched, and never past a job that is not finished."""

from __future__ import annotations

import asyncio

from pika.channel import Channel


class Acks:
    """Collects what is finished and acknowledges it once per turn of the event loop.

    Everything below the oldest unfinished delivery goes in one ack with ``multiple``; what is finished beyond it is
    acknowledged one by one. A channel that is gone takes nothing: the broker delivers those again.
    """

    __slots__ = ("_channel", "_finished", "_held", "_loop", "_unfinished")

    def __init__(self, channel: Channel, loop: asyncio.AbstractEventLoop) -> None:
        self._channel = channel
        self._loop = loop
        self._unfinished: dict[int, None] = {}
        self._finished: list[int] = []
        self._held = False

    @property
    def is_open(self) -> bool:
        """Whether the broker can still be told anything about these deliveries."""
        return bool(self._channel.is_open)

    @property
    def unfinished(self) -> int:
        """How many deliveries are not settled."""
        return len(self._unfinished)

    @property
    def outstanding(self) -> int:
        """How many deliveries the broker has not been told about, finished ones included."""
        return len(self._unfinished) + len(self._finished)

    def open(self, tag: int) -> None:
        """A delivery has arrived."""
        self._unfinished[tag] = None

    def done(self, tag: int) -> None:
        """The delivery is finished: acknowledge it soon."""
        if self._unfinished.pop(tag, self) is self:
            return
        if not self._finished:
            self._loop.call_soon(self.flush)
        self._finished.append(tag)

    def requeue(self, tag: int) -> None:
        """The delivery goes back to its queue at once."""
        if self._unfinished.pop(tag, self) is not self and self._channel.is_open:
            self._channel.basic_nack(tag, requeue=True)

    def hold(self) -> None:
        """Sends no acknowledgement until `release`: so the broker, with the prefetch used up, sends no delivery."""
        self._held = True

    def release(self) -> None:
        """Sends what has been held."""
        self._held = False
        self.flush()

    def flush(self) -> None:
        """Sends what has been collected, unless it is held."""
        finished = self._finished
        if not finished or self._held:
            return
        self._finished = []
        if not self._channel.is_open:
            return
        oldest_unfinished = next(iter(self._unfinished), None)
        if oldest_unfinished is None:
            self._channel.basic_ack(max(finished), multiple=True)
            return
        below = [tag for tag in finished if tag < oldest_unfinished]
        if below:
            self._channel.basic_ack(max(below), multiple=True)
        if len(below) < len(finished):
            for tag in finished:
                if tag > oldest_unfinished:
                    self._channel.basic_ack(tag)
