"""How far a bucket's readings are frozen, packed, sealed and archived, and its sums, as they go with a move."""

from typing import Final

from shards.moves.carrier import Direction, listed, staging_of
from shards.moves.pipe import pipe
from shards.moves.throttle import Passed, at_full_speed
from shards.postgres.connections import Connection
from shards.postgres.sql import quote_identifier

_TIER: Final = (
    "bucket", "kind", "frozen_until", "frozen_at", "packed_until", "packed_at", "packed_readings", "rolled_until",
    "rolled_of", "sealed_until", "archived", "summed_since",
)  # fmt: skip
_HORIZONS: Final = """
SELECT kind, frozen_until, packed_until, sealed_until, archived::text FROM tier WHERE bucket = $1 ORDER BY kind
"""
_SEALED: Final = "SELECT sealed_until FROM tier WHERE bucket = $1 AND kind = $2 AND sealed_until > '1000-01-01'"
_INSERT_TIER: Final = (
    f"INSERT INTO tier ({', '.join(_TIER)}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
)


async def carry_horizons(bucket: int, giver: Connection, taker: Connection) -> None:
    """What is frozen and packed of a bucket, inside the taker's transaction. It does not change during a move."""
    await taker.execute("DELETE FROM tier WHERE bucket = $1", bucket)
    for record in await giver.fetch("SELECT * FROM tier WHERE bucket = $1", bucket):
        await taker.execute(_INSERT_TIER, *(record[name] for name in _TIER))


async def carry_sealed(direction: Direction, passed: Passed = at_full_speed) -> None:
    """Sums of sealed time that the taker lacks, inside its transaction: of those nobody could make any anew."""
    giver, taker, bucket = direction.giver, direction.taker, direction.bucket
    for kind in direction.kinds:
        sealed_until = await giver.fetchval(_SEALED, bucket, kind.name)
        if sealed_until is None:
            continue
        for each in kind.as_rollups:
            columns, table = listed(each.status_columns), quote_identifier(each.status)
            staging = staging_of(each.status)
            await taker.execute(f"CREATE TEMP TABLE IF NOT EXISTS {staging} (LIKE {table}) ON COMMIT DELETE ROWS")
            time = "day::timestamp AT TIME ZONE 'UTC'" if "day" in each.status_columns else "at"
            query = f"SELECT {columns} FROM {table} WHERE bucket = $1 AND {time} < $2"
            await pipe(giver, query, (bucket, sealed_until), taker, staging, each.status_columns, passed)
            await taker.execute(
                f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {staging} ON CONFLICT DO NOTHING"
            )
            await taker.execute(f"TRUNCATE {staging}")


async def forget_rollups(bucket: int, connection: Connection) -> None:
    """What came by key and content, whatever its `ingested_at`, may not be in the sums there: they are made anew."""
    await connection.execute("UPDATE tier SET rolled_of = NULL WHERE bucket = $1", bucket)


async def have_same_horizons(bucket: int, giver: Connection, taker: Connection) -> bool:
    """Whether both sides have frozen and packed the same of a bucket, as they have while its move is recorded."""
    sides = [await connection.fetch(_HORIZONS, bucket) for connection in (giver, taker)]
    return [tuple(record) for record in sides[0]] == [tuple(record) for record in sides[1]]
