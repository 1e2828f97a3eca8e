"""transcripts.json with the Python client. The steps are described in transcripts.test.mjs, which does the same with oyez.js.

Time is the event loop's: it jumps to the next timer whenever nothing else is left to do, so an hour passes at once. The
connection is in memory.
"""

import asyncio
import json
import logging
import selectors
import unittest
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest import mock

from oyez_client import Gap, Live, Message, Oyez, OyezError, StateChange, Subscribed, Subscription
from websockets.exceptions import ConnectionClosedError
from websockets.frames import Close

FILE = json.loads(Path(__file__).with_name("transcripts.json").read_text())


class Selector(selectors.SelectSelector):
    """Does not wait for a timer, but lets its time pass."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise AssertionError("the test waits for nothing")
        self.now += timeout
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.virtual = Selector()
        super().__init__(self.virtual)

    def time(self) -> float:
        return self.virtual.now


class Connection:
    """A connection in memory."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.closed = False

    async def recv(self) -> str:
        item = await self.incoming.get()
        if isinstance(item, ConnectionClosedError):
            raise item
        return str(item)

    async def send(self, message: str) -> None:
        self.sent.append(json.loads(message))

    async def close(self, code: int = 1000) -> None:
        self.closed = True


def substitute(value: Any, values: dict[str, Any]) -> Any:
    """Replaces the names of an `each` by their values."""
    if isinstance(value, str):
        if value in values:
            return values[value]
        for name, by in values.items():
            value = value.replace(name, str(by))
        return value
    if isinstance(value, list):
        return [substitute(each, values) for each in value]
    if isinstance(value, dict):
        return {name: substitute(each, values) for name, each in value.items()}
    return value


def subject(entry: dict[str, Any]) -> str:
    kinds = ("message", "gap", "live", "subscribed", "rejected", "published", "failed")
    return str(next(entry[kind] for kind in kinds if kind in entry))


def event_fields(name: str, event: Any) -> dict[str, Any]:
    match event:
        case Message():
            user = {"id": event.user.id, "info": event.user.info} if event.user else None
            fields = {"channel": event.channel, "id": event.id, "n": event.n, "from": event.sender, "user": user, "own": event.own}
            return {"message": name, **fields, "kind": event.kind, "data": event.data}
        case Gap():
            fields = {"channel": event.channel, "after": event.after, "resume": event.resume}
            return {"gap": name, **fields, "missed": event.missed, "why": event.why}
        case Live():
            return {"live": name, "channel": event.channel, "id": event.id}
        case Subscribed():
            return {"subscribed": name, "channel": event.channel, "id": event.id, "subscribers": event.subscribers}
    raise AssertionError(event)


class Play:
    def __init__(self, test: unittest.TestCase, options: dict[str, Any]) -> None:
        self.test = test
        self.connections: list[Connection] = []
        self.protocols: list[list[str]] = []
        self.connected = 0
        self.seen: list[dict[str, Any]] = []
        self.state_changes: list[dict[str, Any]] = []
        self.bound: dict[str, Any] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        options = dict(options)
        has_tokens = "tokens" in options
        tokens = iter(options.pop("tokens", []))

        async def token() -> str:
            value = next(tokens)
            if value is None:
                raise RuntimeError("no token")
            return str(value)

        async def connect(_: str, subprotocols: list[str]) -> Connection:
            self.protocols.append(subprotocols)
            self.connections.append(Connection())
            return self.connections[-1]

        def on_state(change: StateChange) -> None:
            entry = {"state": change.state, "client": change.client, "code": change.code, "reason": change.reason}
            retry_ms = None if change.retry_seconds is None else int(change.retry_seconds * 1000)
            self.state_changes.append({**entry, "retry_ms": retry_ms})

        if has_tokens:
            options["token"] = token
        self.hub = Oyez("http://host:1/", random=lambda: 0.5, connect=connect, on_state=on_state, **options)

    @property
    def connection(self) -> Connection:
        return self.connections[-1]

    async def settle(self) -> None:
        for _ in range(40):
            await asyncio.sleep(0)

    async def step(self, step: dict[str, Any]) -> None:
        ((kind, value),) = step.items()
        if kind == "wait_ms":
            await asyncio.sleep(value / 1000)
        else:
            getattr(self, f"step_{kind}")(value)
        await self.settle()

    def step_connects(self, protocols: list[str] | None) -> None:
        self.connected += 1 if protocols else 0
        self.test.assertEqual(len(self.connections), self.connected, "connections")
        if protocols:
            self.test.assertEqual(self.protocols[-1], protocols)

    def step_hello(self, fields: dict[str, Any]) -> None:
        self.step_server({**FILE["hello"], "client": f"c{len(self.connections)}", **fields})

    def step_server(self, message: dict[str, Any]) -> None:
        self.step_frame(json.dumps(message))

    def step_frame(self, text: str) -> None:
        self.connection.incoming.put_nowait(text)

    def step_closes(self, close: list[Any]) -> None:
        code, reason = close
        received = None if code == 1006 else Close(code, reason)
        # No peer sends the code 1006, except in a transcript.
        error = ConnectionClosedError(received or (Close(code, reason) if reason else None), None)
        self.connection.incoming.put_nowait(error)

    def step_closed(self, _: bool) -> None:
        self.test.assertTrue(self.connection.closed)

    def step_client(self, frames: list[dict[str, Any]]) -> None:
        sent, self.connection.sent = self.connection.sent, []
        wanted = []
        for at, frame in enumerate(frames):
            got = sent[at] if at < len(sent) else {}
            bind = {name: self.bound.setdefault(value, got.get(name)) if str(value).startswith("$") else value
                    for name, value in frame.items()}
            wanted.append(bind)
        self.test.assertEqual(sent, wanted)
        keys = [key for name, key in self.bound.items() if name.startswith("$key")]
        self.test.assertEqual(len(set(keys)), len(keys), "each publish has a key of its own")

    def step_app(self, call: dict[str, Any]) -> None:
        call = dict(call)
        name = call.pop("as", None)
        if "subscribe" in call:
            try:
                self.subscriptions[name] = self.hub.subscribe(call.pop("subscribe"), **call)
            except OyezError as error:
                self.seen.append({"rejected": name, "code": error.code, "text": error.message})
            else:
                self.spawn(self.read(name, self.subscriptions[name]))
        elif "unsubscribe" in call:
            self.subscriptions[call["unsubscribe"]].unsubscribe()
        elif "publish" in call:
            value = bytes(call["bytes"]) if "bytes" in call else call["data"]
            self.spawn(self.publish(name, call["publish"], value))
        else:
            self.test.assertEqual(call, {"close": True})
            self.spawn(self.hub.close())

    def spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)

    async def read(self, name: str, subscription: Subscription) -> None:
        while True:
            try:
                async for event in subscription.events():
                    self.seen.append(event_fields(name, event))
                return
            except OyezError as error:
                self.seen.append({"rejected": name, "code": error.code, "text": error.message})

    async def publish(self, name: str, channel: str, value: Any) -> None:
        try:
            message_id = await self.hub.publish(channel, value)
            self.seen.append({"published": name, "id": message_id})
        except OyezError as error:
            self.seen.append({"failed": name, "code": error.code, "text": error.message})

    def step_sees(self, wanted: list[dict[str, Any]]) -> None:
        seen, self.seen = self.seen, []
        got: defaultdict[str, list[Any]] = defaultdict(list)
        want: defaultdict[str, list[Any]] = defaultdict(list)
        for entries, into in ((seen, got), (wanted, want)):
            for entry in entries:
                into[subject(entry)].append(entry)
        self.test.assertEqual(sorted(got), sorted(want))
        for name in want:
            self.compare(got[name], want[name])

    def step_states(self, wanted: list[dict[str, Any]]) -> None:
        changes, self.state_changes = self.state_changes, []
        self.compare(changes, wanted)

    def compare(self, got: list[dict[str, Any]], want: list[dict[str, Any]]) -> None:
        """Compares the fields that are named."""
        picked = []
        for at, entry in enumerate(got):
            names = want[at] if at < len(want) else entry
            picked.append({name: list(entry["data"]) if name == "bytes" else entry.get(name) for name in names})
        self.test.assertEqual(picked, want)


class Transcript(unittest.TestCase):
    def __init__(self, name: str, options: dict[str, Any], steps: list[dict[str, Any]]) -> None:
        super().__init__("run_transcript")
        self.name, self.options, self.steps = name, options, steps

    def __str__(self) -> str:
        return self.name

    def run_transcript(self) -> None:
        loop = Loop()
        try:
            with mock.patch("time.time", loop.time):
                loop.run_until_complete(self.play())
            self.assertEqual(asyncio.all_tasks(loop), set(), "tasks that remain")
        finally:
            loop.close()

    async def play(self) -> None:
        play = Play(self, self.options)
        async with play.hub:
            await play.settle()
            for at, step in enumerate(self.steps):
                try:
                    await play.step(step)
                except BaseException as error:
                    error.add_note(f"step {at + 1}, {json.dumps(step)}")
                    raise
            self.assertEqual(play.seen, [], "events that no step names")
            if play.connections:
                self.assertEqual(play.connection.sent, [], "frames that no step names")
        await asyncio.gather(*play.tasks)
        self.assertEqual(play.hub.state, "closed")


def load_tests(_: unittest.TestLoader, __: unittest.TestSuite, ___: str | None) -> unittest.TestSuite:
    logging.getLogger("oyez_client").setLevel(logging.CRITICAL)
    suite = unittest.TestSuite()
    for transcript in FILE["transcripts"]:
        for values in transcript.get("each", [{}]):
            name = substitute(transcript["name"], values)
            suite.addTest(Transcript(name, transcript.get("options", {}), substitute(transcript["steps"], values)))
    return suite


if __name__ == "__main__":
    unittest.main()
