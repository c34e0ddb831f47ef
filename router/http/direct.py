"""The direct path: a small POST of readings is answered by the protocol itself, without a task or messages of ASGI.

Only a request that has arrived whole, with headers that change nothing, goes this way. Every other one falls through to
ASGI before anything of it was used, so that there is one meaning: both ways take the same steps (`Exchange`).
"""

from collections.abc import Coroutine
from typing import Any, ClassVar, Final

from router.http.heads import Head, RawHeader
from router.http.posts import Post, Way
from router.http.protocol import Connections, LimitedProtocol

BODY_MAX: Final = 16_384  # a larger body pays for its task
# With one of these a request is more than a body: ASGI knows what it means.
_UNSERVED: Final = frozenset(
    {b"expect", b"content-encoding", b"transfer-encoding", b"upgrade", b"origin", b"traceparent", b"trailer"}
)


class DirectProtocol(LimitedProtocol):
    """The protocol of a router with a direct path; `way` is set by `direct_protocol_for`."""

    way: ClassVar[Way]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._between = True  # the parser has seen whole requests: the next byte begins one
        self._plain: Head | None = None  # of a request that may go directly
        self._pieces: list[bytes] | None = None  # its body, until it is whole

    @property
    def default_headers(self) -> list[RawHeader]:
        """Headers that uvicorn adds to every answer."""
        return self.server_state.default_headers

    def connection_lost(self, exc: Exception | None) -> None:
        """An answered request and its connection know each other: no more work for the garbage collector."""
        super().connection_lost(exc)
        if self._is_free():
            self.cycle = None  # type: ignore[assignment]

    def _is_free(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """A request whose head is known needs no parser. A body that goes on in another piece is ASGI's to wait for."""
        begins = self._between and self._is_free()
        if begins and (known := self.way.heads.find(data)) is not None and self._post_known(*known):
            return
        plain = self._parse(data)
        if self._pieces is not None:
            pieces, self._pieces = self._pieces, None
            super().on_headers_complete()
            for piece in pieces:
                super().on_body(piece)
        elif begins and plain is not None and getattr(self.cycle, "admitted", False):
            self.way.heads.remember(data, plain)

    def _parse(self, data: bytes) -> Head | None:
        """Let the parser have it; returns the head of a request that it found, and that may go directly."""
        self._plain = None
        super().data_received(data)
        return self._plain

    def _post_known(self, head: Head, body: bytes) -> bool:
        """Take a request as if it were parsed; False when this is not its moment."""
        endpoint = self.way.paths.endpoints.get(head.path)
        if endpoint is None or self.flow.write_paused or self.transport.is_closing():
            return False
        self._unset_keepalive_if_required()
        self.note_headers()
        self._begin(Post(self.way, self, endpoint.exchange, head, body))
        return True

    def _begin(self, post: Post) -> None:
        self.cycle = post  # type: ignore[assignment]
        post.keep_alive = not self.watched.draining
        post.begin()

    def on_message_begin(self) -> None:
        """From here on the parser has to see every byte."""
        self._between = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Hold it back, or let it go through."""
        self._plain = self._as_plain()
        if self._plain is None:
            super().on_headers_complete()
        else:
            self.note_headers()
            self._pieces = []

    def _as_plain(self) -> Head | None:
        """The head of a request whose body is all there is to it."""
        path = str(self.url, "latin-1")
        if path not in self.way.paths.endpoints:
            return None
        named, parser = dict(self.headers), self.parser
        length = named.get(b"content-length", b"")
        is_plain = (
            len(named) == len(self.headers)
            and _UNSERVED.isdisjoint(named)
            and length.isdigit()
            and int(length) <= min(BODY_MAX, self.way.intake.body.bytes_max)
            and self._is_free()
            and not self.flow.write_paused
            and parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and bool(parser.should_keep_alive())
        )
        return Head(path, self.headers, named, int(length)) if is_plain else None

    def on_body(self, body: bytes) -> None:
        """A piece of it."""
        if self._pieces is None:
            super().on_body(body)
        else:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        """It is whole."""
        self._between = True
        if self._pieces is None or self._plain is None:
            super().on_message_complete()
            return
        body, self._pieces = b"".join(self._pieces), None
        exchange = self.way.paths.endpoints[self._plain.path].exchange
        self._begin(Post(self.way, self, exchange, self._plain, body))

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Let a task of this connection run; a router that stops waits for it."""
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def answer(self, data: bytes, *, closing: bool) -> None:
        """Write an answer, and go on with the connection."""
        if not self.transport.is_closing():
            self.transport.write(data)
            if closing:
                self.transport.close()
        if self.pipeline:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            self.note_idle()


def direct_protocol_for(connections: Connections, way: Way) -> type[DirectProtocol]:
    """The protocol class of one router, for uvicorn."""
    return type("RouterProtocol", (DirectProtocol,), {"watched": connections, "way": way})
