"""Addresses, names and payloads."""

import base64
import json
import re
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ._errors import OyezError
from ._events import Message, User

_CHANNEL = re.compile(r"[A-Za-z0-9_.:-]{1,255}", re.ASCII)
_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


def endpoint(url: str) -> str:
    """The address of the WebSocket. The path in front of `/ws` is the prefix under which a proxy serves Oyez."""
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not parts.netloc:
        raise ValueError(f"not an address of a server: {url!r}")
    prefix = parts.path.rstrip("/").removesuffix("/ws")
    # A WebSocket's address has no fragment (RFC 6455 3).
    return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, f"{prefix}/ws", parts.query, ""))


def check_name(name: str) -> None:
    if not isinstance(name, str) or not _CHANNEL.fullmatch(name):
        raise OyezError("bad_channel", "a channel has a name of 1 to 255 characters of A-Z a-z 0-9 _ . : -")


def payload(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        # An unpaired surrogate has no encoding in UTF-8.
        return {"text": value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")}
    if isinstance(value, bytes | bytearray | memoryview):
        return {"base64": base64.b64encode(value).decode()}
    # In `oyez.v1` null is an absent field.
    if value is None:
        raise OyezError("bad_data", "None cannot be published: put it in a dict or a list")
    return {"data": value}


def to_json(message: dict[str, Any]) -> str:
    try:
        text = json.dumps(message, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        # An unpaired surrogate can be sent as an escape sequence only.
        return text if _is_utf8(text) else json.dumps(message, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise OyezError("bad_data", f"the value has no JSON: {error}") from error


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _to_integer(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:
        # Python limits the digits of an int that it parses. JavaScript reads such a number as infinity, too.
        return float(digits)


def from_json(frame: str | bytes) -> Any:
    """Any JSON that the server sends. A message that cannot be read would be sent again after each reconnect."""
    return json.loads(frame, parse_int=_to_integer)


def to_message(fields: dict[str, Any], own: bool) -> Message:
    user = fields.get("user")
    kind: Any = next((kind for kind in ("text", "base64") if fields.get(kind) is not None), "data")
    data = fields.get(kind)
    if kind == "base64":
        kind, data = "binary", base64.b64decode(fields["base64"])
    return Message(
        channel=fields["ch"],
        id=fields["id"],
        n=fields["n"],
        sender=fields.get("from"),
        user=User(user["id"], user.get("info")) if user else None,
        own=own,
        kind=kind,
        data=data,
    )
