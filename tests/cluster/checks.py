"""Checkers for the guarantees of several nodes that share one log.

W1  Every subscriber of a channel receives each acknowledged message once, or a gap notice that covers it, or a close whose
    code names the reason.
W2  No id identifies two messages.
W3  Two subscribers of the same channels receive the same order between gaps.
W4  A message whose publish was rejected is delivered to no subscriber.
W5  A client, with its resumptions, receives a message at most once, unless a gap `lost` came between.

They work on records of what clients sent and received, and return descriptions of violations. A message is identified by
its text, which no two publishes share. `test_checks.py` shows that each checker finds planted violations.
"""

from dataclasses import dataclass, field


# Gaps after which a message may arrive again, or under another id.
LOSSES = {"lost"}
# The order of random epochs, once they are.
_epochs = None


def expect_random_epochs():
    """For one server with a history file: its epochs are random, so they are numbered in the order in which they are seen,
    and a gap `epoch` follows an unclean shutdown, which loses messages."""
    global _epochs
    _epochs = {}
    LOSSES.add("epoch")


def parse_id(text):
    """An id as a pair that can be compared: epoch, seq."""
    epoch, seq = (int(number) for number in text.split("-"))
    return epoch if _epochs is None else _epochs.setdefault(epoch, len(_epochs)), seq


@dataclass
class Publish:
    """A publish and its outcome: `acked` with an id, `rejected` (surely not published), or `unknown`."""

    channel: str
    text: str
    outcome: str = "unknown"
    id: tuple = None
    code: str = None


@dataclass(frozen=True)
class Message:
    channel: str
    id: tuple
    text: str


@dataclass(frozen=True)
class Gap:
    channel: str
    after: tuple
    resume: tuple
    why: str
    missed: int = None

    def covers(self, channel, id):
        return channel == self.channel and self.after < id <= self.resume


@dataclass(frozen=True)
class Close:
    """The end of a connection; the code is None if there was no close frame."""

    code: int
    reason: str = ""


@dataclass(frozen=True)
class CaughtUp:
    """All channels of the connection are live. Before, the replays of several channels have no order among each other."""


@dataclass
class Receiver:
    """A subscriber from before the first publish until after the last one, with everything that it received, in order.

    A raw WebSocket has neither ids nor cursors: `id` of its messages is None, W1 holds for it only if it was never
    disconnected, since a close with a code takes the place of a gap, and W5 within one connection."""

    name: str
    channels: frozenset
    events: list = field(default_factory=list)
    is_raw: bool = False

    def messages(self):
        return [event for event in self.events if isinstance(event, Message)]

    def gaps(self):
        return [event for event in self.events if isinstance(event, Gap)]


def is_lost(event):
    return isinstance(event, Gap) and event.why in LOSSES or isinstance(event, Close) and event.reason.startswith("lost")


def w1(publishes, receivers):
    found = []
    for receiver in receivers:
        ids, gaps = {}, receiver.gaps()
        for message in receiver.messages():
            ids.setdefault((message.channel, message.text), []).append(message.id)
        if receiver.is_raw and any(isinstance(event, Close) for event in receiver.events):
            continue
        for one in publishes:
            if one.outcome != "acked" or one.channel not in receiver.channels:
                continue
            received = ids.get((one.channel, one.text))
            if received is None and not any(gap.covers(one.channel, one.id) for gap in gaps):
                found.append(f"W1: {receiver.name} did not receive {one.text} {one.id} of {one.channel}, and no gap covers it")
            # A node that had read the first copy of an entry delivers it under that id, and announces a loss.
            elif received and not receiver.is_raw and one.id not in received and not any(map(is_lost, receiver.events)):
                found.append(f"W1: {receiver.name} received {one.text} as {received}, acknowledged as {one.id}")
    return found


def w2(publishes, receivers):
    found, texts = [], {}
    named = [(one.id, one.channel, one.text, "its publisher") for one in publishes if one.id]
    named += [(message.id, message.channel, message.text, receiver.name)
              for receiver in receivers for message in receiver.messages() if message.id]
    for id, channel, text, name in named:
        known = texts.setdefault(id, (channel, text, name))
        if known[:2] != (channel, text):
            found.append(f"W2: {id} is {text} of {channel} for {name}, and {known[1]} of {known[0]} for {known[2]}")
    return found


def segments(receiver):
    """Lists of messages whose order is that of the log: of live messages, between two gaps or closes."""
    lists, is_live = [[]], len(receiver.channels) == 1
    for event in receiver.events:
        if isinstance(event, Message):
            if is_live:
                lists[-1].append(event)
        else:
            lists.append([])
            is_live = isinstance(event, CaughtUp) or len(receiver.channels) == 1 or is_live and isinstance(event, Gap)
    return lists


def w3(receivers):
    found = []
    # Within a channel every receiver has the order of the ids, also over resumptions, except after a gap.
    for receiver in receivers:
        last = {}
        for event in receiver.events:
            if isinstance(event, Gap):
                last.pop(event.channel, None)
            elif isinstance(event, Message) and event.id:
                if event.channel in last and event.id <= last[event.channel]:
                    found.append(f"W3: {receiver.name} received {event.id} after {last[event.channel]} in {event.channel}")
                last[event.channel] = event.id
    # What the log lost with its newest data is appended again, in whichever order: a message with two ids.
    ids = {}
    for receiver in receivers:
        for message in receiver.messages():
            if message.id:
                ids.setdefault(message.text, set()).add(message.id)
    again = {text for text, known in ids.items() if len(known) > 1}
    # Over several channels, and for raw subscribers: pairwise against one receiver of each set of channels.
    for channels in {receiver.channels for receiver in receivers}:
        group = [receiver for receiver in receivers if receiver.channels == channels]
        places = {}
        for number, segment in enumerate(segments(group[0])):
            for place, message in enumerate(segment):
                places.setdefault(message.text, (number, place))
        for receiver in group[1:]:
            for segment in segments(receiver):
                last = {}
                for message in segment:
                    if message.text in places and message.text not in again:
                        number, place = places[message.text]
                        if place <= last.get(number, (-1, None))[0]:
                            found.append(f"W3: {receiver.name} received {message.text} after {last[number][1]}, "
                                         f"{group[0].name} before")
                        last[number] = place, message.text
    return found


def w4(publishes, receivers):
    rejected = {one.text: one.code for one in publishes if one.outcome == "rejected"}
    return [f"W4: {receiver.name} received {message.text}, rejected with {rejected[message.text]}"
            for receiver in receivers for message in receiver.messages() if message.text in rejected]


def w5(receivers):
    found = []
    for receiver in receivers:
        losses, seen = 0, {}
        for event in receiver.events:
            if is_lost(event) or receiver.is_raw and isinstance(event, Close):
                # Without a cursor a client begins with the live messages of a node, which may be later than another one.
                losses += 1
            elif isinstance(event, Message):
                if seen.get(event.text) == losses:
                    found.append(f"W5: {receiver.name} received {event.text} again as {event.id}")
                seen[event.text] = losses
    return found


def violations(publishes, receivers):
    publishes = list(publishes)
    return [*w1(publishes, receivers), *w2(publishes, receivers), *w3(receivers), *w4(publishes, receivers), *w5(receivers)]
