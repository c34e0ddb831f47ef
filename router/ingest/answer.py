"""What a sender is told of its readings: a 200 with counts, or a problem that says what was stored."""

import time
from typing import Final

import structlog

from router.ingest.dispatch import Outcome
from router.ingest.shapes import Shape
from router.wire.answers import IngestAnswer, encode
from router.wire.complaints import ItemError
from router.wire.problems import INVALID_READINGS, OVERLOADED, SHARD_UNAVAILABLE, ProblemError, retry_after

ERRORS_LISTED_MAX: Final = 100
LINES_MAX: Final = 20  # of batches, in a second
CONFLICT: Final = "is stored already with other values for this device and time; the first one counts"
STORED: Final = encode(IngestAnswer(1, 0, 0, 0, []))  # of a request with one reading, which is new
_log: Final = structlog.stdlib.get_logger(__name__)


def nothing_stored(errors: list[ItemError], total: int) -> ProblemError:
    """The problem of a request that holds no reading which could be stored."""
    first = min(errors, key=lambda error: error.index)
    where = f"item {first.index}{': ' + first.pointer if first.pointer else ''}"
    invalid_ = "1 reading is" if len(errors) == 1 else f"{len(errors)} readings are"
    detail = f"{invalid_} invalid, of {total}; {where} {first.detail}"
    counts = {"accepted": 0, "duplicates": 0, "conflicts": 0, "rejected": len(errors)}
    return ProblemError(INVALID_READINGS, detail, extensions={**counts, "errors": _listed(errors)})


def answer(outcome: Outcome) -> bytes:
    """The body of a 200; or the problem is raised that says what was stored when some readings may be later."""
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


def _listed(errors: list[ItemError]) -> list[dict[str, object]]:
    shown = sorted(errors, key=lambda error: error.index)[:ERRORS_LISTED_MAX]
    return [{"index": e.index, "pointer": e.pointer, "code": e.code, "detail": e.detail} for e in shown]


def _not_stored(outcome: Outcome) -> list[ItemError]:
    """The readings that are invalid, and those that another one with the same device and time came before."""
    return outcome.errors + [ItemError(index, "", "conflict", CONFLICT) for index in outcome.conflicts]


def _readings(count: int) -> str:
    return "1 reading" if count == 1 else f"{count} readings"


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


def log_batch(shape: Shape, outcome: Outcome, seconds: float) -> None:
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
