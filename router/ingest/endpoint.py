"""POST /v1/ingest: readings in, an answer after COMMIT."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qsl

import structlog
from starlette.types import Receive, Scope, Send

from router.ingest.body import decompress, is_ndjson, read_body
from router.ingest.decode import decode, keep_prefix
from router.ingest.dispatch import Outcome, count_rejected
from router.ingest.intake import Intake
from router.ingest.shapes import Decoded, Shape
from router.log import REQUEST_ID
from router.metrics import IGNORED
from router.wire import problems
from router.wire.answers import IngestAnswer, encode
from router.wire.complaints import ItemError
from router.wire.openapi import Operation, example
from router.wire.parameters import read
from router.wire.problems import (
    INVALID_READINGS,
    NOT_READY,
    OVERLOADED,
    SHARD_UNAVAILABLE,
    ProblemError,
    retry_after,
)
from router.wire.queries import IngestQuery
from router.wire.readings import reading_type, title
from shards.errors import NoMap
from shards.kinds import Kind

ERRORS_LISTED_MAX: Final = 100
LINES_MAX: Final = 20  # of batches, in a second
CONFLICT: Final = "is stored already with other values for this device and time; the first one counts"
_JSON_HEADERS: Final = [(b"content-type", b"application/json")]
_log: Final = structlog.stdlib.get_logger(__name__)


class IngestEndpoint:
    """An ASGI application for one path: the hot path does without Starlette's request, response and routing.

    It answers every error itself, as problems.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Answer a POST; returns the status for whoever measures."""
        request_id = REQUEST_ID.get()
        try:
            status, headers, body = 200, _JSON_HEADERS, await self._ingest(scope, receive)
        except ProblemError as error:
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
        caller = intake.access.admit(scope["headers"])
        caller.require("ingest")
        if caller.limits:
            caller.check_limits(time.monotonic())
        strict = _strict(scope)
        headers = dict(scope["headers"])
        ndjson = is_ndjson(headers)
        received = await read_body(headers, receive, intake.body, intake.budget)
        length = len(received)
        # The device has done its part: from here on it is our time.
        started = time.monotonic()
        try:
            body = decompress(received, headers, intake.body.bytes_max)
            try:
                decoded = decode(body, self._shape, ndjson=ndjson, readings_max=intake.readings_max)
            except ProblemError:
                caller.charge(1, started)
                raise
            if decoded.ignored:
                IGNORED.labels(self._shape.kind.name if self._shape.kind else "mixed").inc(decoded.ignored)
            del received, body  # a small body may have been a large one: nobody waits for a shard with it in hand
            if caller.prefix is not None:
                keep_prefix(decoded, caller.prefix)
            if caller.limits:
                caller.charge(max(decoded.valid, 1), started)
            try:
                outcome = await _store(
                    intake, decoded, caller.tenant, self._shape, started + intake.timeout_s, strict=strict
                )
            except ProblemError:
                caller.count(0, len(decoded))
                raise
        finally:
            intake.budget.held -= length
        stored = outcome.accepted + outcome.duplicates
        caller.count(stored, len(decoded) - stored)
        if len(decoded) > 1:
            _log_batch(self._shape, outcome, time.monotonic() - started)
        return _answer(outcome)


def _strict(scope: Scope) -> bool:
    if not scope["query_string"]:
        return False
    given = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    return read(IngestQuery, given, {}).strict == "true"


class _Lines:
    """At most LINES_MAX lines a second; the next one tells how many were left out."""

    def __init__(self) -> None:
        self._second = 0
        self._written = 0
        self._left_out = 0

    def next(self, now: float) -> dict[str, int] | None:
        """What a line at `now` (monotonic) says beside its own; None when it is left out."""
        if int(now) != self._second:
            self._second, self._written = int(now), 0
        if self._written >= LINES_MAX:
            self._left_out += 1
            return None
        self._written += 1
        left_out, self._left_out = self._left_out, 0
        return {"left_out": left_out} if left_out else {}


_lines: Final = _Lines()


def _log_batch(shape: Shape, outcome: Outcome, seconds: float) -> None:
    """A line for a request of several readings. One for each reading would cost more than storing it."""
    more = _lines.next(time.monotonic())
    if more is None:
        return
    _log.info(
        "telemetry_ingested",
        kind=shape.kind.name if shape.kind else "mixed",
        accepted=outcome.accepted,
        duplicates=outcome.duplicates,
        conflicts=len(outcome.conflicts),
        rejected=len(outcome.errors),
        unavailable=outcome.unavailable + outcome.overloaded,
        duration_ms=round(seconds * 1000, 2),
        **more,
    )


PATH: Final = "/v1/ingest"


def endpoints(kinds: Sequence[Kind], *, ignoring: bool = False) -> dict[str, IngestEndpoint]:
    """Path -> endpoint: of each kind, and of all together. `ignoring`: fields that nobody declared."""
    found = {f"{PATH}/{kind.path}": IngestEndpoint(Shape([kind], ignoring=ignoring)) for kind in kinds}
    return {**found, PATH: IngestEndpoint(Shape(kinds, ignoring=ignoring))}


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


async def _store(
    intake: Intake, decoded: Decoded, tenant: int, shape: Shape, deadline: float, *, strict: bool
) -> Outcome:
    """Validate in time, then store; ProblemError when nothing may be stored."""
    moment = datetime.now(UTC)
    try:
        chunks, late = intake.dispatcher.route(decoded, tenant, moment - intake.age_max, moment + intake.ahead_max)
    except NoMap as error:
        raise ProblemError(NOT_READY, str(error), headers=retry_after(1)) from None
    errors = decoded.errors + late
    if errors:
        count_rejected(errors, shape.kind)
    if not len(decoded):
        raise ProblemError(INVALID_READINGS, "the body holds no reading", extensions={"accepted": 0, "rejected": 0})
    if errors and (strict or not chunks):
        raise _nothing_stored(errors, len(decoded))
    outcome = await intake.dispatcher.store(chunks, deadline)
    outcome.errors = errors + outcome.errors
    known = outcome.duplicates or outcome.conflicts
    if outcome.errors and not (outcome.accepted or known or outcome.unavailable or outcome.overloaded):
        raise _nothing_stored(outcome.errors, len(decoded))
    return outcome


def _listed(errors: list[ItemError]) -> list[dict[str, object]]:
    shown = sorted(errors, key=lambda error: error.index)[:ERRORS_LISTED_MAX]
    return [{"index": e.index, "pointer": e.pointer, "code": e.code, "detail": e.detail} for e in shown]


def _not_stored(outcome: Outcome) -> list[ItemError]:
    """The readings that are invalid, and those that another one with the same device and time came before."""
    return outcome.errors + [ItemError(index, "", "conflict", CONFLICT) for index in outcome.conflicts]


def _nothing_stored(errors: list[ItemError], total: int) -> ProblemError:
    first = min(errors, key=lambda error: error.index)
    where = f"item {first.index}{': ' + first.pointer if first.pointer else ''}"
    invalid_ = "1 reading is" if len(errors) == 1 else f"{len(errors)} readings are"
    detail = f"{invalid_} invalid, of {total}; {where} {first.detail}"
    counts = {"accepted": 0, "duplicates": 0, "conflicts": 0, "rejected": len(errors)}
    return ProblemError(INVALID_READINGS, detail, extensions={**counts, "errors": _listed(errors)})


def _answer(outcome: Outcome) -> bytes:
    """The body of a 200, or a problem that says what was stored when some readings were not, but may be later."""
    if not outcome.unavailable and not outcome.overloaded:
        counts = (outcome.accepted, outcome.duplicates, len(outcome.conflicts), len(outcome.errors))
        listed = sorted(_not_stored(outcome), key=lambda error: error.index)[:ERRORS_LISTED_MAX]
        return encode(IngestAnswer(*counts, listed))
    extensions: dict[str, object] = {
        "accepted": outcome.accepted,
        "duplicates": outcome.duplicates,
        "conflicts": len(outcome.conflicts),
        "rejected": len(outcome.errors),
        "unavailable": outcome.unavailable + outcome.overloaded,
        "errors": _listed(_not_stored(outcome)),
    }
    stored = f"{_readings(outcome.accepted)} stored, {outcome.duplicates} known already"
    if outcome.unavailable:
        names = ", ".join(sorted(outcome.missing))
        detail = f"{_readings(outcome.unavailable)} could not be stored on {names}; {stored}"
        problem = SHARD_UNAVAILABLE
        extensions["missing"] = sorted(outcome.missing)
    else:
        detail = f"{_readings(outcome.overloaded)} found their queue full; {stored}"
        problem = OVERLOADED
    raise ProblemError(problem, detail, headers=retry_after(outcome.retry_after_s), extensions=extensions)


def _readings(count: int) -> str:
    return "1 reading" if count == 1 else f"{count} readings"
