"""Checked by `mypy --strict`, which also rejects an ignored error that is none."""

from typing import assert_type

from oyez_client import ErrorCode, Gap, Message, Oyez, OyezError, StateChange, Subscription


async def uses() -> None:
    def on_state(change: StateChange) -> None:
        if change.state == "waiting":
            print(change.retry_seconds, change.code, change.reason)
        if change.state == "offline":  # type: ignore[comparison-overlap]
            print("never")

    async with Oyez("http://127.0.0.1:8080", token=lambda: "a.b.c", on_state=on_state) as hub:
        assert_type(hub.client, str | None)
        subscription = hub.subscribe("a", since="earliest", on_gap=lambda gap: print(gap.missed))
        assert_type(subscription, Subscription)
        async for message in subscription:
            assert_type(message, Message)
            assert_type(message.sender, str | None)
            message.data = 1  # type: ignore[misc]
        async for event in subscription.events():
            if isinstance(event, Gap):
                assert_type(event.missed, int | None)
            event.data  # type: ignore[union-attr]
        assert_type(await hub.publish("a", {"x": 1}), str)
        hub.subscribe("a", since=7)  # type: ignore[arg-type]
        hub.subscribe(7)  # type: ignore[arg-type]
        hub.state = "open"  # type: ignore[misc]
    Oyez("http://127.0.0.1:8080", retries=3)  # type: ignore[call-arg]
    Oyez("http://127.0.0.1:8080", token=7)  # type: ignore[arg-type]
    known: ErrorCode = "unconfirmed"
    unknown: ErrorCode = "no_such_code"  # type: ignore[assignment]
    print(OyezError(known, "why").code, unknown)
