"""Errors, each with a code of the server or of the client."""

from typing import Literal

ErrorCode = Literal[
    # Codes of the server.
    "bad_json",
    "too_deep",
    "unknown_type",
    "bad_ref",
    "bad_channel",
    "bad_cursor",
    "bad_payload",
    "bad_base64",
    "bad_key",
    "key_reused",
    "forbidden",
    "no_auth",
    "bad_token",
    "already_subscribed",
    "not_subscribed",
    "too_many_channels",
    "over_capacity",
    "rate_limited",
    "drain",
    "backplane_down",
    "backplane_full",
    "unconfirmed",
    # Codes of the client.
    "queue_full",
    "too_big",
    "bad_data",
    "closed",
    "unknown",
]


class OyezError(Exception):
    """A rejected subscription or a failed publish.

    `code` is an `ErrorCode`; it is a `str` here, since a newer server can send others.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
