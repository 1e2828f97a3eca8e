"""Subscriptions: async iterators over the messages of a channel."""

import asyncio
import contextlib
import logging
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Self

from ._errors import OyezError
from ._events import Event, Gap, Message

log = logging.getLogger("oyez_client")


class Inbox:
    """The events of one subscription that wait for its reader. The client refers to this, and not to the subscription,
    so that a subscription that its application has dropped can be recognized."""

    def __init__(self, echo: bool, messages_max: int) -> None:
        self.echo = echo
        self.messages_max = messages_max
        self.items: deque[Event | OyezError] = deque()
        self.ended = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_full(self) -> bool:
        return len(self.items) >= self.messages_max

    @property
    def has_room(self) -> bool:
        """Returns true once half of the items are read: a full inbox is filled again only then."""
        return len(self.items) <= self.messages_max // 2

    def put(self, item: Event | OyezError) -> None:
        self.items.append(item)
        self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> Event | OyezError | None:
        """Returns the next item, or None if the inbox has ended and is empty."""
        while not self.items:
            if self.ended:
                return None
            if self._waiter is not None:
                raise RuntimeError("two tasks read from one subscription")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self.items.popleft()


class Subscription:
    """The messages of a channel, as an async iterator; made by `Oyez.subscribe`.

    `async for message in subscription` yields each `Message`, and passes each `Gap` to `on_gap` at its place among them;
    without `on_gap` it is logged as a warning. `events()` yields gaps and the other events in the same order. Both end when
    the client is closed, and raise an `OyezError` if the server rejects the subscription. The subscription ends with
    `unsubscribe()`, at the end of an `async with`, or when nothing refers to it any longer, as after `break`.
    """

    def __init__(
        self,
        inbox: Inbox,
        on_gap: Callable[[Gap], object] | None,
        on_read: Callable[[], None],
        leave: Callable[[], None],
    ) -> None:
        self._inbox = inbox
        self._on_gap = on_gap
        self._on_read = on_read
        loop = asyncio.get_running_loop()
        self._leave = leave
        # The garbage collector may run in another thread.
        self._finalizer = weakref.finalize(self, _call_soon, loop, leave)
        self._finalizer.atexit = False

    def unsubscribe(self) -> None:
        """Ends the subscription. Messages that wait for the reader are discarded."""
        if self._finalizer.detach() is not None:
            self._inbox.items.clear()
            self._leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.unsubscribe()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        while True:
            event = await self._next()
            if event is None:
                raise StopAsyncIteration
            if isinstance(event, Message):
                return event
            if isinstance(event, Gap):
                if self._on_gap is not None:
                    self._on_gap(event)
                else:
                    log.warning("channel %s: missed %s messages: %s", event.channel, event.missed or "some", event.why)

    async def events(self) -> AsyncIterator[Event]:
        """Yields messages, gaps, `Subscribed` and `Live`."""
        while (event := await self._next()) is not None:
            yield event

    async def _next(self) -> Event | None:
        item = await self._inbox.get()
        self._on_read()
        if isinstance(item, OyezError):
            raise item
        return item


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    # The loop may have been closed before.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback)
