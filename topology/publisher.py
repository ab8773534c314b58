"""Confirmed publishing over a link that may go down: nothing is lost, and nothing is refused that waiting would save.

A message is *waiting* until it is sent, then *unconfirmed* until the broker answers. When the connection goes, what
was unconfirmed waits again and is sent anew with the same message id: at least once, never never. Every message has
a deadline; when it passes, its future fails with the error that says what is known.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from typing import Any, Protocol

from pika.channel import Channel
from pika.exceptions import AMQPChannelError, AMQPConnectionError
from pika.frame import Method
from pika.spec import Basic, BasicProperties

from topology.envelope import Message
from topology.errors import (
    BrokerBlocked,
    BrokerUnreachable,
    ConnectionLost,
    NotConfirmed,
    ProducerClosed,
    PublishError,
    Refused,
    Unroutable,
)
from topology.link import Connection, Link, resolver
from topology.settings import Settings

NO_ROUTE = 312
NOT_FOUND = 404
COARSENESS = 0.01
"""Seconds that a deadline may pass by, so that many close to each other cost one look, not one each."""

_EXCHANGE_IN_TEXT = re.compile(r"exchange '([^']+)'")


class Receipt(Protocol):
    """Who waits for a message: an asyncio future, or anything that resolves like one."""

    def done(self) -> bool:
        """Whether it is resolved, or given up."""

    def set_result(self, result: None, /) -> None:
        """The broker has confirmed the message."""

    def set_exception(self, exception: PublishError, /) -> None:
        """It has not, for this reason."""


class _Pending:
    """A message on its way, and who waits for it. ``future`` resolves to None once the broker has it."""

    __slots__ = ("deadline", "future", "message", "sent")

    def __init__(self, message: Message, future: Receipt, deadline: float) -> None:
        self.message = message
        self.future = future
        self.deadline = deadline
        self.sent = False


class Publisher:
    """Publishes with confirms and ``mandatory``, pipelined, over a connection of its own.

    It has a connection to itself since a broker in alarm stops reading from publishers: acks on the same
    connection would be stuck behind it. At most ``max_unconfirmed`` messages are in flight at once.
    """

    def __init__(self, settings: Settings, name: str = "producer") -> None:
        self._settings = settings
        self._limit = settings.max_unconfirmed
        self._link = Link(settings.broker_urls, f"hareline {name}", on_up=self._up, on_down=self._down)
        self._connection: Connection | None = None
        self._channel: Channel | None = None
        self._blocked = False
        self._waiting: deque[_Pending] = deque()
        self._unconfirmed: dict[int, _Pending] = {}
        self._lowest = 1
        self._next_tag = 1
        self._returned: dict[str, list[str]] = {}
        self._reopening: asyncio.Task[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._drained: asyncio.Event = asyncio.Event()
        self._drained.set()
        self._state = "new"
        self._loop: asyncio.AbstractEventLoop

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to connect, in the background; messages may be sent at once and wait until it is up.

        No effect on one that is open.
        """
        if self._state != "new":
            return
        self._loop = asyncio.get_running_loop()
        self._state = "open"
        self._link.start()

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - part of the contract
        """Waits up to ``timeout`` seconds until all is confirmed, fails what is not, and closes."""
        if self._state != "open":
            return
        self._state = "closing"
        try:
            self._drop_given_up()
            async with asyncio.timeout(timeout):
                await self._drained.wait()
        except TimeoutError:
            pass
        finally:
            for pending in [*self._unconfirmed.values(), *self._waiting]:
                self._fail(pending, self._overdue(pending))
            self._state = "new"
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None
            await self._link.stop()

    @property
    def is_up(self) -> bool:
        """Whether a message sent now would go out at once."""
        return self._channel is not None and not self._blocked

    @property
    def backlog(self) -> int:
        """How many messages are waiting or unconfirmed."""
        return len(self._waiting) + len(self._unconfirmed)

    # -- publishing ------------------------------------------------------------------------------------------------

    def send(self, message: Message, timeout: float) -> asyncio.Future[None]:
        """Takes the message. The future resolves when the broker has confirmed it, or fails with a PublishError.

        ``timeout`` is seconds. Cancelling the future gives up on a message that has not been sent yet.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.post(message, timeout, future)
        return future

    def post(self, message: Message, timeout: float, receipt: Receipt) -> None:
        """As `send`, with the caller's own receipt; it is resolved within the event loop's thread."""
        if self._state != "open":
            receipt.set_exception(ProducerClosed("open it first: async with Producer() as producer"))
            return
        deadline = self._loop.time() + timeout
        pending = _Pending(message, receipt, deadline)
        self._drained.clear()
        if self._channel is not None and not self._waiting and self._may_send():
            self._transmit(pending)
        else:
            self._waiting.append(pending)
        if self._alarm is None or deadline < self._alarm.when():
            self._arm(deadline)

    def _may_send(self) -> bool:
        return not self._blocked and len(self._unconfirmed) < self._limit

    def _transmit(self, pending: _Pending) -> None:
        assert self._channel is not None
        assert self._connection is not None
        try:
            self._connection.publish(self._channel, pending.message)
        except (AMQPConnectionError, AMQPChannelError):
            # It is closing, and our callback comes next: that one sends again what waits.
            self._channel = None
            self._waiting.appendleft(pending)
        except Exception as error:  # noqa: BLE001 - whatever the codec dislikes; counting it would shift all tags
            self._fail(pending, Refused(f"the message cannot be written as AMQP: {error}"))
        else:
            pending.sent = True
            self._unconfirmed[self._next_tag] = pending
            self._next_tag += 1

    def _pump(self) -> None:
        """Sends what waits, oldest first, as far as the window and the broker allow."""
        while self._waiting and self._channel is not None and self._may_send():
            pending = self._waiting.popleft()
            if not pending.future.done():
                self._transmit(pending)
        self._note_drained()

    def _note_drained(self) -> None:
        if not self._waiting and not self._unconfirmed:
            self._drained.set()

    def _drop_given_up(self) -> None:
        """Forgets what waits though its caller has gone."""
        self._waiting = deque(p for p in self._waiting if not p.future.done())
        self._note_drained()

    # -- what the broker says --------------------------------------------------------------------------------------

    def _on_confirm(self, frame: Method) -> None:
        answer = frame.method
        tag = answer.delivery_tag
        refused = isinstance(answer, Basic.Nack)
        if answer.multiple:
            for covered in range(self._lowest, tag + 1):
                pending = self._unconfirmed.pop(covered, None)
                if pending is not None:
                    self._settle(pending, refused)
            self._lowest = tag + 1
        else:
            pending = self._unconfirmed.pop(tag, None)
            if pending is not None:
                self._settle(pending, refused)
        if self._waiting or not self._unconfirmed:
            self._pump()

    def _settle(self, pending: _Pending, refused: bool) -> None:
        future = pending.future
        text = self._return_of(pending.message) if self._returned else None
        if future.done():
            return
        if text is not None:
            future.set_exception(Unroutable(text))
        elif refused:
            message = pending.message
            future.set_exception(
                Refused(f"the broker refused a message for '{message.routing_key}': is its queue full or gone?")
            )
        else:
            future.set_result(None)

    def _on_return(self, _: Channel, method: Any, properties: BasicProperties, __: bytes) -> None:
        # The broker sends a return before the confirm of the same message, so this text is there when that comes.
        cause = "no queue takes it" if method.reply_code == NO_ROUTE else method.reply_text
        self._returned.setdefault(properties.message_id, []).append(
            f"exchange '{method.exchange}', key '{method.routing_key}': {cause}. "
            "Does the topology know this job type? See 'hareline topology plan'"
        )

    def _return_of(self, message: Message) -> str | None:
        """Why the message came back, if it did. Several with one id (the same key twice) may be on their way."""
        job_id = message.properties.message_id
        texts = self._returned.get(job_id)
        if texts is None:
            return None
        text = texts.pop()
        if not texts:
            del self._returned[job_id]
        return text

    # -- connection ------------------------------------------------------------------------------------------------

    async def _up(self, connection: Connection) -> None:
        self._blocked = connection.blocked
        connection.on_blocked = self._on_blocked
        await self._open_channel(connection)

    async def _open_channel(self, connection: Connection) -> None:
        """Raises BrokerUnreachable if the channel, or all of the connection, goes before it is in use."""
        channel = await connection.channel()
        answered: asyncio.Future[Any] = self._loop.create_future()
        answer = resolver(answered)
        channel.add_on_close_callback(lambda *_: answer(None))
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_return_callback(self._on_return)
        if channel.is_open:
            channel.confirm_delivery(self._on_confirm, answer)
            await answered
        if not channel.is_open:
            raise BrokerUnreachable("the channel closed before it was in use")
        self._returned.clear()
        self._lowest = self._next_tag = 1
        self._connection, self._channel = connection, channel
        self._pump()

    async def _reopen(self, connection: Connection) -> None:
        try:
            await self._open_channel(connection)
        except BrokerUnreachable:
            await connection.close()  # the link brings a new one

    def _on_blocked(self, blocked: bool) -> None:
        self._blocked = blocked
        if not blocked:
            self._pump()

    def _down(self, _: str) -> None:
        self._connection = self._channel = None
        self._blocked = False
        self._wait_again()

    def _wait_again(self) -> None:
        """What was sent and not confirmed waits again, ahead of the rest and in its old order."""
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        self._waiting.extendleft(p for p in reversed(list(unconfirmed.values())) if not p.future.done())
        self._note_drained()

    def _on_channel_closed(self, channel: Channel, reason: Any) -> None:
        """The broker closed the channel over one message. That one fails; the others go again on a new channel."""
        if channel is not self._channel:
            return
        self._channel = None
        connection = self._link.connection
        if connection is None or not connection.is_open:
            return  # the whole connection is going: _down follows
        self._fail_culprits(getattr(reason, "reply_code", 0), getattr(reason, "reply_text", str(reason)))
        self._wait_again()
        self._reopening = self._loop.create_task(self._reopen(connection))

    def _fail_culprits(self, code: int, text: str) -> None:
        named = _EXCHANGE_IN_TEXT.search(text)
        pending = list(self._unconfirmed.values())
        if named is not None:
            culprits = [p for p in pending if p.message.exchange == named[1]]
        else:
            # The broker does not say which message it disliked; size is what it usually is about.
            culprits = sorted(pending, key=lambda p: len(p.message.body))[-1:]
        for culprit in culprits:
            cure = "run 'hareline topology apply'" if code == NOT_FOUND else "ask the broker's operator"
            kind = Unroutable if code == NOT_FOUND else Refused
            self._fail(culprit, kind(f"the broker closed the channel: {text}; {cure}"))

    # -- deadlines -------------------------------------------------------------------------------------------------

    def _arm(self, deadline: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_at(deadline, self._expire)

    def _expire(self) -> None:
        """Fails all whose deadline has passed, and sets the alarm for the next."""
        self._alarm = None
        now = self._loop.time()
        remaining = [p for p in (*self._unconfirmed.values(), *self._waiting) if not p.future.done()]
        for pending in remaining:
            if pending.deadline <= now:
                self._fail(pending, self._overdue(pending))
        self._drop_given_up()
        later = min((p.deadline for p in remaining if p.deadline > now), default=None)
        if later is not None:
            self._arm(max(later, now + COARSENESS))

    def _fail(self, pending: _Pending, error: PublishError) -> None:
        if not pending.future.done():
            error.maybe_enqueued = pending.sent
            pending.future.set_exception(error)

    def _overdue(self, pending: _Pending) -> PublishError:
        job = f"job {pending.message.properties.message_id}"
        if self._blocked:
            return BrokerBlocked(
                f"{job}: the broker takes no messages (memory or disk alarm); see 'rabbitmqctl status'"
            )
        if self._channel is None:
            return ConnectionLost(f"{job}: {self._link.last_error}")
        if pending.sent:
            return NotConfirmed(f"{job} was sent, but the broker did not confirm it in time")
        return NotConfirmed(f"{job} waited for {self._limit} others to be confirmed; it was not sent")
