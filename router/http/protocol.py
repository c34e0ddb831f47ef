"""HTTP/1.1 connections with a limit on everything: their number, header bytes and time, idle time, unread answers."""

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

SWEEP_S: Final = 1.0
AT_ONCE: Final = 20  # connections looked at between two turns of the loop
# One of these, so that those who are turned away together do not come back together.
_TOO_MANY: Final = tuple(
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: %d\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % seconds
    for seconds in (1, 2, 3)
)
_HEADERS_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)
_TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True)
class ConnectionLimits:
    """Connections; bytes of a request's line and headers; seconds for these, to read an answer, and to the next one."""

    connections_max: int
    header_bytes_max: int
    header_timeout_s: float
    write_timeout_s: float
    idle_timeout_s: float


@dataclass
class Connections:
    """All connections of a router, looked through once a second: one timer for all, none for each request."""

    limits: ConnectionLimits
    draining: bool = False  # each ends with its next answer, which says so
    open: set["LimitedProtocol"] = field(default_factory=set)

    async def sweep(self) -> None:
        """Until cancelled: end what is over its time."""
        while True:
            await asyncio.sleep(SWEEP_S)
            for number, connection in enumerate(list(self.open)):
                if number % AT_ONCE == 0:
                    await asyncio.sleep(0)  # thousands that are over their time do not hold up the others
                connection.check_time(time.monotonic())


class LimitedProtocol(HttpToolsProtocol):
    """Uvicorn's protocol; `watched` is set by `protocol_for`."""

    watched: ClassVar[Connections]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._headers_since: float | None = None  # None: no request's headers are being waited for
        self._header_bytes = 0
        self._unread_since: float | None = None
        self._idle_since: float | None = None  # None: a request is under way
        self._closing_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it in, or send it away."""
        super().connection_made(transport)
        if len(self.watched.open) >= self.watched.limits.connections_max:
            transport.write(random.choice(_TOO_MANY))
            transport.close()
            return
        self._headers_since = time.monotonic()
        self.watched.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it out."""
        self.watched.open.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Headers are counted before they are parsed: a piece is at most what the transport reads at once."""
        if self._headers_since is not None:
            self._header_bytes += len(data)
            if self._header_bytes > self.watched.limits.header_bytes_max and not self._has_headers(data):
                self._end(_HEADERS_TOO_LARGE)
                return
        super().data_received(data)

    def _has_headers(self, data: bytes) -> bool:
        """Whether the headers ended within this piece, inside their limit: then the rest of it is body."""
        before = self._header_bytes - len(data)
        end = data.find(b"\r\n\r\n")
        return end >= 0 and before + end <= self.watched.limits.header_bytes_max

    def on_message_begin(self) -> None:
        """A request's first byte is here."""
        if self._headers_since is None:  # a later one of a connection that stayed open
            self._headers_since = time.monotonic()
            self._header_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """From here on the body has limits of its own."""
        self.note_headers()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """It is whole: only now may its answer end the connection, else what is still coming would reset it."""
        if self.watched.draining and self.cycle is not None:
            self.cycle.keep_alive = False
        super().on_message_complete()

    def note_headers(self) -> None:
        """A request's headers are whole."""
        self._headers_since = self._idle_since = None

    def on_response_complete(self) -> None:
        """Idle until the next request's headers are whole. Other bytes, of which uvicorn takes any, do not count."""
        super().on_response_complete()
        if self.cycle is None or self.cycle.response_complete:
            self.note_idle()

    def note_idle(self) -> None:
        """The last request was answered."""
        self._idle_since = time.monotonic()

    def pause_writing(self) -> None:
        """The client does not read as fast as it is answered."""
        self._unread_since = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        """It has read on."""
        self._unread_since = None
        super().resume_writing()

    def check_time(self, now: float) -> None:
        """End the connection if it is over one of its times."""
        limits = self.watched.limits
        if self.transport.is_closing():  # waits for the client to read the rest
            self._closing_since = self._closing_since or now
            if now - self._closing_since > limits.write_timeout_s:
                self.transport.abort()
        elif self._headers_since is not None and now - self._headers_since > limits.header_timeout_s:
            self._end(_TOO_SLOW)
        elif self._idle_since is not None and now - self._idle_since > limits.idle_timeout_s:
            self.transport.close()
        elif self._unread_since is not None and now - self._unread_since > limits.write_timeout_s:
            self.transport.abort()

    def _end(self, answer: bytes) -> None:
        self._headers_since = None
        if not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()


def protocol_for(connections: Connections) -> type[LimitedProtocol]:
    """The protocol class of one router, for uvicorn."""
    return type("RouterProtocol", (LimitedProtocol,), {"watched": connections})
