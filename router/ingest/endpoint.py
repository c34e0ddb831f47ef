"""POST /v1/ingest: readings in, an answer after COMMIT."""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

import structlog
from starlette.types import Receive, Scope, Send

from router.ingest.body import RawHeaders, read_body
from router.ingest.dispatch import Outcome
from router.ingest.exchange import LARGE_BYTES, Exchange, Sender, Taken
from router.ingest.intake import Intake, is_small
from router.ingest.shapes import Shape
from router.log import REQUEST_ID
from router.wire import problems
from router.wire.answers import IngestAnswer
from router.wire.openapi import Operation, example
from router.wire.problems import OVERLOADED, ProblemError, retry_after
from router.wire.queries import IngestQuery
from router.wire.readings import reading_type, title
from shards.kinds import Kind

JSON_HEADERS: Final = [(b"content-type", b"application/json")]
_RATIO: Final = 20  # what JSON of readings is compressed by
_log: Final = structlog.stdlib.get_logger(__name__)


class IngestEndpoint:
    """An ASGI application for one path: the hot path does without Starlette's request, response and routing.

    It answers every error itself, as problems.
    """

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Answer a POST; returns the status for whoever measures."""
        request_id = REQUEST_ID.get()
        try:
            status, headers, body = 200, JSON_HEADERS, await self._ingest(scope, receive)
        except ProblemError as error:
            if error.hold_s:
                await asyncio.sleep(error.hold_s)
            status, headers, body = problems.raw(error, request_id)
        except Exception:  # noqa: BLE001 - a bug; its trace goes to the log, not to the client
            _log.exception("failed")
            status, headers, body = problems.raw(problems.internal_error(), request_id)
        length = (b"content-length", b"%d" % len(body))
        identity = (b"x-request-id", request_id.encode())
        await send({"type": "http.response.start", "status": status, "headers": [*headers, length, identity]})
        await send({"type": "http.response.body", "body": body})
        return status

    async def _ingest(self, scope: Scope, receive: Receive) -> bytes:
        intake: Intake = scope["app"].state.intake
        headers = dict(scope["headers"])
        sender = self.exchange.admit(intake, scope["headers"], headers, scope["query_string"])
        length, outcome = 0, Outcome()
        declared, large = headers.get(b"content-length", b""), intake.dispatcher.pressures.large
        is_large = not is_small(declared)
        large.requests += is_large
        try:
            with large.expecting(min(int(declared), intake.body.bytes_max) if declared.isdigit() else 0):
                received = await read_body(headers, receive, intake.body, intake.budget)
                length = len(received)
                # The device has done its part: from here on it is our time.
                started = time.monotonic()
                if length * (_RATIO if b"content-encoding" in headers else 1) < LARGE_BYTES:
                    taken = self.exchange.take(intake, sender, headers, received, started)
                else:
                    taken, started = await self._unfold(intake, sender, headers, received)
                del received  # nobody waits for a shard with it in hand
                if b"content-encoding" not in headers:
                    large.came(length, taken.total)
                sent = intake.dispatcher.send(taken.chunks, outcome)
            await intake.dispatcher.settle(sent, outcome, started + intake.timeout_s)
        finally:
            intake.budget.held -= length
            large.requests -= is_large
        return self.exchange.tell(sender, taken, outcome, time.monotonic() - started)

    async def _unfold(
        self, intake: Intake, sender: Sender, headers: RawHeaders, received: bytes
    ) -> tuple[Taken, float]:
        """One large body at a time: unfolded it is many times what the budget counts. Its time runs from its turn."""
        try:
            async with asyncio.timeout(intake.timeout_s):
                await intake.large.acquire()
        except TimeoutError:
            detail = "too many large bodies are being taken"
            raise ProblemError(OVERLOADED, detail, headers=retry_after(1)) from None
        try:
            started = time.monotonic()
            return await self.exchange.take_in_turns(intake, sender, headers, received, started), started
        finally:
            intake.large.release()


PATH: Final = "/v1/ingest"


def endpoints(kinds: Sequence[Kind], *, ignoring: bool = False) -> dict[str, IngestEndpoint]:
    """Path -> endpoint: of each kind, and of all together. `ignoring`: fields that nobody declared."""
    found = {f"{PATH}/{kind.path}": IngestEndpoint(Exchange(Shape([kind], ignoring=ignoring))) for kind in kinds}
    return {**found, PATH: IngestEndpoint(Exchange(Shape(kinds, ignoring=ignoring)))}


_BATCH_TEXT: Final = (
    "One reading, an array of readings, or NDJSON (Content-Type application/x-ndjson: one reading a line). "
    "Content-Encoding gzip and zstd are supported. 200 means committed; sending the same again is safe and counts "
    "as duplicates. Of two readings of one device and time the first one counts; the other one is a conflict, unless "
    "its values are the same. Invalid and conflicting readings are listed by index and do not stop the others."
)


def _operation(path: str, name: str, whose: str, kinds: Sequence[Kind]) -> Operation:
    return Operation(
        "post",
        path,
        name,
        f"Store readings of {whose}",
        "ingest",
        IngestAnswer,
        query=IngestQuery,
        body=tuple(map(reading_type, kinds)),
        examples=tuple(map(example, kinds)),
        batch=_BATCH_TEXT,
    )


def operations(kinds: Sequence[Kind]) -> tuple[Operation, ...]:
    """What the endpoints are, for the document."""
    found = [_operation(f"{PATH}/{kind.path}", f"ingest{title(kind)}", f"{kind}s", [kind]) for kind in kinds]
    return (*found, _operation(PATH, "ingestMixed", "any kind", kinds))
