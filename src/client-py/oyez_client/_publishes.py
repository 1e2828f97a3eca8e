"""Unacknowledged publishes, and for how long each may be sent again."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from ._errors import OyezError

# A key is not used during the last tenth of the time for which the server remembers it, at most half a minute: the
# publish still has to arrive.
KEY_MARGIN_SECONDS_MAX = 30.0


@dataclass(slots=True)
class Instant:
    """A time by two clocks. The wall clock can be set back, and the monotonic one may stop while a machine sleeps: the
    larger of the two ages is never too small."""

    wall: float
    monotonic: float

    @classmethod
    def now(cls) -> "Instant":
        return cls(time.time(), asyncio.get_running_loop().time())

    def age_seconds(self) -> float:
        now = Instant.now()
        return max(now.wall - self.wall, now.monotonic - self.monotonic)


LONG_AGO = Instant(float("-inf"), float("-inf"))


@dataclass(slots=True)
class Publish:
    """A publish without an acknowledgement. `first_sent` is None before it was sent."""

    frame: str
    result: asyncio.Future[str]
    first_sent: Instant | None = None


class Publishes:
    """Every unacknowledged publish, sent or not, in the order of the calls."""

    def __init__(self, publishes_max: int) -> None:
        self._publishes_max = publishes_max
        self._publishes: dict[int, Publish] = {}

    def check_room(self) -> None:
        if len(self._publishes) >= self._publishes_max:
            raise OyezError("queue_full", f"{self._publishes_max} publishes wait for an acknowledgement")

    def add(self, ref: int, publish: Publish) -> None:
        self._publishes[ref] = publish

    def remove(self, ref: Any) -> Publish | None:
        return self._publishes.pop(ref, None)

    def acknowledge(self, ref: Any, message_id: str) -> None:
        publish = self.remove(ref)
        if publish and not publish.result.done():
            publish.result.set_result(message_id)

    def reject(self, ref: Any, error: OyezError) -> None:
        publish = self.remove(ref)
        if publish and not publish.result.done():
            publish.result.set_exception(error)

    def reject_all(self, error: OyezError) -> None:
        for ref in list(self._publishes):
            self.reject(ref, error)

    def not_published(self, ref: Any) -> None:
        """The server has not published it: it may be sent to any server, at any time."""
        if ref in self._publishes:
            self._publishes[ref].first_sent = None

    def keys_are_forgotten(self) -> None:
        """The server does not know the keys of the publishes that were sent."""
        for publish in self._publishes.values():
            if publish.first_sent is not None:
                publish.first_sent = LONG_AGO

    def to_send(self, ref: int, key_age_seconds: float, message_bytes_max: float) -> str | None:
        """Returns the frame to send now, or rejects the publish."""
        publish = self._publishes[ref]
        usable_seconds = key_age_seconds - min(KEY_MARGIN_SECONDS_MAX, key_age_seconds / 10)
        if publish.first_sent is not None and publish.first_sent.age_seconds() >= usable_seconds:
            why = "it was sent, its acknowledgement was lost, and the server no longer remembers its key"
            self.reject(ref, OyezError("unknown", why))
            return None
        if len(publish.frame.encode()) > message_bytes_max:
            # The server would close the connection, and again after each reconnect.
            why = f"with its envelope the message is over {message_bytes_max} bytes, the maximum of the server"
            self.reject(ref, OyezError("too_big", why))
            return None
        publish.first_sent = publish.first_sent or Instant.now()
        return publish.frame

    @property
    def refs(self) -> list[int]:
        return list(self._publishes)
