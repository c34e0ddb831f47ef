"""What the databases really hold."""

from collections.abc import Mapping
from datetime import datetime

import asyncpg

from shards.kinds import KINDS
from shards.storage.packing import readings
from shards.storage.tiers import shape_of


async def fetch(dsn: str, sql: str, *arguments: object) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(sql, *arguments)
    finally:
        await connection.close()


async def execute(dsn: str, sql: str, *arguments: object) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql, *arguments)
    finally:
        await connection.close()


async def stored(shards: Mapping[str, str]) -> list[tuple[str, str, datetime]]:
    """(shard, device, timestamp) of every reading of every shard, in whatever tier.

    A leaf that is packed may still be there, while a snapshot of before is open somewhere, and days may be packed that
    nobody reads yet.
    """
    rows = []
    for name, dsn in shards.items():
        for kind in KINDS:
            packed = readings(shape_of(kind), kind.packed, ())
            hot = "WHERE tableoid NOT IN (SELECT table_oid FROM packed_leaf)"
            read = f"WHERE timestamp < (SELECT packed_until FROM tier WHERE kind = '{kind.name}' AND bucket = r.bucket)"
            sql = " UNION ALL ".join(
                f"SELECT {kind.id_column} AS device, timestamp FROM {each} AS r {which}"
                for each, which in ((kind.history, hot), (kind.late, ""), (f"({packed})", read))
            )
            rows += [(name, record["device"], record["timestamp"]) for record in await fetch(dsn, sql)]
    return rows


async def statuses(shards: Mapping[str, str]) -> dict[str, datetime]:
    """Device -> last_updated, over all shards; a device on two shards is an error."""
    found: dict[str, datetime] = {}
    for dsn in shards.values():
        for kind in KINDS:
            for record in await fetch(dsn, f"SELECT {kind.id_column} AS device, last_updated FROM {kind.status}"):
                assert record["device"] not in found
                found[record["device"]] = record["last_updated"]
    return found


async def wipe(shards: Mapping[str, str], catalog: str | None = None) -> None:
    """Empty all tables."""
    tables = ", ".join(table for kind in KINDS for table in (kind.history, kind.late, kind.packed, kind.status))
    for dsn in shards.values():
        await execute(dsn, f"TRUNCATE {tables}")
    if catalog is not None:
        await execute(catalog, "TRUNCATE pairing")
