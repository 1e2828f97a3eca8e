"""The state of a channel: its subscription on the current connection, its cursor and its readers."""

from collections import OrderedDict
from enum import Enum, auto

from ._errors import OyezError
from ._events import Event, Gap, Message
from ._subscription import Inbox

# Number of messages that a resumed channel could send twice: a little more than a server keeps by default.
RECENT_IDS_MAX = 128


class Stage(Enum):
    """Whether the server sends the channel on the current connection."""

    UNSUBSCRIBED = auto()
    SUBSCRIBING = auto()
    SUBSCRIBED = auto()
    UNSUBSCRIBING = auto()


class NewestSet:
    """The newest values, up to a number."""

    def __init__(self, values_max: int) -> None:
        self._values: OrderedDict[str, None] = OrderedDict()
        self._values_max = values_max

    def __contains__(self, value: object) -> bool:
        return value in self._values

    def add(self, value: str) -> None:
        self._values.pop(value, None)
        self._values[value] = None
        if len(self._values) > self._values_max:
            self._values.popitem(last=False)


class Channel:
    """A channel with at least one reader, or whose unsubscribe waits for its response."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stage = Stage.UNSUBSCRIBED
        self.inboxes: list[Inbox] = []
        # A reader is slow: the channel is unsubscribed until the reader has room, and then resumes at its cursor.
        self.is_paused = False
        self.start(None)

    def start(self, since: str | None) -> None:
        """Forgets everything about earlier subscriptions."""
        self.since = since
        self.cursor: str | None = None
        # The channel's count at the last message; None if the next one may be any.
        self.n: int | None = None
        self.resumed = False
        self.is_paused = False
        self.recent = NewestSet(RECENT_IDS_MAX)

    @property
    def is_wanted(self) -> bool:
        return bool(self.inboxes) and not self.is_paused

    def put(self, item: Event | OyezError) -> None:
        for inbox in self.inboxes:
            inbox.put(item)

    def on_message(self, message: Message) -> None:
        """Delivers a message unless it has been delivered, preceded by a gap if the count has a hole."""
        if message.id in self.recent:
            return
        # The server removes an unused channel after a while, and its count starts again.
        continues = self.n is None or message.n == self.n + 1 or (self.resumed and message.n == 1)
        if not continues:
            missed = message.n - self.n - 1 if self.n is not None and message.n > self.n else None
            self.put(Gap(self.name, self.cursor, message.id, missed, "hole"))
        self.cursor, self.n, self.resumed = message.id, message.n, False
        self.recent.add(message.id)
        for inbox in self.inboxes:
            if inbox.echo or not message.own:
                inbox.put(message)
