"""The Python client against the real server, which the variable OYEZ names. No test depends on how fast the machine is: all
wait for conditions."""

import asyncio
import gc
import json
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import unittest
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oyez_client import Gap, Live, Message, Oyez, OyezError, StateChange
from oyez_client._client import Connection, _connect

OYEZ = os.environ["OYEZ"]
WAIT_SECONDS = 180.0
# Deadlines of servers that are tested: a busy machine breaks none of these.
DEADLINES = {f"OYEZ_{name}_TIMEOUT_MS": "600000" for name in ("HANDSHAKE", "PONG", "SLOW")}


def free_port() -> int:
    """A port below the range from which the kernel gives ports to clients, which could be taken during a restart."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Server:
    """A server of its own for each test."""

    def __init__(self, test: unittest.TestCase, *flags: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            [OYEZ, "serve", "--listen", f"127.0.0.1:{self.port}", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **DEADLINES, "RUST_LOG": "off"},
        )
        test.addCleanup(self.stop)
        assert self.process.stdout
        if b"listening" not in self.process.stdout.readline():
            raise AssertionError("the server did not start")

    async def end(self) -> None:
        """Ends it as a service manager does."""
        self.process.terminate()
        await until("the end of the server", lambda: self.process.poll() is not None)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    def subscribers(self, channel: str) -> int:
        try:
            with urllib.request.urlopen(f"{self.url}/v1/channels/{channel}") as response:
                return int(json.load(response)["subscribers"])
        except urllib.error.HTTPError:
            return 0

    def publish(self, channel: str, body: bytes) -> None:
        urllib.request.urlopen(f"{self.url}/v1/publish/{channel}", data=body).close()


async def until(what: str, is_so: Callable[[], bool]) -> None:
    end = asyncio.get_running_loop().time() + WAIT_SECONDS
    while not is_so():
        if asyncio.get_running_loop().time() > end:
            raise AssertionError(f"waited {WAIT_SECONDS} s for: {what}")
        await asyncio.sleep(0.005)


class Collected:
    """Reads a subscription in the background."""

    def __init__(self, hub: Oyez, channel: str, **options: Any) -> None:
        self.events: list[Any] = []
        self.errors: list[str] = []
        self.subscription = hub.subscribe(channel, **options)
        self.task = asyncio.get_running_loop().create_task(self.read())

    async def read(self) -> None:
        while True:
            try:
                async for event in self.subscription.events():
                    self.events.append(event)
                return
            except OyezError as error:
                self.errors.append(error.code)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def data(self) -> list[Any]:
        return [event.data for event in self.of(Message)]


class LossyConnection:
    """A connection that may lose acknowledgements; it counts how often each publish is sent."""

    def __init__(self, connection: Connection, sent: Counter[int]) -> None:
        self.connection = connection
        self.sent = sent
        self.loses_acks = False

    async def recv(self) -> str | bytes:
        while True:
            message = await self.connection.recv()
            if not self.loses_acks or json.loads(message).get("type") != "ack":
                return message

    async def send(self, message: str) -> None:
        ref = json.loads(message).get("ref")
        if ref is not None:
            self.sent[ref] += 1
        await self.connection.send(message)

    async def close(self, code: int = 1000) -> None:
        await self.connection.close(code)


class ClientTest(unittest.IsolatedAsyncioTestCase):
    async def test_each_kind_of_value_arrives_as_it_was_sent(self) -> None:
        server = Server(self)
        async with Oyez(server.url) as one, Oyez(server.url) as two:
            ones, twos = Collected(one, "a"), Collected(two, "a")
            await until("both subscriptions", lambda: bool(ones.events and twos.events))
            sent = ["text \U0001f600", bytes([0, 1, 255]), {"x": [1, None]}, [None], 7, "", True]
            ids = [await one.publish("a", value) for value in sent]
            await until("all of them", lambda: len(ones.data) == len(twos.data) == len(sent))
            self.assertEqual(twos.data, sent)
            messages = twos.of(Message)
            self.assertEqual([message.id for message in messages], ids)
            self.assertEqual([message.kind for message in messages], ["text", "binary", "data", "data", "data", "text", "data"])
            self.assertEqual([message.n for message in messages], list(range(1, 8)))
            self.assertTrue(all(message.sender == one.client and not message.own for message in messages))
            self.assertTrue(all(message.own for message in ones.of(Message)))
        await asyncio.gather(ones.task, twos.task)

    async def test_lost_connections_lose_and_repeat_no_message(self) -> None:
        server = Server(self, "--history-messages-max", "10000")
        seed = random.randrange(1 << 16)
        print(f"seed {seed}", file=sys.stderr)
        chance = random.Random(seed)
        # Pauses grow while connections are cut early; here they stay short.
        async with Oyez(server.url, random=lambda: 0.001) as hub, Oyez(server.url, random=lambda: 0.001) as publisher:
            heard = Collected(hub, "a")
            await until("the subscription", lambda: bool(heard.events))
            ids: list[asyncio.Task[str]] = []
            cuts = 0
            while cuts < 40:
                ids.append(asyncio.create_task(publisher.publish("a", len(ids))))
                # A slow server must not get more than the publisher may have unacknowledged.
                if len(ids) >= 500:
                    await ids[-500]
                await asyncio.sleep(chance.random() * 0.003)
                for each in (hub, publisher):
                    if each.state == "open" and chance.random() < 0.05:
                        each.cut()
                        cuts += 1
            acknowledged = await asyncio.wait_for(asyncio.gather(*ids), WAIT_SECONDS)
            await until("the last message", lambda: len(heard.data) >= len(ids))
            self.assertEqual(heard.data, list(range(len(ids))))
            self.assertEqual([message.id for message in heard.of(Message)], list(acknowledged))
            self.assertEqual(heard.of(Gap), [])

    async def test_restarted_server_is_a_gap_in_the_iteration(self) -> None:
        server = Server(self)
        gaps: list[Gap] = []
        changes: list[StateChange] = []
        async with Oyez(server.url, random=lambda: 0.1, on_state=changes.append) as hub:
            room = hub.subscribe("a", on_gap=gaps.append)
            before = asyncio.create_task(anext(room))
            await until("the subscription", lambda: server.subscribers("a") == 1)
            await hub.publish("a", "before")
            self.assertEqual((await asyncio.wait_for(before, WAIT_SECONDS)).data, "before")
            server.stop()
            await until("the loss", lambda: hub.state == "waiting")
            waiting = asyncio.create_task(hub.publish("a", "after"))
            Server(self, port=server.port)
            self.assertEqual((await asyncio.wait_for(anext(room), WAIT_SECONDS)).data, "after")
            self.assertEqual([gap.why for gap in gaps], ["epoch"])
            await waiting
        states = [change.state for change in changes]
        self.assertEqual((states[:3], states[-2:]), (["connecting", "open", "waiting"], ["open", "closed"]))

    async def restart(self, manner: str) -> None:
        """Ten restarts of a server with a history file while a client publishes 100 messages a second. Before each one the
        acknowledgements of the last messages are lost: the client sends these again, and the next process knows their
        keys."""
        restarts, unacknowledged = 10, 10
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        limits = ["--history-messages-max", "1000000", "--history-bytes-max", "1GiB"]
        flags = ["--history-file", str(Path(folder.name, "history")), *limits]
        server = Server(self, *flags)
        sent: Counter[int] = Counter()
        connections: list[LossyConnection] = []
        opened: Counter[str] = Counter()

        async def connect(url: str, subprotocols: list[str]) -> Connection:
            connections.append(LossyConnection(await _connect(url, subprotocols), sent))
            return connections[-1]

        def options(name: str) -> dict[str, Any]:
            # Short pauses, since a server that is not back refuses connections.
            return {"random": lambda: 0.05, "on_state": lambda change: opened.update([name] if change.state == "open" else [])}

        publisher = Oyez(server.url, connect=connect, publishes_max=1_000_000, **options("publisher"))
        async with publisher, Oyez(server.url, **options("subscriber")) as subscriber:
            heard = Collected(subscriber, "a", since="earliest")
            await until("the connections", lambda: bool(heard.of(Live)) and publisher.state == "open")
            published: list[asyncio.Task[str]] = []

            async def publish() -> None:
                while True:
                    published.append(asyncio.create_task(publisher.publish("a", len(published))))
                    await asyncio.sleep(0.01)

            publishing = asyncio.create_task(publish())
            for at in range(1, restarts + 1):
                connections[-1].loses_acks = True
                count = len(published)
                await until("messages before the restart", lambda: len(heard.data) >= count + unacknowledged)
                if manner == "SIGUSR2":
                    server.process.send_signal(signal.SIGUSR2)
                else:
                    await server.end()
                    server = Server(self, *flags, port=server.port)
                await until("both clients", lambda: min(opened["publisher"], opened["subscriber"]) > at)
            publishing.cancel()
            outcomes = await asyncio.wait_for(asyncio.gather(*published, return_exceptions=True), WAIT_SECONDS)
            await until("the last message", lambda: len(published) - 1 in heard.data)
        again = sum(count > 1 for count in sent.values())
        print(f"{manner}: {len(published)} messages, {again} of them sent again", file=sys.stderr)
        self.assertGreaterEqual(again, restarts * unacknowledged)
        self.assertEqual([outcome for outcome in outcomes if not isinstance(outcome, str)], [])
        self.assertEqual(heard.data, list(range(len(published))))
        self.assertEqual([message.id for message in heard.of(Message)], outcomes)
        self.assertEqual(heard.of(Gap), [])

    async def test_publishes_in_flight_during_restarts_arrive_once(self) -> None:
        await asyncio.gather(self.restart("SIGUSR2"), self.restart("another process"))

    async def test_drain_sets_the_pause(self) -> None:
        server = Server(self, "--drain-seconds", "4")
        changes: list[StateChange] = []
        async with Oyez(server.url, on_state=changes.append) as hub:
            await until("the connection", lambda: hub.state == "open")
            server.process.terminate()
            await until("the drain", lambda: hub.state == "waiting")
            change = changes[2]
            assert change.retry_seconds is not None and change.reason is not None
            self.assertEqual((change.code, change.reason), (4200, f"drain retry_ms={round(change.retry_seconds * 1000)}"))

    async def test_slow_reader_holds_few_messages_and_gets_all(self) -> None:
        server = Server(self, "--history-messages-max", "10000")
        async with Oyez(server.url) as hub:
            room = hub.subscribe("a", messages_max=10)
            await until("the subscription", lambda: server.subscribers("a") == 1)
            # The acknowledgements arrive although the room's reader does not read.
            ids = await asyncio.wait_for(asyncio.gather(*(hub.publish("a", at) for at in range(500))), WAIT_SECONDS)
            await until("the pause", lambda: server.subscribers("a") == 0)
            held_max = len(room._inbox.items)
            received = []
            async for message in room:
                received.append(message)
                held_max = max(held_max, len(room._inbox.items))
                if len(received) == 500:
                    break
            self.assertEqual([message.data for message in received], list(range(500)))
            self.assertEqual([message.id for message in received], ids)
            self.assertLessEqual(held_max, 10 + 1, "the messages, and one event at most")

    async def test_slow_reader_that_leaves_holds_no_other_back(self) -> None:
        server = Server(self)
        async with Oyez(server.url) as hub:
            slow = hub.subscribe("a", messages_max=5)
            other = Collected(hub, "a")
            await until("the subscription", lambda: server.subscribers("a") == 1)
            await asyncio.wait_for(asyncio.gather(*(hub.publish("a", at) for at in range(40))), WAIT_SECONDS)
            await until("the pause", lambda: server.subscribers("a") == 0)
            slow.unsubscribe()
            await until("the rest", lambda: len(other.data) == 40)
            self.assertEqual(other.data, list(range(40)))

    async def test_values_that_python_cannot_parse_or_encode_end_no_connection(self) -> None:
        server = Server(self)
        changes: list[StateChange] = []
        async with Oyez(server.url, on_state=changes.append) as hub:
            heard = Collected(hub, "a")
            await until("the subscription", lambda: server.subscribers("a") == 1)
            # More digits than int() takes.
            publisher = await _connect(server.url.replace("http", "ws") + "/ws", ["oyez.v1"])
            await publisher.send('{"type":"publish","ch":"a","data":[' + "1" * 5000 + "]}")
            await until("the number", lambda: len(heard.data) == 1)
            await publisher.close()
            await hub.publish("a", {"\ud800": "\udfff \U0001f600"})
            await until("the text", lambda: len(heard.data) == 2)
            self.assertEqual(heard.data, [[float("inf")], {"\ud800": "\udfff \U0001f600"}])
        self.assertEqual([change.state for change in changes], ["connecting", "open", "closed"])

    async def test_reader_that_publishes_for_each_message_does_not_stop(self) -> None:
        server = Server(self)
        async with Oyez(server.url) as hub:
            answers = Collected(hub, "answers")
            room = hub.subscribe("a", since="earliest", messages_max=2)
            await until("both", lambda: server.subscribers("a") == server.subscribers("answers") == 1)
            for at in range(50):
                server.publish("a", str(at).encode())
            async for message in room:
                await asyncio.wait_for(hub.publish("answers", message.data), WAIT_SECONDS)
                if message.data == "49":
                    break
            await until("all answers", lambda: len(answers.data) == 50)
            self.assertEqual(answers.data, [str(at) for at in range(50)])

    async def test_leaving_the_loop_ends_the_subscription(self) -> None:
        server = Server(self)
        async with Oyez(server.url) as hub:
            await hub.publish("a", 1)
            async for message in hub.subscribe("a", since="earliest"):
                self.assertEqual((message.data, server.subscribers("a")), (1, 1))
                break
            gc.collect()
            await until("its end", lambda: server.subscribers("a") == 0)
            async with hub.subscribe("a", since="earliest") as room:
                self.assertEqual((await anext(room)).data, 1)
            await until("the end of the block", lambda: server.subscribers("a") == 0)
            with self.assertRaises(StopAsyncIteration):
                await anext(room)

    async def test_gap_of_the_history_comes_before_the_rest(self) -> None:
        server = Server(self, "--history-messages-max", "10")
        # Closed, it holds the next connection back, however long the publisher takes.
        gate = asyncio.Event()
        gate.set()

        async def connect(url: str, subprotocols: list[str]) -> Connection:
            await gate.wait()
            return await _connect(url, subprotocols)

        async with Oyez(server.url, connect=connect) as hub, Oyez(server.url) as publisher:
            heard = Collected(hub, "a")
            await until("the subscription", lambda: bool(heard.events))
            before = await publisher.publish("a", 0)
            await until("it", lambda: heard.data == [0])
            gate.clear()
            hub.cut()
            ids = [await publisher.publish("a", at) for at in range(1, 31)]
            gate.set()
            await until("the rest", lambda: heard.data[-1] == 30)
            self.assertEqual(heard.data, [0, *range(21, 31)])
            (gap,) = heard.of(Gap)
            self.assertEqual((gap.after, gap.resume, gap.why), (before, ids[19], "evicted"))
            self.assertEqual(len(heard.of(Live)), 1)

    async def test_rejections_have_a_code(self) -> None:
        server = Server(self, "--channels-per-client-max", "1", "--message-bytes-max", "300")
        async with Oyez(server.url) as hub:
            first = Collected(hub, "a")
            await until("the first", lambda: bool(first.events))
            with self.assertRaises(OyezError) as rejected:
                await anext(hub.subscribe("b"))
            self.assertEqual(rejected.exception.code, "too_many_channels")
            deep: Any = 1
            for _ in range(65):
                deep = [deep]
            for value, code in ((deep, "too_deep"), ("x" * 300, "too_big"), (None, "bad_data"), (float("nan"), "bad_data"), ({1j}, "bad_data")):
                with self.assertRaises(OyezError) as failed:
                    await hub.publish("a", value)
                self.assertEqual(failed.exception.code, code)
            self.assertEqual(hub.state, "open")

    async def test_token_function_provides_each_next_token(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            key = str(Path(folder, "secret.key"))
            subprocess.run([OYEZ, "token", "secret", key], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            server = Server(self, "--jwt-secret-file", key)
            calls = 0

            async def token() -> str:
                nonlocal calls
                calls += 1
                command = [OYEZ, "token", "new", "--jwt-secret-file", key, "--sub", "alice", "--subscribe", "a", "--publish", "a"]
                program = await asyncio.create_subprocess_exec(
                    *command, "--ttl", "5s", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
                return (await program.communicate())[0].decode().strip()

            changes: list[StateChange] = []
            async with Oyez(server.url, token=token, on_state=changes.append) as hub:
                heard = Collected(hub, "a")
                await until("the renewals", lambda: calls >= 3)
                await hub.publish("a", "with the third token")
                await until("the message", lambda: bool(heard.data))
                (message,) = heard.of(Message)
                self.assertEqual(message.user.id, "alice")
                with self.assertRaises(OyezError) as failed:
                    await hub.publish("b", 1)
                self.assertEqual(failed.exception.code, "forbidden")
            async with Oyez(server.url, token="not.a.token", on_state=changes.append) as rejected:
                self.assertEqual([message async for message in rejected.subscribe("a")], [], "the iteration ends")
            self.assertEqual((rejected.state, changes[-1].code), ("closed", 4001))

    async def test_close_leaves_no_task(self) -> None:
        server = Server(self)
        before = asyncio.all_tasks()
        hubs = [Oyez(server.url), Oyez("http://127.0.0.1:9"), Oyez(server.url)]
        for hub in hubs[:2]:
            hub.start()
        waiting = asyncio.create_task(hubs[1].publish("a", 1))
        await until("one open, one waiting", lambda: (hubs[0].state, hubs[1].state) == ("open", "waiting"))
        for hub in hubs:
            await hub.close()
            self.assertEqual(hub.state, "closed")
        with self.assertRaises(OyezError) as failed:
            await waiting
        self.assertEqual(failed.exception.code, "closed")
        self.assertEqual(asyncio.all_tasks(), before)

    async def first_line(self, page: str, language: str, wrap: Callable[[str], str]) -> str:
        """Runs the first example of a page, and returns the first line that it prints."""
        server = Server(self)
        text = (Path(__file__).parents[2] / "src" / page).read_text()
        example = re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)
        assert example
        code = wrap(example[1].replace("http://127.0.0.1:8080", server.url))
        program = await asyncio.create_subprocess_exec(sys.executable, "-u", "-c", code, stdout=subprocess.PIPE)
        assert program.stdout
        line = await asyncio.wait_for(program.stdout.readline(), WAIT_SECONDS)
        if program.returncode is None:
            program.terminate()
        await program.wait()
        return line.decode()

    async def test_first_example_of_the_readme_runs(self) -> None:
        line = await self.first_line("client-py/README.md", "python", lambda code: code)
        self.assertRegex(line, r"^\S+ hear ye\n$")

    async def test_example_of_the_manual_runs(self) -> None:
        def wrap(code: str) -> str:
            head = "import asyncio\nfrom oyez_client import Oyez\nasync def main():\n"
            return f"{head}{textwrap.indent(code, '    ')}\nasyncio.run(main())"

        line = await self.first_line("manual/client_library.md", "py", wrap)
        self.assertRegex(line, r"^\S+ \{'oyez': 1.5\}\n$")


if __name__ == "__main__":
    # Test cases run their loop in debug mode, which reports steps that take long on a busy machine.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    unittest.main()
