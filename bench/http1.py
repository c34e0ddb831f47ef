"""A small HTTP/1.1 client for load: keep-alive, one request at a time on a connection, little parsing."""

import asyncio
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import urlsplit

_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length:"


class ConnectionLost(Exception):
    """The server closed the connection before the end of the answer."""


@dataclass(frozen=True)
class Answer:
    """Status code and body."""

    status: int
    body: bytes


class Connection(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._waiter: asyncio.Future[Answer] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's callback."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio's callback."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ConnectionLost(str(exc or "closed by the server")))

    def data_received(self, data: bytes) -> None:
        """Asyncio's callback: complete the request that waits, if its answer is whole."""
        self._buffer += data
        end = self._buffer.find(_HEAD_END)
        if end < 0 or self._waiter is None or self._waiter.done():
            return
        head = bytes(self._buffer[:end]).lower()
        at = head.find(_LENGTH)
        length = int(head[at + len(_LENGTH) :].partition(b"\r")[0]) if at >= 0 else 0
        total = end + len(_HEAD_END) + length
        if len(self._buffer) < total:
            return
        answer = Answer(int(head[9:12]), bytes(self._buffer[end + len(_HEAD_END) : total]))
        del self._buffer[:total]
        self._waiter.set_result(answer)

    async def request(self, payload: bytes) -> Answer:
        """Send a whole request, as bytes, and wait for the answer. ConnectionLost when none comes."""
        if self._transport is None or self._transport.is_closing():
            message = "not connected"
            raise ConnectionLost(message)
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(payload)
        return await self._waiter

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()


async def connect(url: str) -> Connection:
    """A connection to the host and port of `url`."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, parts.hostname or "127.0.0.1", parts.port or 80)
    return connection


def post(url: str, path: str, body: bytes, content_type: bytes = b"application/json", key: str | None = None) -> bytes:
    """A whole POST request as bytes; with a key where one is asked for."""
    sender = "" if key is None else f"Authorization: Bearer {key}\r\n"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n{sender}Content-Length: {len(body)}\r\nContent-Type: "
    ).encode()
    return head + content_type + _HEAD_END + body


def put(url: str, path: str, body: bytes) -> bytes:
    """A whole PUT request with JSON as bytes."""
    head = f"PUT {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Length: {len(body)}\r\nContent-Type: "
    return head.encode() + b"application/json" + _HEAD_END + body


def get(url: str, path: str) -> bytes:
    """A whole GET request as bytes."""
    return f"GET {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n\r\n".encode()
