"""The steps of a POST of readings, whichever way it comes and is waited for: admit, take, and at the end tell."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qsl

from router.access.caller import Caller
from router.access.keys import RawHeader
from router.ingest.answer import answer, log_batch, nothing_stored
from router.ingest.body import RawHeaders, decompress, is_ndjson
from router.ingest.counts import count_rejected
from router.ingest.decode import decode, decode_together, in_pieces, keep_prefix
from router.ingest.dispatch import Outcome
from router.ingest.intake import Intake
from router.ingest.routing import Chunks, route
from router.ingest.shapes import Decoded, Items, Shape
from router.metrics import IGNORED
from router.wire.complaints import ItemError
from router.wire.parameters import read
from router.wire.problems import INVALID_READINGS, NOT_READY, ProblemError, retry_after
from router.wire.queries import IngestQuery
from shards.errors import NoMap

LARGE_BYTES: Final = 131_072  # of a body, as it was sent, that is taken in turns
ITEMS_A_TURN: Final = 250


@dataclass(slots=True)
class Sender:
    """Who sends readings, and how they are written."""

    caller: Caller
    ndjson: bool
    strict: bool
    charged: bool = False

    def charge(self, readings: int, now: float) -> None:
        """Once for a request: its readings, at `now` (monotonic)."""
        if self.caller.limits and not self.charged:
            self.charged = True
            self.caller.charge(readings, now)


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
        intake.check_room(headers.get(b"content-length", b""))
        return Sender(caller, is_ndjson(headers), _strict(query) if query else False)

    def take(self, intake: Intake, sender: Sender, headers: RawHeaders, received: bytes, started: float) -> Taken:
        """What the body holds, charged to its sender at `started` (monotonic) unless that was done."""
        body = decompress(received, headers, intake.body.bytes_max)
        try:
            decoded = decode(body, self._shape, ndjson=sender.ndjson, readings_max=intake.readings_max)
        except ProblemError:
            sender.charge(1, started)
            raise
        taking = _Taking(self._shape, intake, sender)
        taking.add(decoded)
        return taking.end(started)

    def take_together(self, intake: Intake, callers: Sequence[Caller], bodies: Sequence[bytes]) -> Chunks | None:
        """Readings of several requests of one tenant, an object in each body, by shard and kind.

        Their indexes are those of the bodies. None when any of them cannot be stored: each is taken by itself then.
        """
        decoded = decode_together(bodies, self._shape, readings_max=intake.readings_max)
        if decoded is None or not all(_may_send(callers, items) for items in decoded.readings.values()):
            return None
        moment = datetime.now(UTC)
        try:
            known = intake.dispatcher.map
        except NoMap:
            return None
        bounds = (moment - intake.age_max, moment + intake.ahead_max)
        chunks, late = route(decoded, known, callers[0].tenant, *bounds)
        return None if late else chunks

    async def take_in_turns(
        self, intake: Intake, sender: Sender, headers: RawHeaders, received: bytes, started: float
    ) -> Taken:
        """The same of a large body, while others have their turns: all at once it would hold them up for 20 ms."""
        body = received
        if b"content-encoding" in headers:
            body = await asyncio.to_thread(decompress, received, headers, intake.body.bytes_max)
        taking = _Taking(self._shape, intake, sender)
        most = {"readings_max": intake.readings_max, "items_max": ITEMS_A_TURN}
        try:
            for decoded in in_pieces(body, self._shape, ndjson=sender.ndjson, **most):
                taking.add(decoded)
                await asyncio.sleep(0)
        except ProblemError:
            sender.charge(1, started)
            raise
        return taking.end(started)

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


class _Taking:
    """Decoded readings on their way to chunks."""

    def __init__(self, shape: Shape, intake: Intake, sender: Sender) -> None:
        self._shape = shape
        self._sender = sender
        moment = datetime.now(UTC)
        self._bounds = (moment - intake.age_max, moment + intake.ahead_max)
        self._taken = Taken({}, [], 0)
        self._valid = 0
        try:
            # One for all of a request: of two readings with one key the first must not go to the older owner.
            self._map = intake.dispatcher.map
        except NoMap as error:
            self._no_map: NoMap | None = error
        else:
            self._no_map = None

    def add(self, decoded: Decoded) -> None:
        """Some of them, or all."""
        caller, taken = self._sender.caller, self._taken
        if decoded.ignored:
            IGNORED.labels(self._shape.kind.name if self._shape.kind else "mixed").inc(decoded.ignored)
        if caller.prefix is not None:
            keep_prefix(decoded, caller.prefix)
        taken.total += len(decoded)
        self._valid += decoded.valid
        if self._no_map is not None:
            return
        chunks, late = route(decoded, self._map, caller.tenant, *self._bounds)
        taken.errors += decoded.errors + late
        if not taken.chunks:
            taken.chunks = chunks
            return
        for place, chunk in chunks.items():
            known = taken.chunks.setdefault(place, chunk)
            if known is not chunk:
                known.rows += chunk.rows
                known.indexes += chunk.indexes

    def end(self, started: float) -> Taken:
        """All of it, or the problem of a request of which nothing may be stored."""
        caller, taken = self._sender.caller, self._taken
        self._sender.charge(max(self._valid, 1), started)
        try:
            self._check(taken)
        except ProblemError:
            caller.count(0, taken.total)
            raise
        return taken

    def _check(self, taken: Taken) -> None:
        if self._no_map is not None:
            raise ProblemError(NOT_READY, str(self._no_map), headers=retry_after(1))
        if taken.errors:
            count_rejected(taken.errors, self._shape.kind)
        if not taken.total:
            detail = "the body holds no reading"
            raise ProblemError(INVALID_READINGS, detail, extensions={"accepted": 0, "rejected": 0})
        if taken.errors and (self._sender.strict or not taken.chunks):
            raise nothing_stored(taken.errors, taken.total)


def _may_send(callers: Sequence[Caller], items: Items) -> bool:
    """Whether each reading is of a device that its sender's key is for."""
    if all(caller.prefix is None for caller in callers):
        return True
    pairs = zip(items.indexes, items.cells, strict=True)
    return all(cells[0].startswith(callers[index].prefix or "") for index, cells in pairs)


def _strict(query: bytes) -> bool:
    given = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    return read(IngestQuery, given, {}).strict == "true"
