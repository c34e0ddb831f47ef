"""Asking every shard how it is: whether it answers, its version, its size, what it owns."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shards.catalog.shard_map import ShardMap
from shards.errors import ShardError
from shards.postgres.sessions import SessionLimits, open_session
from shards.shard import ShardRecord
from shards.storage import read

CONNECT_TIMEOUT_S: Final = 3.0
_LIMITS: Final = SessionLimits(statement_timeout_s=5.0)


@dataclass(frozen=True)
class Survey:
    """A shard: by the map (`mapped`), and by itself; what only it knows is None when it does not answer."""

    name: str
    state: str
    mapped: tuple[int, ...]
    answers: bool
    detail: str | None = None
    latency_ms: float | None = None
    version: str | None = None
    size_bytes: int | None = None
    readings: int | None = None
    owned: tuple[int, ...] | None = None


async def survey(records: Sequence[ShardRecord], shard_map: ShardMap | None) -> list[Survey]:
    """Every shard, asked at once; one that does not answer takes no longer than a few seconds."""
    owned = shard_map.by_shard if shard_map else {}
    return list(await asyncio.gather(*(_ask(record, tuple(owned.get(record.name, ()))) for record in records)))


async def _ask(record: ShardRecord, mapped: tuple[int, ...]) -> Survey:
    try:
        async with open_session(
            record.name, record.owner_dsn, _LIMITS, connect_timeout_s=CONNECT_TIMEOUT_S
        ) as connection:
            started = time.monotonic()
            version = await connection.fetchval("SHOW server_version")
            latency_ms = (time.monotonic() - started) * 1000
            size = await read.size(connection)
    except ShardError as error:
        return Survey(record.name, record.state, mapped, answers=False, detail=error.detail)
    return Survey(
        record.name,
        record.state,
        mapped,
        answers=True,
        latency_ms=round(latency_ms, 1),
        version=str(version).partition(" ")[0],
        size_bytes=size["size_bytes"],
        readings=size["readings_estimate"],
        owned=tuple(size["buckets"] or ()),
    )
