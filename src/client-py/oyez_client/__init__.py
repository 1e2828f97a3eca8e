"""Asyncio client for Oyez: subscriptions that resume without unannounced loss, and publishes that count once."""

from ._client import Oyez, StateChange
from ._errors import ErrorCode, OyezError
from ._events import Gap, Live, Message, Subscribed, User
from ._subscription import Subscription

__all__ = [
    "ErrorCode",
    "Gap",
    "Live",
    "Message",
    "Oyez",
    "OyezError",
    "StateChange",
    "Subscribed",
    "Subscription",
    "User",
]
