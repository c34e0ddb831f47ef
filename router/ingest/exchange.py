"""The steps of a POST of readings, whichever way it comes and is waited for: admit, take, and at the end tell."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import parse_qsl

from router.access.caller import Caller
from router.access.keys import RawHeader
from router.ingest.answer import answer, log_batch, nothing_stored
from router.ingest.body import RawHeaders, decompress, is_ndjson
from router.ingest.counts import count_rejected
from router.ingest.decode import decode, keep_prefix
from router.ingest.dispatch import Outcome
from router.ingest.intake import Intake
from router.ingest.routing import Chunks
from router.ingest.shapes import Decoded, Shape
from router.metrics import IGNORED
from router.wire.complaints import ItemError
from router.wire.parameters import read
from router.wire.problems import INVALID_READINGS, NOT_READY, ProblemError, retry_after
from router.wire.queries import IngestQuery
from shards.errors import NoMap


@dataclass(slots=True)
class Sender:
    """Who sends readings, and how they are written."""

    caller: Caller
    ndjson: bool
    strict: bool


@dataclass(slots=True)
class Taken:
    """A body's valid readings by shard and kind, an error for each other one, and how many it held."""

    chunks: Chunks
    errors: list[ItemError]
    total: int


class Exchange:
    """What one path takes, and its steps. Every refusal is a ProblemError."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape

    def admit(self, intake: Intake, given: Sequence[RawHeader], headers: RawHeaders, query: bytes) -> Sender:
        """Before any of the body is read. `headers`: those `given`, by name."""
        caller = intake.access.admit(given)
        caller.require("ingest")
        if caller.limits:
            caller.check_limits(time.monotonic())
        return Sender(caller, is_ndjson(headers), _strict(query) if query else False)

    def take(self, intake: Intake, sender: Sender, headers: RawHeaders, received: bytes, started: float) -> Taken:
        """What the body holds, charged to its sender at `started` (monotonic)."""
        caller = sender.caller
        body = decompress(received, headers, intake.body.bytes_max)
        try:
            decoded = decode(body, self._shape, ndjson=sender.ndjson, readings_max=intake.readings_max)
        except ProblemError:
            caller.charge(1, started)
            raise
        if decoded.ignored:
            IGNORED.labels(self._shape.kind.name if self._shape.kind else "mixed").inc(decoded.ignored)
        if caller.prefix is not None:
            keep_prefix(decoded, caller.prefix)
        if caller.limits:
            caller.charge(max(decoded.valid, 1), started)
        try:
            return self._route(intake, sender, decoded)
        except ProblemError:
            caller.count(0, len(decoded))
            raise

    def _route(self, intake: Intake, sender: Sender, decoded: Decoded) -> Taken:
        moment = datetime.now(UTC)
        earliest, latest = moment - intake.age_max, moment + intake.ahead_max
        try:
            chunks, late = intake.dispatcher.route(decoded, sender.caller.tenant, earliest, latest)
        except NoMap as error:
            raise ProblemError(NOT_READY, str(error), headers=retry_after(1)) from None
        total, errors = len(decoded), decoded.errors + late
        if errors:
            count_rejected(errors, self._shape.kind)
        if not total:
            detail = "the body holds no reading"
            raise ProblemError(INVALID_READINGS, detail, extensions={"accepted": 0, "rejected": 0})
        if errors and (sender.strict or not chunks):
            raise nothing_stored(errors, total)
        return Taken(chunks, errors, total)

    def tell(self, sender: Sender, taken: Taken, outcome: Outcome, seconds: float) -> bytes:
        """The answer's body, `seconds` after the request's last byte."""
        if taken.errors:
            outcome.errors = taken.errors + outcome.errors
        known = outcome.accepted or outcome.duplicates or outcome.conflicts
        if outcome.errors and not (known or outcome.unavailable or outcome.overloaded):
            sender.caller.count(0, taken.total)
            raise nothing_stored(outcome.errors, taken.total)
        stored = outcome.accepted + outcome.duplicates
        sender.caller.count(stored, taken.total - stored)
        if taken.total > 1:
            log_batch(self._shape, outcome, seconds)
        return answer(outcome)


def _strict(query: bytes) -> bool:
    given = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    return read(IngestQuery, given, {}).strict == "true"
