"""The events that a subscription receives."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class User:
    """The sender of a message, as the server knows it from the sender's token."""

    id: str
    info: Any = None


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a channel. `data` is a `str` (`text`), `bytes` (`binary`) or a JSON value (`data`)."""

    channel: str
    id: str
    n: int
    sender: str | None
    user: User | None
    own: bool
    kind: Literal["text", "binary", "data"]
    data: Any


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages of the channel between the ids `after` and `resume` are missing; `missed` is their number, if known.

    `why` is `evicted`, `epoch`, `slow`, `future`, `lost`, or `hole`: the channel's count jumped without a notice.
    """

    channel: str
    after: str | None
    resume: str
    missed: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The server has accepted the subscription. Sent again after each reconnect."""

    channel: str
    id: str
    subscribers: int


@dataclass(frozen=True, slots=True)
class Live:
    """The replay is complete: the following messages are new."""

    channel: str
    id: str


Event = Message | Gap | Subscribed | Live
