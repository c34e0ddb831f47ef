"""The direct path: a small POST of readings is answered by the protocol itself, without a task or messages of ASGI.

Only a request that has arrived whole, with headers that change nothing, goes this way. Every other one falls through to
ASGI before anything of it was used, so that there is one meaning: both ways take the same steps (`Exchange`).
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from router.http.deadlines import Deadlines
from router.http.middleware import Gate, IngestPaths
from router.http.observed import RequestIds, observe
from router.http.protocol import Connections, LimitedProtocol
from router.ingest.batcher import Committed
from router.ingest.body import check_budget
from router.ingest.dispatch import Outcome, Sent
from router.ingest.endpoint import JSON_HEADERS
from router.ingest.exchange import Exchange, Sender, Taken
from router.ingest.intake import Intake
from router.log import REQUEST_ID, TRACE_ID
from router.wire import problems
from router.wire.problems import ProblemError

BODY_MAX: Final = 16_384  # a larger body pays for its task
# With one of these a request is more than a body: ASGI knows what it means.
_UNSERVED: Final = frozenset(
    {b"expect", b"content-encoding", b"transfer-encoding", b"upgrade", b"origin", b"traceparent", b"trailer"}
)
_log: Final = structlog.stdlib.get_logger(__name__)
RawHeader = tuple[bytes, bytes]


@dataclass
class Way:
    """What direct requests of one router share."""

    paths: IngestPaths
    gate: Gate
    request_ids: RequestIds
    intake: Intake = field(init=False)  # when the application has started: before that nothing is listened to
    deadlines: Deadlines = field(default_factory=Deadlines)
    _given: list[RawHeader] | None = None
    _head: bytes = b""

    def head(self, given: list[RawHeader]) -> bytes:
        """The headers that uvicorn adds to every answer (it makes a new list when the date changes)."""
        if given is not self._given:
            self._given, self._head = given, _lines(given)
        return self._head


def _lines(headers: Sequence[RawHeader]) -> bytes:
    return b"".join(b"%b: %b\r\n" % header for header in headers)


_JSON: Final = _lines(JSON_HEADERS)


class _Nobody:
    """Stands where uvicorn's cycle has an event for its task."""

    def set(self) -> None:
        """Nobody waits."""


_NOBODY: Final = _Nobody()


class _Part:
    """What becomes of a chunk: a future without tasks that wait. Its request hears of it at once."""

    __slots__ = ("_cancelled", "_error", "_request", "_result")

    def __init__(self, request: "DirectRequest") -> None:
        self._request = request
        self._result: Committed | None = None
        self._error: BaseException | None = None
        self._cancelled = False

    def done(self) -> bool:
        return self._result is not None or self._error is not None or self._cancelled

    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> bool:
        if self.done():
            return False
        self._cancelled = True
        self._request.ended()
        return True

    def result(self) -> Committed:
        if self._result is None:
            raise self._error or asyncio.InvalidStateError
        return self._result

    def exception(self) -> BaseException | None:
        return self._error

    def set_result(self, result: Committed, /) -> None:
        self._result = result
        self._request.ended()

    def set_exception(self, exception: BaseException, /) -> None:
        self._error = exception
        self._request.ended()


class DirectRequest:
    """One request, to its answer. It stands where uvicorn has its own cycle: what follows on the connection waits."""

    message_event: Final = _NOBODY

    def __init__(self, protocol: "DirectProtocol", exchange: Exchange, headers: dict[bytes, bytes]) -> None:
        self.response_complete = False
        self.disconnected = False
        self.keep_alive = True
        self.deadline = 0.0
        self._protocol = protocol
        self._exchange = exchange
        self._headers = headers
        self._path = str(protocol.url, "ascii")
        self._started = time.monotonic()
        self._id = protocol.way.request_ids.of(headers.get(b"x-request-id"))
        self._length = 0
        self._sender: Sender
        self._taken: Taken
        self._outcome = Outcome()
        self._sent: list[Sent] | None = None
        self._ended = 0

    def begin(self, body: bytes) -> None:
        """Take a whole body as far as its lanes, or refuse it: a turn of the loop later, as a task would."""
        token = REQUEST_ID.set(self._id)
        try:
            self._begin(body)
        except ProblemError as error:
            self._protocol.loop.call_soon(self._refuse, error)
        except Exception:  # noqa: BLE001 - a bug; its trace goes to the log, not to the client
            self._fail()
        finally:
            REQUEST_ID.reset(token)

    def _begin(self, body: bytes) -> None:
        way, exchange = self._protocol.way, self._exchange
        way.gate.check(self._headers.get(b"host"))
        intake = way.intake
        self._sender = exchange.admit(intake, self._protocol.headers, self._headers, b"")
        self._length = len(body)
        intake.budget.held += self._length
        check_budget(intake.budget)
        self._taken = exchange.take(intake, self._sender, self._headers, body, self._started)
        self.deadline = self._started + intake.timeout_s
        self._sent = intake.dispatcher.send(self._taken.chunks, self._outcome, self._promise)
        if self._ended == len(self._sent):  # refused at once
            self._protocol.loop.call_soon(self._finish)
        else:
            way.deadlines.add(self)

    def _promise(self) -> _Part:
        return _Part(self)

    def ended(self) -> None:
        """Something is known of a chunk; with the last one the answer is."""
        self._ended += 1
        if self._sent is not None and self._ended == len(self._sent):
            self._finish()

    def expire(self) -> None:
        """Time is over: what has not begun is withdrawn, of what has the end is not known."""
        for each in self._sent or ():
            each.future.cancel()

    def _finish(self) -> None:
        # In the context of a lane's worker, which some other request started.
        token, trace = REQUEST_ID.set(self._id), TRACE_ID.set("")
        try:
            if self._protocol.way.intake.dispatcher.tally(self._sent or [], self._outcome):
                self._tell()
            else:
                self._protocol.way.deadlines.drop(self)
                self._protocol.start(self._settle())
        except Exception:  # noqa: BLE001 - whoever calls commits for others too
            self._fail()
        finally:
            REQUEST_ID.reset(token)
            TRACE_ID.reset(trace)

    async def _settle(self) -> None:
        """What a shard refused may be for another one."""
        try:
            await self._protocol.way.intake.dispatcher.settle(self._sent or [], self._outcome, self.deadline)
            self._tell()
        except Exception:  # noqa: BLE001 - as above
            self._fail()

    def _tell(self) -> None:
        seconds = time.monotonic() - self._started
        try:
            body = self._exchange.tell(self._sender, self._taken, self._outcome, seconds)
        except ProblemError as error:
            self._refuse(error)
        else:
            self._answer(200, _JSON, body)

    def _fail(self) -> None:
        _log.exception("failed")
        if not self.response_complete:
            self._refuse(problems.internal_error())

    def _refuse(self, error: ProblemError) -> None:
        try:
            status, headers, body = problems.raw(error, self._id)
        except Exception:  # noqa: BLE001 - nobody above would answer
            _log.exception("failed")
            status, headers, body = problems.raw(problems.internal_error(), self._id)
        self._answer(status, _lines(headers), body)

    def _answer(self, status: int, headers: bytes, body: bytes) -> None:
        protocol = self._protocol
        # Its parts know this request, and the connection keeps it until its next one.
        self._sent, self._headers, self._taken, self._outcome = None, {}, Taken({}, [], 0), Outcome()
        self.response_complete = True
        protocol.way.deadlines.drop(self)
        protocol.way.intake.budget.held -= self._length
        length, identity = b"content-length: %d\r\n" % len(body), b"x-request-id: %b\r\n" % self._id.encode()
        if not self.keep_alive:
            identity += b"connection: close\r\n"
        protocol.answer((STATUS_LINE[status], headers, length, identity, b"\r\n", body), self)
        observe("POST", self._path, self._path, status, time.monotonic() - self._started, quiet=True)


class DirectProtocol(LimitedProtocol):
    """The protocol of a router with a direct path; `way` is set by `direct_protocol_for`."""

    way: ClassVar[Way]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._named: dict[bytes, bytes] = {}
        self._held: list[bytes] | None = None  # the body of a request that may go directly

    def connection_lost(self, exc: Exception | None) -> None:
        """An answered request and its connection know each other: no more work for the garbage collector."""
        super().connection_lost(exc)
        if self.cycle is not None and self.cycle.response_complete:
            self.cycle = None  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """A body that goes on in another piece has limits of time, which are ASGI's to keep."""
        super().data_received(data)
        if self._held is not None:
            held, self._held = self._held, None
            super().on_headers_complete()
            for piece in held:
                super().on_body(piece)

    def on_headers_complete(self) -> None:
        """Hold it back, or let it go through."""
        if self._is_plain():
            self.note_headers()
            self._held = []
        else:
            super().on_headers_complete()

    def _is_plain(self) -> bool:
        if str(self.url, "latin-1") not in self.way.paths.endpoints:
            return False
        named = self._named = dict(self.headers)
        length, parser = named.get(b"content-length", b""), self.parser
        return (
            len(named) == len(self.headers)
            and _UNSERVED.isdisjoint(named)
            and length.isdigit()
            and int(length) <= min(BODY_MAX, self.way.intake.body.bytes_max)
            and (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and bool(parser.should_keep_alive())
        )

    def on_body(self, body: bytes) -> None:
        """A piece of it."""
        if self._held is None:
            super().on_body(body)
        else:
            self._held.append(body)

    def on_message_complete(self) -> None:
        """It is whole."""
        if self._held is None:
            super().on_message_complete()
            return
        body, self._held = b"".join(self._held), None
        exchange = self.way.paths.endpoints[str(self.url, "ascii")].exchange
        request = DirectRequest(self, exchange, self._named)
        self.cycle = request  # type: ignore[assignment]
        request.begin(body)

    def start(self, work: Any) -> None:
        """Let a task of this connection run; a router that stops waits for it."""
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def answer(self, parts: tuple[bytes, ...], request: DirectRequest) -> None:
        """Write an answer, and go on with the connection."""
        if not self.transport.is_closing():
            status, *rest = parts
            self.transport.write(b"".join((status, self.way.head(self.server_state.default_headers), *rest)))
            if not request.keep_alive or b"connection: close\r\n" in rest[0].lower():
                self.transport.close()
        if self.pipeline:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            self.note_idle()


def direct_protocol_for(connections: Connections, way: Way) -> type[DirectProtocol]:
    """The protocol class of one router, for uvicorn."""
    return type("RouterProtocol", (DirectProtocol,), {"watched": connections, "way": way})
