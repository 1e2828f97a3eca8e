"""Bytes that attackers and healthy clients send, and parsers for the answers.

Frames are masked with a key of zeros (RFC 6455 5.3 asks for an unpredictable one, which protects proxies and costs
the attacker time), so a payload is unchanged in its frame and can be repeated by the megabyte.
"""

import base64
import hashlib
import hmac
import json
import ssl
import time
import zlib

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
UPGRADE = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
V1 = "Sec-WebSocket-Protocol: oyez.v1\r\n"
DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate\r\n"


def request(method, path, body=None, lines=""):
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{lines}"
    if body is not None:
        head += f"Content-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + (body or b"")


def upgrade(path, lines=""):
    return request("GET", path, lines=UPGRADE + lines)


def header(opcode, length):
    first = bytes([0x80 | opcode])
    if length < 126:
        size = bytes([0x80 | length])
    elif length < 65536:
        size = bytes([0x80 | 126]) + length.to_bytes(2, "big")
    else:
        size = bytes([0x80 | 127]) + length.to_bytes(8, "big")
    return first + size + b"\0\0\0\0"


def frame(opcode, payload):
    return header(opcode, len(payload)) + payload


def compressed(text):
    """A text frame with RSV1 (RFC 7692 6), a thousandth of the text if that is a single character."""
    deflate = zlib.compressobj(9, wbits=-15)
    payload = (deflate.compress(text) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]
    bytes_ = frame(TEXT, payload)
    return bytes([bytes_[0] | 0x40]) + bytes_[1:]


def command(**fields):
    """A command of `oyez.v1` in its frame."""
    return frame(TEXT, json.dumps(fields).encode())


def take_frame(buffer):
    """The opcode and payload of the first whole frame, which is removed from the bytearray; None if it is incomplete."""
    if len(buffer) < 2:
        return None
    length, start = buffer[1] & 0x7F, 2
    if length == 126:
        length, start = int.from_bytes(buffer[2:4], "big"), 4
    elif length == 127:
        length, start = int.from_bytes(buffer[2:10], "big"), 10
    if len(buffer) < start + length or (start > 2 and len(buffer) < start):
        return None
    opcode, payload = buffer[0] & 0x0F, bytes(buffer[start:start + length])
    del buffer[:start + length]
    return opcode, payload


def ending(tail):
    """How a connection ended whose last bytes these are: its close code or its status, else None."""
    at = tail.rfind(b"\x88")
    while at >= 0:
        if at + 1 < len(tail) and 2 <= tail[at + 1] < 126 and at + 2 + tail[at + 1] == len(tail):
            code = int.from_bytes(tail[at + 2:at + 4], "big")
            if 1000 <= code < 5000:
                return f"close {code}"
        at = tail.rfind(b"\x88", 0, at)
    at = tail.rfind(b"HTTP/1.1 ")
    if at >= 0 and tail[at + 9:at + 12] not in (b"101", b"200", b""):
        return f"HTTP {tail[at + 9:at + 12].decode(errors='replace')}"
    return None


def token(secret, subject, **rights):
    """A token signed with HS256 (RFC 7515) that ends in an hour."""
    encode = lambda part: base64.urlsafe_b64encode(part).rstrip(b"=")
    now = int(time.time())
    claims = {"sub": subject, "iat": now, "exp": now + 3600, "oyez": rights}
    message = b".".join(encode(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims))
    return (message + b"." + encode(hmac.new(secret, message, hashlib.sha256).digest())).decode()


def trusting_all():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def half_client_hello():
    """The first 8,000 bytes of a ClientHello that fills a record of 16 KiB (RFC 8446 4.1.2, 5.1)."""
    record, message = b"\x16\x03\x01" + (1 << 14).to_bytes(2, "big"), b"\x01" + ((1 << 14) - 4).to_bytes(3, "big")
    return (record + message + b"\x03\x03" + bytes(8_000))[:8_000]
