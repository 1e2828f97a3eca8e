"""The checkers against planted violations: each finds those of its kind, and a clean record has none."""

from checks import CaughtUp, Close, Gap, Message, Publish, Receiver, violations


def record():
    """Two publishers and three subscribers over two epochs, without a violation."""
    publishes = [Publish("a" if n % 2 else "b", f"m{n}", "acked", (1, n)) for n in range(1, 9)]
    publishes += [Publish("a", "no", "rejected", code="backplane_down"), Publish("a", "perhaps", "unknown")]
    receivers = [Receiver(name, frozenset("ab"), [CaughtUp(), *(Message(one.channel, one.id, one.text) for one in publishes[:8])])
                 for name in ("one", "two", "raw")]
    receivers[2].is_raw = True
    receivers[2].events[1:] = [Message(event.channel, None, event.text) for event in receivers[2].events[1:]]
    return publishes, receivers


def found(change):
    publishes, receivers = record()
    change(publishes, receivers)
    return {text.split(":")[0] for text in violations(publishes, receivers)}


def missing(publishes, receivers):
    del receivers[1].events[4]


def missing_after_a_gap_before_it(publishes, receivers):
    receivers[1].events[4] = Gap("b", (1, 1), (1, 3), "lost")


def covered(publishes, receivers):
    receivers[1].events[4] = Gap("b", (1, 3), (2, 0), "lost", 1)


def covered_on_another_channel(publishes, receivers):
    receivers[1].events[4] = Gap("a", (1, 3), (2, 0), "lost", 1)


def missing_on_a_raw_connection(publishes, receivers):
    del receivers[2].events[4]


def closed_raw_connection(publishes, receivers):
    receivers[2].events[4] = Close(4104, "lost")


def another_id_than_acknowledged(publishes, receivers):
    publishes[0].id = (1, 99)


def one_id_for_two(publishes, receivers):
    receivers[1].events.append(Message("a", (1, 8), "perhaps"))


def acknowledged_id_of_another(publishes, receivers):
    publishes.append(Publish("c", "x", "acked", (1, 3)))


def swapped(publishes, receivers):
    events = receivers[1].events
    events[2], events[3] = events[3], events[2]


def swapped_in_one_channel(publishes, receivers):
    events = receivers[1].events
    events[2], events[4] = events[4], events[2]


def swapped_on_a_raw_connection(publishes, receivers):
    events = receivers[2].events
    events[2], events[3] = events[3], events[2]


def other_order_around_a_gap(publishes, receivers):
    # The node of the first had read m4 before the log lost it; it was sent again in the new epoch.
    publishes[3].id = (2, 9)
    receivers[0].events[5:5] = [Gap("a", (1, 3), (2, 0), "lost", 0), Gap("b", (1, 4), (2, 0), "lost", 0)]
    for receiver, id in (receivers[1], (2, 9)), (receivers[2], None):
        del receiver.events[4]
        receiver.events.append(Message("b", id, "m4"))


def other_order_of_two_lost_messages(publishes, receivers):
    # The node of the first had read both.
    publishes[6].id, publishes[7].id = (2, 9), (2, 8)
    receivers[0].events += [Gap("a", (1, 7), (2, 0), "lost", 0), Gap("b", (1, 8), (2, 0), "lost", 0)]
    for receiver, ids in (receivers[1], ((2, 8), (2, 9))), (receivers[2], (None, None)):
        receiver.events[-2:] = [Message("b", ids[0], "m8"), Message("a", ids[1], "m7")]


def rejected_and_delivered(publishes, receivers):
    receivers[0].events.append(Message("a", (1, 9), "no"))


def twice(publishes, receivers):
    receivers[0].events.append(Message("a", (1, 9), "m1"))


def twice_over_a_resumption(publishes, receivers):
    receivers[0].events += [Close(None), Message("b", (1, 8), "m8"), CaughtUp()]


def twice_on_a_raw_connection(publishes, receivers):
    receivers[2].events.append(Message("b", None, "m8"))


def twice_on_two_raw_connections(publishes, receivers):
    receivers[2].events += [Close(None), Message("b", None, "m8")]


def twice_after_a_loss(publishes, receivers):
    receivers[0].events += [Gap("a", (1, 8), (2, 0), "lost"), Message("a", (2, 1), "m7")]


def twice_after_another_gap(publishes, receivers):
    receivers[0].events += [Gap("a", (1, 8), (2, 0), "evicted"), Message("a", (2, 1), "m7")]


EXPECTED = [
    (lambda *_: None, set()), (missing, {"W1"}), (missing_after_a_gap_before_it, {"W1"}), (covered, set()),
    (covered_on_another_channel, {"W1"}), (missing_on_a_raw_connection, {"W1"}), (closed_raw_connection, set()),
    (another_id_than_acknowledged, {"W1"}), (one_id_for_two, {"W2"}), (acknowledged_id_of_another, {"W2"}),
    (swapped, {"W3"}), (swapped_in_one_channel, {"W3"}), (swapped_on_a_raw_connection, {"W3"}),
    (other_order_around_a_gap, set()), (other_order_of_two_lost_messages, set()), (rejected_and_delivered, {"W4"}), (twice, {"W5"}), (twice_over_a_resumption, {"W3", "W5"}),
    (twice_on_a_raw_connection, {"W3", "W5"}),
    (twice_on_two_raw_connections, set()), (twice_after_a_loss, set()), (twice_after_another_gap, {"W5"}),
]


def planted():
    """Names of planted violations with what was expected and found, where these differ."""
    results = [(change.__name__, expected, found(change)) for change, expected in EXPECTED]
    return [f"{name}: expected {sorted(expected)}, found {sorted(result)}" for name, expected, result in results if result != expected]


if __name__ == "__main__":
    print("\n".join(planted()) or f"{len(EXPECTED)} records have the expected results")
