"""A connection to an Oyez server that reconnects.

A plain WebSocket loses the messages that are published while it is disconnected. This client guarantees three properties
across any number of lost connections:

- No unannounced loss. Each channel has a cursor: the id of the last message. A new connection resumes there, no message is
  delivered twice, and messages that are no longer available are reported as a gap.
- Published once. An unacknowledged publish is sent again with the same idempotency key for as long as the server remembers
  keys, also after a restart with a history file. After that, or after another restart, it fails (`unknown`).
- Reconnects with backoff. Pauses are random and grow; the server's own `retry_ms` has priority; and a rejection that would
  only be repeated (4000-4099) ends the client.

`src/console/oyez.js` is the same client for JavaScript, and both pass the same transcripts.
"""

import asyncio
import contextlib
import inspect
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import random as default_random
from typing import Any, Literal, Protocol, Self

from websockets.asyncio.client import connect as websockets_connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from ._channel import Channel, NewestSet, Stage
from ._encoding import check_name, endpoint, from_json, payload, to_json, to_message
from ._errors import OyezError
from ._events import Gap, Live, Subscribed
from ._publishes import Publish, Publishes
from ._subscription import Inbox, Subscription

log = logging.getLogger("oyez_client")

PROTOCOL = "oyez.v1"
# The first pause is for a connection that was lost by chance, the last for a server that is down for longer.
RETRY_FIRST_SECONDS = 0.2
RETRY_SECONDS_MAX = 30.0
# After a connection that lasted this long, the next pause is the shortest again.
GOOD_AFTER_SECONDS = 30.0
HELLO_TIMEOUT_SECONDS = 10.0
# For servers that ask for no pings: proxies and routers forget a silent connection after a minute or less.
PING_SECONDS = 25.0
# A token is renewed when a fifth of its time is left, and at most a minute before it expires.
RENEW_BEFORE_SECONDS_MAX = 60.0
# A token function that failed is called again after this.
RENEW_RETRY_SECONDS = 5.0
# A rejected handshake is only a status, so after this many failures before any hello the log gets a hint.
HINT_AFTER_FAILURES = 3
# Earlier names of this client; messages that it published under them may still be replayed.
CLIENTS_MAX = 64
# How long a close handshake may take.
CLOSE_SECONDS = 5.0

State = Literal["connecting", "open", "waiting", "closed"]
Token = str | Callable[[], str | Awaitable[str]]


@dataclass(frozen=True, slots=True)
class StateChange:
    """A new state, with `client` if it is open, and `code` and `reason` if it is waiting or closed."""

    state: State
    client: str | None = None
    retry_seconds: float | None = None
    code: int | None = None
    reason: str | None = None


class Connection(Protocol):
    """The part of a `websockets` connection that is used here."""

    async def recv(self) -> str | bytes: ...
    async def send(self, message: str) -> None: ...
    async def close(self, code: int = 1000) -> None: ...


async def _connect(url: str, subprotocols: list[str]) -> Connection:
    # The client limits the time by itself and sends its own pings; the server's frames are as large as its settings allow.
    return await websockets_connect(
        url,
        subprotocols=[Subprotocol(name) for name in subprotocols],
        open_timeout=None,
        ping_interval=None,
        close_timeout=CLOSE_SECONDS,
        max_size=None,
    )


class Oyez:
    """A client of the server at `url`: `http://`, `https://`, `ws://` or `wss://`, with the server's path prefix if any.

    It connects at the beginning of `async with`, or with `start()`, and again whenever the connection is lost.

    `token` is a string, or a function that returns one or an awaitable of one, which is called at each connect and before
    the token expires. `on_state` is called with each `StateChange`. `publishes_max` unacknowledged publishes may wait; one
    more fails (`queue_full`). `pong_timeout_seconds` is the silence after a ping that means that the connection is dead.
    """

    def __init__(
        self,
        url: str,
        *,
        token: Token | None = None,
        on_state: Callable[[StateChange], object] | None = None,
        publishes_max: int = 1000,
        pong_timeout_seconds: float = 10.0,
        random: Callable[[], float] = default_random,
        connect: Callable[[str, list[str]], Awaitable[Connection]] = _connect,
    ) -> None:
        self._url = endpoint(url)
        self._token = token
        self._on_state = on_state
        self._pong_timeout_seconds = pong_timeout_seconds
        self._random = random
        self._connect = connect
        self._state: State = "connecting"
        self._task: asyncio.Task[None] | None = None
        self._key = secrets.token_hex(12)
        self._next_ref = 1
        self._publishes = Publishes(publishes_max)
        self._channels: dict[str, Channel] = {}
        self._clients = NewestSet(CLIENTS_MAX)
        self._failures = 0
        self._has_connected = False
        # Fields of the last hello.
        self._client: str | None = None
        self._run: str | None = None
        self._node: str | None = None
        self._key_age_seconds = 0.0
        self._message_bytes_max = float("inf")
        # State of the current connection.
        self._lost: asyncio.Future[tuple[int, str]] | None = None
        self._outgoing: asyncio.Queue[str] = asyncio.Queue()
        self._has_received = False
        self._life: asyncio.TimerHandle | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._opened_at: float | None = None
        # Close handshakes of earlier connections.
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def state(self) -> State:
        return self._state

    @property
    def client(self) -> str | None:
        """The name of this connection to others; None while it is not open."""
        return self._client

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def start(self) -> None:
        """Begins to connect. Needs a running event loop."""
        if self._task is None and self._state != "closed":
            self._task = asyncio.get_running_loop().create_task(self._stay_connected())

    async def close(self) -> None:
        """Closes the client for good: subscriptions end, and waiting publishes fail (`closed`). No task remains."""
        self._end(1000, "close")
        if self._lost is not None and not self._lost.done():
            self._lost.set_result((1000, "close"))
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
            await asyncio.wait([self._task])
            if self._closing:
                await asyncio.wait(self._closing)

    def cut(self) -> None:
        """Drops the connection as if the network had failed; it comes back by itself."""
        self._lose(1006, "cut")

    def subscribe(
        self,
        channel: str,
        *,
        since: str | None = None,
        echo: bool = True,
        on_gap: Callable[[Gap], object] | None = None,
        messages_max: int = 1000,
    ) -> Subscription:
        """Subscribes to a channel.

        `since` is `earliest`, `latest` or an id; absent: new messages only. Without `echo`, messages of this client are
        left out. Subscriptions to one channel share one on the server, and `since` counts for the first of them. When
        `messages_max` messages wait for the reader, the channel is paused, and resumes from there once half of them are read.
        """
        check_name(channel)
        inbox = Inbox(echo, messages_max)
        state = self._channels.get(channel)
        if state is None:
            state = self._channels[channel] = Channel(channel)
        if not state.inboxes:
            state.start(since)
        state.inboxes.append(inbox)
        if self._state == "closed":
            inbox.end()
        self._request_subscription(state)

        return Subscription(inbox, on_gap, lambda: self._resume(state), lambda: self._leave(state, inbox))

    async def publish(self, channel: str, value: Any) -> str:
        """Publishes a `str` as text, bytes as binary, anything else as JSON. Returns the message's id when the server has
        accepted it; raises an `OyezError` otherwise."""
        check_name(channel)
        if self._state == "closed":
            raise OyezError("closed", "the client has been closed")
        self._publishes.check_room()
        ref = self._next_ref
        key = f"{self._key}-{ref}"
        frame = to_json({"type": "publish", "ch": channel, **payload(value), "ref": ref, "key": key})
        self._next_ref += 1
        result: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._publishes.add(ref, Publish(frame, result))
        if self._state == "open":
            self._send_publish(ref)
        try:
            return await result
        finally:
            # If this call was cancelled, nothing is sent again for it.
            self._publishes.remove(ref)

    # The connection

    async def _stay_connected(self) -> None:
        while True:
            code, reason = await self._use_connection()
            if self.state == "closed":
                return
            if 4000 <= code <= 4099:
                return self._end(code, reason)
            retry_seconds = self._pause_seconds(reason)
            if not self._has_connected and self._failures == HINT_AFTER_FAILURES:
                self._hint(code, reason)
            self._enter(StateChange("waiting", retry_seconds=retry_seconds, code=code, reason=reason))
            await asyncio.sleep(retry_seconds)

    def _pause_seconds(self, reason: str) -> float:
        now = asyncio.get_running_loop().time()
        if self._opened_at is not None and now - self._opened_at >= GOOD_AFTER_SECONDS:
            self._failures = 0
        self._opened_at = None
        # Large exponents overflow.
        ceiling = min(RETRY_SECONDS_MAX, RETRY_FIRST_SECONDS * 2 ** min(self._failures, 30))
        self._failures += 1
        requested = re.search(r"\bretry_ms=(\d+)", reason)
        return int(requested[1]) / 1000 if requested else self._random() * ceiling

    def _hint(self, code: int, reason: str) -> None:
        log.warning(
            "no connection to %s after %s attempts (%s %s). Check that the server runs at this address and speaks the same "
            "protocol (ws:// or wss://), and that a proxy in front passes Upgrade and Host; the log of the server names the "
            "reason.",
            self._url,
            HINT_AFTER_FAILURES,
            code,
            reason,
        )

    async def _use_connection(self) -> tuple[int, str]:
        """Connects, and returns the code and the reason when the connection is lost."""
        self._enter(StateChange("connecting"))
        loop = asyncio.get_running_loop()
        lost: asyncio.Future[tuple[int, str]] = loop.create_future()
        self._lost = lost
        self._outgoing = asyncio.Queue()
        self._life = loop.call_later(HELLO_TIMEOUT_SECONDS, self._lose, 1006, "no hello")
        task = loop.create_task(self._exchange(lost))
        try:
            return await lost
        finally:
            self._release()
            task.cancel()
            await asyncio.wait([task])

    async def _exchange(self, lost: "asyncio.Future[tuple[int, str]]") -> None:
        """Opens the connection, and receives and sends on it until it is lost. `lost` is set in any case."""
        connection: Connection | None = None
        try:
            protocols = [PROTOCOL]
            if self._token is not None:
                protocols.append(f"oyez.token.{await self._call_token()}")
            connection = await self._connect(self._url, protocols)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._send_all(connection))
                group.create_task(self._receive_all(connection))
        except* ConnectionClosed as group_error:
            _set(lost, _close_of(group_error))
        except* Exception as group_error:
            error = group_error.exceptions[0]
            _set(lost, (1006, str(error) or type(error).__name__))
        finally:
            if connection is not None:
                closing = asyncio.get_running_loop().create_task(_close(connection))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)

    async def _send_all(self, connection: Connection) -> None:
        while True:
            await connection.send(await self._outgoing.get())

    async def _receive_all(self, connection: Connection) -> None:
        while True:
            frame = await connection.recv()
            if self._lost is None or self._lost.done():
                return
            self._has_received = True
            try:
                message = from_json(frame)
            except ValueError:
                return self._lose(1002, "not JSON")
            self._receive(message)

    def _release(self) -> None:
        """Resets the state of the connection."""
        if self._life is not None:
            self._life.cancel()
        if self._renewal is not None:
            self._renewal.cancel()
        self._lost = None
        self._client = None
        for channel in list(self._channels.values()):
            channel.stage = Stage.UNSUBSCRIBED
            if not channel.inboxes:
                del self._channels[channel.name]

    def _lose(self, code: int, reason: str) -> None:
        if self._lost is not None:
            _set(self._lost, (code, reason))

    def _end(self, code: int, reason: str) -> None:
        if self._state == "closed":
            return
        self._publishes.reject_all(OyezError("closed", f"closed: {code} {reason}"))
        for channel in self._channels.values():
            for inbox in channel.inboxes:
                inbox.end()
        self._enter(StateChange("closed", code=code, reason=reason))

    def _enter(self, change: StateChange) -> None:
        self._state = change.state
        if self._on_state is not None:
            try:
                self._on_state(change)
            except Exception:
                log.exception("on_state failed")

    def _send(self, command: dict[str, Any]) -> None:
        self._outgoing.put_nowait(to_json(command))

    # A connection is alive as long as messages arrive, so a ping is sent only after a silence.

    def _listen(self, ping_seconds: float) -> None:
        self._has_received = False
        loop = asyncio.get_running_loop()
        self._life = loop.call_later(ping_seconds, self._check_life, ping_seconds)

    def _check_life(self, ping_seconds: float) -> None:
        if self._has_received:
            return self._listen(ping_seconds)
        self._send({"type": "ping"})
        loop = asyncio.get_running_loop()
        self._life = loop.call_later(self._pong_timeout_seconds, self._check_pong, ping_seconds)

    def _check_pong(self, ping_seconds: float) -> None:
        if self._has_received:
            self._listen(ping_seconds)
        else:
            self._lose(1006, "no pong")

    # Tokens

    async def _call_token(self) -> str:
        if isinstance(self._token, str):
            return self._token
        assert self._token is not None
        token = self._token()
        return await token if inspect.isawaitable(token) else token

    def _renew_later(self, expires_ms: float | None) -> None:
        """The connection's rights end with its token, so the next token is sent before that."""
        if self._renewal is not None:
            self._renewal.cancel()
        if callable(self._token) and expires_ms:
            expires_seconds = expires_ms / 1000
            wait_seconds = expires_seconds - min(RENEW_BEFORE_SECONDS_MAX, expires_seconds / 5)
            self._renewal = asyncio.get_running_loop().create_task(self._renew(wait_seconds))

    async def _renew(self, wait_seconds: float) -> None:
        await asyncio.sleep(wait_seconds)
        while True:
            try:
                return self._send({"type": "auth", "token": await self._call_token()})
            except Exception as error:
                log.warning("the token function failed: %s", error)
                await asyncio.sleep(RENEW_RETRY_SECONDS)

    # Messages of the server

    def _receive(self, message: dict[str, Any]) -> None:
        channel = self._channels.get(message.get("ch", ""))
        is_subscribed = channel is not None and channel.stage is Stage.SUBSCRIBED
        match message.get("type"):
            case "hello":
                self._on_hello(message)
            case "authenticated":
                self._renew_later(message.get("expires_ms"))
            case "ack":
                self._publishes.acknowledge(message.get("ref"), message["id"])
            case "error":
                self._on_error(channel, message)
            case "subscribed" if channel and channel.stage is Stage.SUBSCRIBING:
                channel.stage = Stage.SUBSCRIBED
                channel.cursor = message["id"]
                channel.resumed = True
                channel.put(Subscribed(channel.name, message["id"], message["subscribers"]))
            case "unsubscribed" if channel:
                self._on_unsubscribed(channel)
            case "live" if channel and is_subscribed:
                channel.cursor = message["id"]
                channel.put(Live(channel.name, message["id"]))
            case "gap" if channel and is_subscribed:
                self._on_gap(channel, message)
            case None if channel and is_subscribed:
                channel.on_message(to_message(message, message.get("from") in self._clients))
                if any(inbox.is_full for inbox in channel.inboxes):
                    channel.is_paused = True
                    self._unsubscribe(channel)
            # Any other message is a pong, or one of a newer server.

    def _on_hello(self, hello: dict[str, Any]) -> None:
        if self._life is not None:
            self._life.cancel()
        # Another process does not know earlier keys, and no process knows those of a client that has changed its
        # network.
        if self._run is not None and self._run != hello.get("run"):
            self._publishes.keys_are_forgotten()
        self._run = hello.get("run")
        # Each of several nodes that share a log counts the messages of a channel by itself.
        if self._node != hello.get("node"):
            for channel in self._channels.values():
                channel.n = None
        self._node = hello.get("node")
        self._has_connected = True
        self._opened_at = asyncio.get_running_loop().time()
        self._client = hello["client"]
        self._clients.add(hello["client"])
        self._key_age_seconds = (hello.get("key_age_ms") or 0) / 1000
        self._message_bytes_max = hello.get("message_bytes_max") or float("inf")
        self._renew_later(hello.get("expires_ms"))
        self._listen((hello.get("ping_ms") or 0) / 1000 or PING_SECONDS)
        # The state is reported last, since its callback may publish and subscribe.
        self._state = "open"
        for channel in self._channels.values():
            self._request_subscription(channel)
        for ref in self._publishes.refs:
            self._send_publish(ref)
        self._enter(StateChange("open", client=self._client))

    def _on_gap(self, channel: Channel, gap: dict[str, Any]) -> None:
        channel.cursor = gap["resume"]
        # The channel's count continues somewhere after the gap.
        channel.n = None
        # Another log is another server, which may have assigned this client's earlier ids to other clients.
        if gap["why"] == "epoch" and self._client is not None:
            self._clients = NewestSet(CLIENTS_MAX)
            self._clients.add(self._client)
        channel.put(Gap(channel.name, gap.get("after"), gap["resume"], gap.get("missed"), gap["why"]))

    def _on_error(self, channel: Channel | None, message: dict[str, Any]) -> None:
        error = OyezError(message["code"], message.get("message", ""))
        ref = message.get("ref")
        if ref is not None:
            # The connection is about to close. The message was not published, and is sent again on the next one.
            if error.code == "drain":
                self._publishes.not_published(ref)
            else:
                self._publishes.reject(ref, error)
        elif channel is None:
            log.warning("%s", error)
        elif error.code == "not_subscribed":
            # The subscription that was to be ended had been rejected.
            self._on_unsubscribed(channel)
        elif channel.stage is Stage.SUBSCRIBING:
            channel.stage = Stage.UNSUBSCRIBED
            channel.put(error)
            if not channel.inboxes:
                del self._channels[channel.name]

    # Subscriptions and publishes

    def _request_subscription(self, channel: Channel) -> None:
        if self._state == "open" and channel.is_wanted and channel.stage is Stage.UNSUBSCRIBED:
            channel.stage = Stage.SUBSCRIBING
            since = channel.cursor or channel.since
            self._send({"type": "subscribe", "ch": channel.name} | ({"since": since} if since else {}))

    def _resume(self, channel: Channel) -> None:
        """Subscribes again to a channel that was paused for a slow reader, if there is no such reader any longer."""
        if channel.is_paused and all(inbox.has_room for inbox in channel.inboxes):
            channel.is_paused = False
            self._request_subscription(channel)

    def _unsubscribe(self, channel: Channel) -> None:
        if channel.stage in (Stage.SUBSCRIBING, Stage.SUBSCRIBED):
            channel.stage = Stage.UNSUBSCRIBING
            self._send({"type": "unsubscribe", "ch": channel.name})

    def _on_unsubscribed(self, channel: Channel) -> None:
        """Ends the subscription. Messages in flight until then are not for readers that were added meanwhile."""
        if channel.stage is not Stage.UNSUBSCRIBING:
            return
        channel.stage = Stage.UNSUBSCRIBED
        if not channel.inboxes:
            del self._channels[channel.name]
        self._request_subscription(channel)

    def _leave(self, channel: Channel, inbox: Inbox) -> None:
        inbox.end()
        if inbox not in channel.inboxes:
            return
        channel.inboxes.remove(inbox)
        if channel.inboxes:
            return self._resume(channel)
        if channel.stage is Stage.UNSUBSCRIBED:
            self._channels.pop(channel.name, None)
        else:
            self._unsubscribe(channel)

    def _send_publish(self, ref: int) -> None:
        frame = self._publishes.to_send(ref, self._key_age_seconds, self._message_bytes_max)
        if frame is not None:
            self._outgoing.put_nowait(frame)


def _set(lost: "asyncio.Future[tuple[int, str]]", close: tuple[int, str]) -> None:
    if not lost.done():
        lost.set_result(close)


def _close_of(group: BaseExceptionGroup[ConnectionClosed]) -> tuple[int, str]:
    error = group.exceptions[0]
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return (error.rcvd.code, error.rcvd.reason) if error.rcvd else (1006, "")


async def _close(connection: Connection) -> None:
    # A peer that has vanished does not respond to a close frame.
    with contextlib.suppress(Exception):
        await connection.close()
