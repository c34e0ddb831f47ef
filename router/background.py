"""The leader of a process: which duties it has, and how they are logged and counted."""

from collections.abc import Callable, Sequence
from typing import Final

import structlog

from router.ingest.dispatch import Dispatcher
from router.metrics import (
    ARCHIVE_FAILED,
    LIFECYCLE_FAILED,
    LIFECYCLE_SECONDS,
    LIFECYCLE_STEPS,
    MOVE_BYTES,
    MOVE_FAILURES,
    MOVE_LAG_S,
    MOVE_PAUSE_S,
    MOVE_PHASES,
    MOVE_ROWS,
    PARTITIONS_FAILED,
    PARTITIONS_MADE,
    ROLLUPS_FAILED,
    SHARD_ERRORS,
)
from shards.catalog.database import Catalog
from shards.duties.archive import Archiving
from shards.duties.archive import Round as Archived
from shards.duties.leader import Duty, Leader
from shards.duties.lifecycle import Lifecycle
from shards.duties.lifecycle import Round as Tended
from shards.duties.partitions import Partitions, Round
from shards.errors import Unusable
from shards.moves.phases import Move
from shards.moves.runner import Moves, Watcher
from shards.tiers.due import Step
from shards.tiers.runner import Done

_log: Final = structlog.stdlib.get_logger(__name__)
_MEASURES: Final[dict[str, Callable[[float], None]]] = {
    "rows": MOVE_ROWS.inc,
    "bytes": MOVE_BYTES.inc,
    "lag_s": MOVE_LAG_S.set,
    "pause_s": MOVE_PAUSE_S.observe,
}
BUSY_READINGS: Final = 200  # waiting in a lane: then copies take less of the time


def leader_of(
    catalog: Catalog,
    name: str,
    every_s: tuple[float, float, float],
    dispatcher: Dispatcher | None = None,
    more: Sequence[Duty] = (),
) -> tuple[Leader, Moves]:
    """A leader for this process and its duty of moves; beside a router, copies make room for its readings.

    `every_s`: between two looks at partitions, at what is due of history's lifecycle, and at rollups.
    """
    busy = (lambda: _is_busy(dispatcher)) if dispatcher else (lambda: False)
    moves = Moves(catalog, Watcher(failed=_failed, entered=_entered, busy=busy, measure=_measure))
    partitions = Partitions(catalog, every_s[0], _extended, PARTITIONS_FAILED.clear)
    lifecycle = Lifecycle(catalog, every_s[1], False, busy, _stepped, _tended, LIFECYCLE_FAILED.clear)
    rollups = Lifecycle(catalog, every_s[2], True, busy, _stepped, _tended, ROLLUPS_FAILED.clear)
    archiving = Archiving(catalog, every_s[1], busy, _stepped, _archived, ARCHIVE_FAILED.clear)
    return Leader(catalog, name, [moves, partitions, lifecycle, rollups, archiving, *more]), moves


def told(shard: str, login: str, error: Unusable | None) -> None:
    """A line when a database becomes unavailable, for another cause, or available again."""
    if error is None:
        _log.info("shard_available", shard=shard, login=login)
    else:
        SHARD_ERRORS.labels(shard, error.cause.value).inc()
        _log.warning("shard_unavailable", shard=shard, login=login, cause=error.cause.value, detail=error.detail)


def store_told(reason: str | None) -> None:
    """A line when Redis goes away, or is back."""
    if reason is None:
        _log.info("redis_available")
    else:
        _log.warning("redis_unavailable", detail=reason)


def _is_busy(dispatcher: Dispatcher) -> bool:
    return any(lane.queued > BUSY_READINGS for lane in dispatcher.lanes.values())


def _entered(move: Move) -> None:
    MOVE_PHASES.labels(move.phase.value).inc()
    _log.info("move", bucket=move.bucket, source=move.source, target=move.target, phase=move.phase.value)


def _measure(name: str, value: float) -> None:
    _MEASURES[name](value)


def _failed(move: Move, error: Exception) -> None:
    MOVE_FAILURES.labels(move.phase.value).inc()
    detail = str(error) or type(error).__name__
    _log.warning("move_failed", bucket=move.bucket, phase=move.phase.value, detail=detail)


def _stepped(shard: str) -> Done:
    def done(_bucket: int, _kind: str, step: Step, _count: int, seconds: float) -> None:
        LIFECYCLE_STEPS.labels(shard, step.value).inc()
        LIFECYCLE_SECONDS.labels(shard, step.value).inc(seconds)

    return done


def _tended(made: Tended) -> None:
    if made.result is None:
        _log.warning("lifecycle_failed", shard=made.shard, detail=made.error)
        return
    (ROLLUPS_FAILED if made.rollups else LIFECYCLE_FAILED).labels(made.shard).set(len(made.result.failed))
    if made.result.done and not made.rollups:
        done = {step.value: count for step, count in made.result.done.items()}
        _log.info("lifecycle", shard=made.shard, waiting=made.result.waiting, **done)
    for what, reason in made.result.failed.items():
        _log.warning("lifecycle_step_failed", shard=made.shard, what=what, detail=reason)


def _archived(made: Archived) -> None:
    if made.result is None:
        ARCHIVE_FAILED.labels(made.shard).set(1)
        _log.warning("archive_failed", shard=made.shard, detail=made.error)
        return
    ARCHIVE_FAILED.labels(made.shard).set(len(made.result.failed))
    if made.result.done:
        done = {step.value: count for step, count in made.result.done.items()}
        _log.info("archive", shard=made.shard, waiting=made.result.waiting, **done)
    for what, reason in made.result.failed.items():
        _log.warning("archive_step_failed", shard=made.shard, what=what, detail=reason)


def _extended(made: Round) -> None:
    if made.extended is None:
        _log.warning("partitions_failed", shard=made.shard, detail=made.error)
        return
    PARTITIONS_MADE.labels(made.shard).inc(made.extended.made)
    PARTITIONS_FAILED.labels(made.shard).set(len(made.extended.failed))
    if made.extended.made:
        _log.info("partitions_made", shard=made.shard, made=made.extended.made)
    for bucket, reason in made.extended.failed.items():
        _log.warning("partition_failed", shard=made.shard, bucket=bucket, detail=reason)
