"""What each bucket holds and takes, by PostgreSQL's own counts: for plans."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from shards.catalog.shard_map import ShardMap
from shards.moves.placement import Load
from shards.postgres.sessions import BRIEF, owner_session
from shards.shard import ShardRecord
from shards.storage import tables

_WRITTEN_SINCE: Final = """
SELECT (SELECT count(*) FROM meter_telemetry_history WHERE bucket = ANY($1::smallint[]) AND ingested_at >= $2)
    + (SELECT count(*) FROM vehicle_telemetry_history WHERE bucket = ANY($1::smallint[]) AND ingested_at >= $2)
"""

_Counts = Mapping[int, tuple[int, int, int]]


async def bucket_loads(records: Mapping[str, ShardRecord], shard_map: ShardMap, sample_s: float) -> list[Load]:
    """A load for each bucket, as its owner has it. Rates are measured over `sample_s` seconds (0: not at all).

    ShardError when a shard does not answer.
    """
    first = await _all(records, shard_map)
    if sample_s > 0:
        await asyncio.sleep(sample_s)
        second = await _all(records, shard_map)
    else:
        second = first
    loads = []
    for bucket in range(shard_map.bucket_count):
        rows, size, inserted = second.get(bucket, (0, 0, 0))
        before = first.get(bucket, (0, 0, inserted))[2]
        loads.append(Load(rows, size, max(inserted - before, 0) / sample_s if sample_s > 0 else 0.0))
    return loads


async def _all(records: Mapping[str, ShardRecord], shard_map: ShardMap) -> _Counts:
    parts = await asyncio.gather(*(_one(records[name], mine) for name, mine in shard_map.by_shard.items()))
    return {bucket: counts for part in parts for bucket, counts in part.items()}


async def _one(record: ShardRecord, buckets: Sequence[int]) -> _Counts:
    async with owner_session(record, BRIEF) as connection:
        found = await tables.counts(connection)
    return {bucket: found[bucket] for bucket in buckets if bucket in found}


async def written_since(records: Mapping[str, ShardRecord], shard_map: ShardMap, since: object) -> int:
    """Readings ingested since then, over all shards, each bucket counted on its owner."""

    async def count(name: str, buckets: Sequence[int]) -> int:
        async with owner_session(records[name], BRIEF) as connection:
            return int(await connection.fetchval(_WRITTEN_SINCE, buckets, since))

    return sum(await asyncio.gather(*(count(name, mine) for name, mine in shard_map.by_shard.items())))
