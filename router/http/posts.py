"""A POST of readings on the direct path, from its body to its answer: no task, no messages of ASGI."""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Final, Protocol

import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from router.access.caller import Caller
from router.http.deadlines import Deadlines
from router.http.heads import Head, Heads, RawHeader
from router.http.middleware import Gate, IngestPaths
from router.http.observed import SLOW_S, RequestIds, observe
from router.ingest.answer import STORED
from router.ingest.body import check_budget
from router.ingest.dispatch import Outcome, Sent
from router.ingest.endpoint import JSON_HEADERS
from router.ingest.exchange import Exchange, Sender, Taken
from router.ingest.gathering import Gathering, may_join
from router.ingest.intake import SMALL_BYTES, Intake
from router.ingest.promises import Part
from router.ingest.queue import Pressure
from router.log import REQUEST_ID, TRACE_ID
from router.wire import problems
from router.wire.problems import ProblemError

_log: Final = structlog.stdlib.get_logger(__name__)


def _lines(headers: Sequence[RawHeader]) -> bytes:
    return b"".join(b"%b: %b\r\n" % header for header in headers)


_JSON: Final = _lines(JSON_HEADERS)
_STORED_HEAD: Final = _JSON + b"content-length: %d\r\nx-request-id: " % len(STORED)
_STORED_END: Final = b"\r\n\r\n" + STORED


class Way:
    """What direct requests of one router share."""

    def __init__(self, paths: IngestPaths, gate: Gate, request_ids: RequestIds) -> None:
        self.paths = paths
        self.gate = gate
        self.request_ids = request_ids
        self.heads = Heads()
        self.deadlines = Deadlines()
        self.intake: Intake
        self.gathering: Gathering
        self._given: list[RawHeader] | None = None
        self._told = b""

    def open(self, intake: Intake) -> None:
        """The application has started: before that nothing is listened to."""
        self.intake = intake
        self.gathering = Gathering(intake, self.deadlines)

    def common(self, given: list[RawHeader]) -> bytes:
        """The headers that uvicorn adds to every answer (it makes a new list when the date changes)."""
        if given is not self._given:
            self._given, self._told = given, _lines(given)
        return self._told


class Connection(Protocol):
    """Where a request came from."""

    @property
    def default_headers(self) -> list[RawHeader]:
        """Headers of every answer."""

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Let a task run for which a router that stops waits."""

    def answer(self, data: bytes, *, closing: bool) -> None:
        """Write an answer, and go on."""


class _Nobody:
    """Stands where uvicorn's cycle has an event for its task."""

    def set(self) -> None:
        """Nobody waits."""


_NOBODY: Final = _Nobody()


class _Own(Part):
    """What becomes of a chunk of one request, which hears of it at once."""

    __slots__ = ("_post",)

    def __init__(self, post: "Post") -> None:
        super().__init__()
        self._post = post

    def tell(self) -> None:
        self._post.part_ended()


class Post:
    """One request. It stands where uvicorn has its own cycle: what follows on the connection waits."""

    message_event: Final = _NOBODY

    def __init__(self, way: Way, connection: Connection, exchange: Exchange, head: Head, body: bytes) -> None:
        self.response_complete = False
        self.admitted = False  # its head is that of a device that may send
        self.disconnected = False
        self.keep_alive = True
        self.deadline = 0.0
        self.exchange = exchange
        self.body = body
        self.started = time.monotonic()
        self._way = way
        self._connection = connection
        self._head = head
        self._id = way.request_ids.of(head.named.get(b"x-request-id"))
        self._sender: Sender
        self._taken = _NOTHING
        self._outcome = _UNTOLD
        self._sent: list[Sent] | None = None
        self._ended = 0
        self._held = 0
        self._pressure: Pressure | None = None  # that it is counted in

    @property
    def caller(self) -> Caller:
        """Who sends it."""
        return self._sender.caller

    def begin(self) -> None:
        """Take it as far as its lanes, or refuse it: a turn of the loop later, as a task would."""
        self._step(self._admit)

    def take(self) -> None:
        """The steps of its own, when they are not those of others, too."""
        self._step(self._take)

    def _step(self, step: Any) -> None:
        token = REQUEST_ID.set(self._id)
        try:
            step()
        except ProblemError as error:
            if not self.admitted:
                self.body = b""
            loop = asyncio.get_running_loop()
            if error.hold_s:
                loop.call_later(error.hold_s, self._refuse, error)
            else:
                loop.call_soon(self._refuse, error)
        except Exception:  # noqa: BLE001 - a bug; its trace goes to the log, not to the client
            self.fail()
        finally:
            REQUEST_ID.reset(token)

    def _admit(self) -> None:
        way, head = self._way, self._head
        way.gate.check(head.named.get(b"host"))
        intake = way.intake
        sender = self._sender = self.exchange.admit(intake, head.given, head.named, b"")
        self.admitted = True
        self._held = len(self.body)
        intake.budget.held += self._held
        check_budget(intake.budget)
        if may_join(self.body):
            sender.charge(1, self.started)
            way.gathering.add(self)
        else:
            self._take()

    def _take(self) -> None:
        way, intake = self._way, self._way.intake
        if len(self.body) > SMALL_BYTES:
            self._pressure = intake.dispatcher.pressures.large
            self._pressure.requests += 1
        self._taken = self.exchange.take(intake, self._sender, self._head.named, self.body, self.started)
        self.deadline = self.started + intake.timeout_s
        self._outcome = Outcome()
        self._sent = intake.dispatcher.send(self._taken.chunks, self._outcome, self._own)
        if self._ended == len(self._sent):  # refused at once
            asyncio.get_running_loop().call_soon(self._finish)
        else:
            way.deadlines.add(self)

    def _own(self) -> _Own:
        return _Own(self)

    def part_ended(self) -> None:
        """Something is known of a chunk; with the last one the answer is."""
        self._ended += 1
        if self._sent is not None and self._ended == len(self._sent):
            self._finish()

    def expire(self) -> None:
        """Time is over: what has not begun is withdrawn, of what has the end is not known."""
        for each in self._sent or ():
            each.future.cancel()

    def stored(self, now: float) -> None:
        """Its one reading is new, and committed by `now` (monotonic): what is done here, every reading costs."""
        if self.response_complete:
            return
        seconds = now - self.started
        if seconds >= SLOW_S or not self.keep_alive:
            self._end([], Outcome(accepted=1))
            return
        try:
            self._sender.caller.count(1, 0)
            connection, path = self._connection, self._head.path
            common = self._way.common(connection.default_headers)
            answer = (STATUS_LINE[200], common, _STORED_HEAD, self._id.encode(), _STORED_END)
            self._forget()
            connection.answer(b"".join(answer), closing=False)
            observe("POST", path, path, 200, seconds, quiet=True)
        except Exception:  # noqa: BLE001 - whoever calls tells others, too
            self.fail()

    def ended(self, sent: Sent) -> None:
        """Something else became of its one reading."""
        self._end([sent], Outcome())

    def _end(self, sent: list[Sent], outcome: Outcome) -> None:
        if self.response_complete:
            return
        self._taken, self._sent, self._outcome = Taken({}, [], 1), sent, outcome
        self.deadline = self.started + self._way.intake.timeout_s
        self._finish()

    def _finish(self) -> None:
        # In the context of a lane's worker, which some other request started.
        token, trace = REQUEST_ID.set(self._id), TRACE_ID.set("")
        try:
            if self._way.intake.dispatcher.tally(self._sent or [], self._outcome):
                self._tell()
            else:
                self._way.deadlines.drop(self)
                self._connection.start(self._settle())
        except Exception:  # noqa: BLE001 - whoever calls commits for others too
            self.fail()
        finally:
            REQUEST_ID.reset(token)
            TRACE_ID.reset(trace)

    async def _settle(self) -> None:
        """What a shard refused may be for another one."""
        try:
            await self._way.intake.dispatcher.settle(self._sent or [], self._outcome, self.deadline)
            self._tell()
        except Exception:  # noqa: BLE001 - as above
            self.fail()

    def _tell(self) -> None:
        seconds = time.monotonic() - self.started
        try:
            body = self.exchange.tell(self._sender, self._taken, self._outcome, seconds)
        except ProblemError as error:
            self._refuse(error)
        else:
            self._answer(200, _JSON, body)

    def fail(self) -> None:
        """By a fault of ours, the one being handled."""
        token, trace = REQUEST_ID.set(self._id), TRACE_ID.set("")  # whoever calls may do so for others, too
        try:
            _log.exception("failed")
            if not self.response_complete:
                self._refuse(problems.internal_error())
        finally:
            REQUEST_ID.reset(token)
            TRACE_ID.reset(trace)

    def _refuse(self, error: ProblemError) -> None:
        try:
            status, headers, body = problems.raw(error, self._id)
        except Exception:  # noqa: BLE001 - nobody above would answer
            _log.exception("failed")
            status, headers, body = problems.raw(problems.internal_error(), self._id)
        self._answer(status, _lines(headers), body)

    def _answer(self, status: int, headers: bytes, body: bytes) -> None:
        connection, path = self._connection, self._head.path
        self._way.deadlines.drop(self)
        length, identity = b"content-length: %d\r\n" % len(body), b"x-request-id: %b\r\n" % self._id.encode()
        if not self.keep_alive:
            identity += b"connection: close\r\n"
        common = self._way.common(connection.default_headers)
        closing = not self.keep_alive or b"connection: close\r\n" in headers.lower()
        self._forget()
        answer = (STATUS_LINE[status], common, headers, length, identity, b"\r\n", body)
        connection.answer(b"".join(answer), closing=closing)
        observe("POST", path, path, status, time.monotonic() - self.started, quiet=True)

    def _forget(self) -> None:
        """Its parts know this request, and the connection keeps it until its next one."""
        self.response_complete = True
        self._way.intake.budget.held -= self._held
        if self._pressure is not None:
            self._pressure.requests -= 1
            self._pressure = None
        self.body, self._sent, self._taken, self._outcome, self._held = b"", None, _NOTHING, _UNTOLD, 0


_NOTHING: Final = Taken({}, [], 0)
_UNTOLD: Final = Outcome()  # of nothing: nobody adds to it
