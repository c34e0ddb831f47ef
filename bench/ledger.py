"""The proof at the end of every measurement: what was acknowledged is stored, once, and nothing else is."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import asyncpg

from bench.workload import Key


class LedgerError(Exception):
    """Readings were lost or stored twice: the measurement counts for nothing, whatever its speed."""


@dataclass(frozen=True)
class Proof:
    """Numbers of readings. `unconfirmed` were stored although their request got no 2xx, which is allowed."""

    acknowledged: int
    stored: int
    unconfirmed: int


async def prove(
    shards: Mapping[str, str], table: str, prefix: str, acknowledged: Collection[Key], sent: Collection[Key]
) -> Proof:
    """Compare the keys of all rows of devices `prefix...` with what was acknowledged and sent.

    LedgerError when one is missing, doubled or foreign.
    """
    parts = await asyncio.gather(*(_keys(dsn, table, prefix) for dsn in shards.values()))
    rows = [key for part in parts for key in part]
    stored = set(rows)
    if len(stored) != len(rows):
        message = f"{len(rows) - len(stored)} readings are stored twice"
        raise LedgerError(message)
    missing = set(acknowledged) - stored
    if missing:
        message = f"{len(missing)} acknowledged readings are missing, {min(missing)} among them"
        raise LedgerError(message)
    foreign = stored - set(sent)
    if foreign:
        message = f"{len(foreign)} stored readings were never sent, {min(foreign)} among them"
        raise LedgerError(message)
    return Proof(len(acknowledged), len(stored), len(stored) - len(set(acknowledged)))


async def _keys(dsn: str, table: str, prefix: str) -> list[Key]:
    connection = await asyncpg.connect(dsn)
    try:
        sql = f"SELECT vehicle_id, timestamp FROM {table} WHERE vehicle_id >= $1 AND vehicle_id < $2"
        return [(row[0], row[1]) for row in await connection.fetch(sql, f"{prefix}-", f"{prefix}.")]
    finally:
        await connection.close()
