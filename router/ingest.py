"""POST /v1/ingest: readings in, an answer after COMMIT."""

import time
from datetime import timedelta
from typing import Final

import structlog
from starlette.requests import Request
from starlette.responses import Response

from router.answers import IngestAnswer, json_response
from router.body import body_of, is_ndjson
from router.context import Router, now, router_of
from router.decode import METER_FORMAT, MIXED_FORMAT, VEHICLE_FORMAT, Decoded, Format, decode
from router.dispatch import Outcome, count_rejected
from router.parameters import check_known, choice
from router.problems import (
    INVALID_READINGS,
    NOT_READY,
    OVERLOADED,
    SHARD_UNAVAILABLE,
    ProblemError,
    invalid,
    retry_after,
)
from router.readings import ItemError
from shards.errors import ClusterError

ERRORS_LISTED_MAX: Final = 100
_log: Final = structlog.stdlib.get_logger(__name__)


async def ingest_meter(request: Request) -> Response:
    """Readings of meters."""
    return await _ingest(request, METER_FORMAT)


async def ingest_vehicle(request: Request) -> Response:
    """Readings of vehicles."""
    return await _ingest(request, VEHICLE_FORMAT)


async def ingest_mixed(request: Request) -> Response:
    """Readings of both kinds."""
    return await _ingest(request, MIXED_FORMAT)


async def _ingest(request: Request, shape: Format) -> Response:
    router = router_of(request)
    started = time.monotonic()
    deadline = started + router.settings.ingest_timeout_s
    check_known(request, ("strict",))
    strict = choice(request, "strict", ("true", "false")) == "true"
    ndjson = is_ndjson(request)
    async with body_of(request, router, deadline) as body:
        decoded = decode(body, shape, ndjson=ndjson, readings_max=router.settings.readings_max)
        del body
        outcome = await _store(router, decoded, shape, deadline, strict=strict)
    if len(decoded) > 1:
        _log.info(
            "ingested",
            kind=shape.kind.name if shape.kind else "mixed",
            accepted=outcome.accepted,
            duplicates=outcome.duplicates,
            rejected=len(outcome.errors),
            unavailable=outcome.unavailable + outcome.overloaded,
            duration_ms=round((time.monotonic() - started) * 1000, 2),
        )
    return _answer(outcome)


async def _store(router: Router, decoded: Decoded, shape: Format, deadline: float, *, strict: bool) -> Outcome:
    """Validate in time, then store; ProblemError when nothing may be stored."""
    moment = now()
    latest = moment + timedelta(seconds=router.settings.reading_ahead_max_s)
    try:
        chunks, late = router.dispatcher.route(decoded, moment - router.settings.reading_age_max(), latest)
    except ClusterError as error:
        raise ProblemError(NOT_READY, str(error), headers=retry_after(1)) from None
    errors = decoded.errors + late
    count_rejected(errors, shape.kind)
    if not len(decoded):
        raise invalid("", "the body holds no reading", "empty")
    if errors and (strict or not chunks):
        raise _nothing_stored(errors, len(decoded))
    outcome = await router.dispatcher.store(chunks, deadline)
    outcome.errors = errors + outcome.errors
    if outcome.errors and not (outcome.accepted or outcome.duplicates or outcome.unavailable or outcome.overloaded):
        raise _nothing_stored(outcome.errors, len(decoded))
    return outcome


def _listed(errors: list[ItemError]) -> list[dict[str, object]]:
    shown = sorted(errors, key=lambda error: error.index)[:ERRORS_LISTED_MAX]
    return [{"index": e.index, "pointer": e.pointer, "code": e.code, "detail": e.detail} for e in shown]


def _nothing_stored(errors: list[ItemError], total: int) -> ProblemError:
    first = min(errors, key=lambda error: error.index)
    where = f"item {first.index}{': ' + first.pointer if first.pointer else ''}"
    detail = f"{len(errors)} of {total} readings are invalid; {where} {first.detail}"
    counts = {"accepted": 0, "duplicates": 0, "rejected": len(errors)}
    return ProblemError(INVALID_READINGS, detail, extensions={**counts, "errors": _listed(errors)})


def _answer(outcome: Outcome) -> Response:
    """200, or a problem that says what was stored when some readings were not, for a reason that will pass."""
    if not outcome.unavailable and not outcome.overloaded:
        errors = sorted(outcome.errors, key=lambda error: error.index)
        listed = errors[:ERRORS_LISTED_MAX]
        return json_response(IngestAnswer(outcome.accepted, outcome.duplicates, len(errors), listed))
    extensions: dict[str, object] = {
        "accepted": outcome.accepted,
        "duplicates": outcome.duplicates,
        "rejected": len(outcome.errors),
        "unavailable": outcome.unavailable + outcome.overloaded,
        "errors": _listed(outcome.errors),
    }
    stored = f"{outcome.accepted} readings were stored, {outcome.duplicates} were known"
    if outcome.unavailable:
        names = ", ".join(sorted(outcome.missing))
        detail = f"{outcome.unavailable} readings could not be stored on {names}; {stored}"
        problem = SHARD_UNAVAILABLE
        extensions["missing"] = sorted(outcome.missing)
    else:
        detail = f"{outcome.overloaded} readings found their queue full; {stored}"
        problem = OVERLOADED
    raise ProblemError(problem, detail, headers=retry_after(outcome.retry_after_s), extensions=extensions)
