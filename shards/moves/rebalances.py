"""Rebalances and moves in the catalog: starting them, their progress, what ops ask of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import asyncpg

from shards.catalog.database import Catalog
from shards.errors import Refused
from shards.moves.phases import ABORTABLE, REBALANCE_FOLLOWING, Move, Phase, Rebalance, RebalanceState, Role, check_step
from shards.moves.placement import PlannedMove
from shards.postgres.connections import Connection

_COLUMNS: Final = "rebalance_id, state, reason, parallel_max, bytes_per_s_max, keep_s, created_at, ended_at, note"
_LATEST: Final = f"SELECT {_COLUMNS} FROM rebalance ORDER BY rebalance_id DESC LIMIT 1"
_OPEN: Final = f"SELECT {_COLUMNS} FROM rebalance WHERE ended_at IS NULL"
_OPEN_ID: Final = "SELECT rebalance_id FROM rebalance WHERE ended_at IS NULL"
START: Final = """
INSERT INTO rebalance (reason, parallel_max, bytes_per_s_max, keep_s) VALUES ($1, $2, $3, $4) RETURNING rebalance_id
"""
_ADD: Final = """
INSERT INTO move (rebalance_id, bucket, source, target)
SELECT $1, t.bucket, t.source, t.target
FROM unnest($2::smallint[], $3::text[], $4::text[]) WITH ORDINALITY AS t (bucket, source, target, place)
JOIN bucket_map AS m USING (bucket) JOIN shard AS s ON s.shard_id = m.shard_id AND s.name = t.source
JOIN shard AS to_shard ON to_shard.name = t.target
ORDER BY t.place
"""
_MOVE: Final = """
SELECT move_id, rebalance_id, bucket, source, target, phase, cut_over_at, held, keeper, keeper_forced, keeper_alone
FROM move
"""
_OPEN_MOVES: Final = f"{_MOVE} WHERE ended_at IS NULL ORDER BY move_id"
_MOVES_OF: Final = f"{_MOVE} WHERE rebalance_id = $1 ORDER BY move_id"
_DETAILS: Final = """
SELECT move_id, bucket, source, target, phase, started_at, cut_over_at, ended_at, updated_at, rows_total, rows_done,
    bytes_total, bytes_done, delta_rows, copy_s, lag_s, passes, retries, pause_ms, rows_verified, healed,
    held, last_error
FROM move WHERE rebalance_id = $1 ORDER BY move_id
"""
# Everything that a runner writes is conditional on its generation, in one statement: the row is locked against an
# election for just that long, and a runner that was replaced changes nothing.
LEADS: Final = "leads AS (SELECT FROM runner WHERE generation = {generation} FOR SHARE)"
_ENTER: Final = f"""
WITH {LEADS.format(generation="$4")}
UPDATE move SET phase = $3, updated_at = now(), held = NULL,
    last_error = CASE WHEN $3 IN ('aborted', 'rolled_back') THEN last_error END,
    started_at = coalesce(started_at, now()),
    ended_at = CASE WHEN $3 IN ('done', 'aborted', 'rolled_back') THEN now() END
WHERE move_id = $1 AND phase = $2 AND EXISTS (SELECT FROM leads)
"""
_HAND_OVER: Final = f"""
WITH {LEADS.format(generation="$7")}, flipped AS (
    UPDATE bucket_map SET shard_id = (SELECT shard_id FROM shard WHERE name = $6)
    WHERE bucket = $4 AND shard_id = (SELECT shard_id FROM shard WHERE name = $5)
        AND EXISTS (SELECT FROM leads) AND EXISTS (SELECT FROM move WHERE move_id = $1 AND phase = $2)
    RETURNING bucket
)
UPDATE move SET phase = $3, updated_at = now(), held = NULL, last_error = NULL, cut_over_at = clock_timestamp()
WHERE move_id = $1 AND phase = $2 AND EXISTS (SELECT FROM leads) AND (
    EXISTS (SELECT FROM flipped)
    OR EXISTS (SELECT FROM bucket_map AS m JOIN shard AS s USING (shard_id) WHERE m.bucket = $4 AND s.name = $6)
)
RETURNING cut_over_at
"""
_PROGRESS: Final = f"""
WITH {LEADS.format(generation="$13")}
UPDATE move SET updated_at = now(), rows_total = coalesce($2, rows_total), bytes_total = coalesce($3, bytes_total),
    rows_done = coalesce($4, rows_done), bytes_done = coalesce($5, bytes_done), delta_rows = delta_rows + $6,
    copy_s = copy_s + $7, lag_s = $8, passes = passes + $9, pause_ms = coalesce($10, pause_ms),
    rows_verified = coalesce($11, rows_verified) + $12
WHERE move_id = $1 AND EXISTS (SELECT FROM leads)
"""
_FAILED: Final = f"""
WITH {LEADS.format(generation="$3")}
UPDATE move SET retries = retries + 1, last_error = $2, updated_at = now()
WHERE move_id = $1 AND EXISTS (SELECT FROM leads)
"""
_REASON: Final = f"""
WITH {LEADS.format(generation="$3")} UPDATE move SET last_error = $2 WHERE move_id = $1 AND EXISTS (SELECT FROM leads)
"""
_HEALED: Final = f"""
WITH {LEADS.format(generation="$3")}
UPDATE move SET healed = healed + $2 WHERE move_id = $1 AND EXISTS (SELECT FROM leads)
"""
_SET_STATE: Final = """
UPDATE rebalance SET state = $2, note = coalesce($3, note)
WHERE rebalance_id = $1 AND ended_at IS NULL AND state = ANY($4::text[])
"""
# What a runner does when a move must not go on: the rebalance fails, planned moves end, and the move, if it still may.
_FAIL: Final = f"""
WITH {LEADS.format(generation="$5")}, failed AS (
    UPDATE rebalance SET state = 'failed', note = $2
    WHERE rebalance_id = $1 AND ended_at IS NULL AND EXISTS (SELECT FROM leads)
)
UPDATE move SET phase = 'abort', updated_at = now(),
    last_error = CASE WHEN move_id = $3 THEN $2 ELSE 'the rebalance failed' END
WHERE rebalance_id = $1 AND EXISTS (SELECT FROM leads)
    AND (phase = 'planned' OR move_id = $3 AND phase = ANY($4::text[]))
"""
_END: Final = """
UPDATE rebalance SET ended_at = now(), state = $2
WHERE rebalance_id = $1 AND ended_at IS NULL
  AND NOT EXISTS (SELECT FROM move WHERE rebalance_id = $1 AND ended_at IS NULL)
"""
_ABORT: Final = """
UPDATE move SET phase = 'abort', updated_at = now(), held = NULL, keeper = NULL, last_error = $3
WHERE rebalance_id = $1 AND phase = ANY($2::text[])
"""
_ROLL_BACK: Final = """
UPDATE move SET phase = 'rollback', updated_at = now(), held = NULL, keeper = NULL, keeper_forced = false
WHERE phase = 'cleanup' AND ($1::bigint IS NULL OR move_id = $1)
"""
_COPY_RATE: Final = """
SELECT sum(bytes_done) / nullif(sum(copy_s), 0) FROM (
    SELECT bytes_done, copy_s FROM move WHERE phase = 'done' AND bytes_done > 0 ORDER BY move_id DESC LIMIT 20
) AS latest
"""

Details = dict[str, Any]


def _move(record: asyncpg.Record) -> Move:
    keeper = record["keeper"] and Role(record["keeper"])
    return Move(**{**dict(record), "phase": Phase(record["phase"]), "keeper": keeper})


def _rebalance(record: asyncpg.Record) -> Rebalance:
    return Rebalance(**{**dict(record), "state": RebalanceState(record["state"])})


async def start(
    connection: Connection,
    moves: Sequence[PlannedMove],
    reason: str,
    *,
    parallel_max: int,
    bytes_per_s_max: int | None,
    keep_s: float,
) -> int:
    """Write a plan down for the runner, inside the transaction that holds the membership (Catalog.membership).

    Refused when a rebalance is open already, or a bucket is not where the plan says.
    """
    if await connection.fetchval(_OPEN_ID) is not None:
        raise Refused("a rebalance is open already: see `voltroute rebalance status`")
    number = await connection.fetchval(START, reason, parallel_max, bytes_per_s_max, keep_s)
    buckets = [move.bucket for move in moves]
    names = [move.source for move in moves], [move.target for move in moves]
    if await connection.execute(_ADD, number, buckets, *names) != f"INSERT 0 {len(moves)}":
        raise Refused("the plan does not fit the shard map any more: make a new one")
    return int(number)


async def latest(catalog: Catalog, deadline: float) -> tuple[Rebalance, list[Details]] | None:
    """The newest rebalance and its moves with their progress; None when there was none."""
    async with catalog.pool.connection(deadline) as connection:
        record = await connection.fetchrow(_LATEST)
        if record is None:
            return None
        moves = [dict(move) for move in await connection.fetch(_DETAILS, record["rebalance_id"])]
        return _rebalance(record), moves


async def open_rebalance(catalog: Catalog, deadline: float) -> Rebalance | None:
    """The rebalance that has not ended."""
    async with catalog.pool.connection(deadline) as connection:
        record = await connection.fetchrow(_OPEN)
        return _rebalance(record) if record else None


async def open_moves(catalog: Catalog, deadline: float) -> list[Move]:
    """Moves that have not ended."""
    async with catalog.pool.connection(deadline) as connection:
        return [_move(record) for record in await connection.fetch(_OPEN_MOVES)]


async def moves_of(catalog: Catalog, rebalance_id: int, deadline: float) -> list[Move]:
    """All moves of a rebalance."""
    async with catalog.pool.connection(deadline) as connection:
        return [_move(record) for record in await connection.fetch(_MOVES_OF, rebalance_id)]


async def enter(catalog: Catalog, move: Move, phase: Phase, runner: int, deadline: float) -> bool:
    """Take a move to its next phase; False when the catalog has it elsewhere by now, or another runner leads."""
    check_step(move.phase, phase)
    async with catalog.pool.connection(deadline) as connection:
        return (await connection.execute(_ENTER, move.move_id, move.phase, phase, runner)) == "UPDATE 1"


async def hand_over(
    catalog: Catalog, move: Move, owners: tuple[str, str], phase: Phase, runner: int, deadline: float
) -> Move | None:
    """The map changes: the second of `owners` has the bucket, the first had it. None when another runner leads.

    Repeating it changes nothing. The move as it is then.
    """
    check_step(move.phase, phase)
    values = (move.move_id, move.phase, phase, move.bucket, *owners, runner)
    async with catalog.pool.connection(deadline) as connection:
        moment = await connection.fetchval(_HAND_OVER, *values)
    return None if moment is None else replace(move, phase=phase, cut_over_at=moment)


async def progress(
    catalog: Catalog,
    move_id: int,
    runner: int,
    deadline: float,
    *,
    rows_total: int | None = None,
    bytes_total: int | None = None,
    rows_done: int | None = None,
    bytes_done: int | None = None,
    delta_rows: int = 0,
    copy_s: float = 0.0,
    lag_s: float | None = None,
    passes: int = 0,
    pause_ms: float | None = None,
    rows_verified: int | None = None,
    tail_verified: int = 0,
) -> None:
    """Write down how far a move is. `delta_rows`, `copy_s`, `passes` and `tail_verified` add up, the others replace."""
    done = (rows_total, bytes_total, rows_done, bytes_done)
    values = (*done, delta_rows, copy_s, lag_s, passes, pause_ms, rows_verified, tail_verified)
    async with catalog.pool.connection(deadline) as connection:
        await connection.execute(_PROGRESS, move_id, *values, runner)


async def failed(catalog: Catalog, move_id: int, runner: int, detail: str, deadline: float) -> None:
    """Count a retry, and keep what went wrong."""
    async with catalog.pool.connection(deadline) as connection:
        await connection.execute(_FAILED, move_id, detail[:500], runner)


async def give_reason(catalog: Catalog, move_id: int, runner: int, reason: str, deadline: float) -> None:
    """Why a move ended as it did."""
    async with catalog.pool.connection(deadline) as connection:
        await connection.execute(_REASON, move_id, reason[:500], runner)


async def healed(catalog: Catalog, move_id: int, runner: int, readings: int, deadline: float) -> None:
    """Count readings that the comparison before a drop found missing, and carried."""
    async with catalog.pool.connection(deadline) as connection:
        await connection.execute(_HEALED, move_id, readings, runner)


async def set_state(
    catalog: Catalog, rebalance_id: int, state: RebalanceState, note: str | None, deadline: float
) -> bool:
    """Pause, resume or cancel a rebalance; False when it has ended, or does not go there from where it is."""
    before = [state, *(each for each, following in REBALANCE_FOLLOWING.items() if state in following)]
    async with catalog.pool.connection(deadline) as connection:
        return (await connection.execute(_SET_STATE, rebalance_id, state, note, before)) == "UPDATE 1"


async def end(catalog: Catalog, rebalance_id: int, state: RebalanceState, deadline: float) -> bool:
    """End a rebalance whose moves have all ended."""
    async with catalog.pool.connection(deadline) as connection:
        return (await connection.execute(_END, rebalance_id, state)) == "UPDATE 1"


async def abort(catalog: Catalog, rebalance_id: int, reason: str, deadline: float) -> int:
    """Ask for the end of all moves before their cutover; a fenced one goes on. Returns how many were asked."""
    async with catalog.pool.connection(deadline) as connection:
        answer = await connection.execute(_ABORT, rebalance_id, [phase.value for phase in ABORTABLE], reason)
    return int(answer.removeprefix("UPDATE "))


async def fail(catalog: Catalog, move: Move, runner: int, reason: str, deadline: float, *, abort: bool) -> None:
    """A move must not go on: its rebalance fails, planned moves end, and the move itself if `abort` and it may."""
    phases = [phase.value for phase in ABORTABLE] if abort else []
    values = (move.rebalance_id, reason[:500], move.move_id, phases, runner)
    async with catalog.pool.connection(deadline) as connection:
        await connection.execute(_FAIL, *values)


async def roll_back(catalog: Catalog, move_id: int | None, deadline: float) -> int:
    """Ask for moves whose source copies are still kept (None: all of them) to be undone; returns how many."""
    async with catalog.pool.connection(deadline) as connection:
        answer = await connection.execute(_ROLL_BACK, move_id)
    return int(answer.removeprefix("UPDATE "))


async def copy_rate(catalog: Catalog, deadline: float) -> float | None:
    """Bytes a second of the last finished copies."""
    async with catalog.pool.connection(deadline) as connection:
        rate = await connection.fetchval(_COPY_RATE)
        return float(rate) if rate else None
