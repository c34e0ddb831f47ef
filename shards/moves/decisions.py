"""Moves that wait for an operator: held, decided about, carried out, and those that only shards remember."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from shards.catalog.database import Catalog
from shards.moves.phases import Move, Phase, Role
from shards.moves.rebalances import LEADS, START
from shards.postgres.connections import Connection

_READOPT: Final = """
INSERT INTO move (move_id, rebalance_id, bucket, source, target, phase, held, last_error, started_at)
OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3, $4, $5, $6, $7, $7, now())
ON CONFLICT (move_id) DO UPDATE
SET rebalance_id = excluded.rebalance_id, bucket = excluded.bucket, source = excluded.source, target = excluded.target,
    phase = excluded.phase, held = excluded.held, last_error = excluded.last_error, ended_at = NULL
"""
# Numbers go on above all that any shard has seen.
_NUMBER_ON: Final = """
SELECT setval(pg_get_serial_sequence('move', 'move_id'), greatest(max(move_id), 1)) FROM move
"""
_HOLD: Final = f"""
WITH {LEADS.format(generation="$3")}
UPDATE move SET held = $2, last_error = $2, updated_at = now() WHERE move_id = $1 AND EXISTS (SELECT FROM leads)
"""
_LET_GO: Final = "UPDATE move SET held = NULL, keeper = NULL WHERE move_id = $1 AND ended_at IS NULL"
_DECIDE: Final = """
UPDATE move SET held = NULL, keeper = $2, keeper_forced = $3, keeper_alone = $4, updated_at = now()
WHERE move_id = $1 AND ended_at IS NULL
"""
_FOLLOW: Final = "UPDATE bucket_map SET shard_id = (SELECT shard_id FROM shard WHERE name = $2) WHERE bucket = $1"
_RESOLVED: Final = f"""
WITH {LEADS.format(generation="$4")}, flipped AS (
    UPDATE bucket_map SET shard_id = (SELECT shard_id FROM shard WHERE name = $3)
    WHERE bucket = (SELECT bucket FROM move WHERE move_id = $1 AND keeper = $5) AND $6 AND EXISTS (SELECT FROM leads)
        AND shard_id <> (SELECT shard_id FROM shard WHERE name = $3)
)
UPDATE move SET phase = $2, updated_at = now(), held = NULL, last_error = NULL, cut_over_at = clock_timestamp(),
    keeper = NULL, ended_at = CASE WHEN $2 IN ('done', 'rolled_back', 'aborted') THEN now() END
WHERE move_id = $1 AND keeper = $5 AND EXISTS (SELECT FROM leads)
RETURNING cut_over_at
"""


@dataclass(frozen=True)
class Orphan:
    """A move that only its shards remember; `told`: what they say of it."""

    move_id: int
    bucket: int
    source: str
    target: str
    phase: Phase
    told: str


async def readopt(connection: Connection, orphans: Sequence[Orphan], keep_s: float) -> None:
    """Write moves down that only the shards remember, as held ones of a failed rebalance, inside Catalog.membership."""
    number = await connection.fetchval(START, "moves that the catalog had forgotten", 1, None, keep_s)
    await connection.execute("UPDATE rebalance SET state = 'failed' WHERE rebalance_id = $1", number)
    for each in orphans:
        values = (each.move_id, number, each.bucket, each.source, each.target, each.phase, each.told)
        await connection.execute(_READOPT, *values)
    await connection.execute(_NUMBER_ON)


async def follow(connection: Connection, owners: Mapping[int, str]) -> None:
    """The map gives buckets to these shards, in the transaction of `connection`."""
    for bucket, name in sorted(owners.items()):
        await connection.execute(_FOLLOW, bucket, name)


async def hold(catalog: Catalog, move_id: int, runner: int, reason: str, deadline: float) -> None:
    """No runner touches the move from now on, until an operator decides (`resolve`)."""
    async with catalog.pool.connection(deadline) as connection:
        await connection.execute(_HOLD, move_id, reason[:500], runner)


async def let_go(catalog: Catalog, move_id: int, deadline: float) -> bool:
    """A held move is tried again; False when it has ended."""
    async with catalog.pool.connection(deadline) as connection:
        return (await connection.execute(_LET_GO, move_id)) == "UPDATE 1"


async def decide(catalog: Catalog, move_id: int, keeper: Role, deadline: float, *, forced: bool, alone: bool) -> bool:
    """Write down who keeps the bucket of a move; False when it has ended."""
    async with catalog.pool.connection(deadline) as connection:
        return (await connection.execute(_DECIDE, move_id, keeper, forced, alone)) == "UPDATE 1"


async def resolved(
    catalog: Catalog, move: Move, outcome: tuple[str | None, Phase], runner: int, deadline: float
) -> Move | None:
    """The map gives the bucket to the shard in `outcome` (None: it stays), and the move enters its phase.

    None when it is not ours any more, or the operator decided otherwise meanwhile.
    """
    owner, phase = outcome
    values = (move.move_id, phase, owner or move.source, runner, move.keeper, owner is not None)
    async with catalog.pool.connection(deadline) as connection:
        moment = await connection.fetchval(_RESOLVED, *values)
    return None if moment is None else replace(move, phase=phase, cut_over_at=moment, keeper=None, held=None)
