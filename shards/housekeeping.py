"""What some router must do now and then: keep partitions ahead of time on every shard."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime

from shards.catalog import deadline_in
from shards.cluster import Cluster
from shards.errors import ShardError
from shards.partitions import extend_runway

ROUND_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Round:
    """What one round did: partitions made by shard, and what failed where. Not `led`: another router keeps house."""

    led: bool
    made: dict[str, int]
    failed: dict[str, str]


async def keep_house(cluster: Cluster) -> Round:
    """One round, if no other router is at it. A shard that is away is reported and left for the next round."""
    deadline = deadline_in(ROUND_TIMEOUT_S)
    made: dict[str, int] = {}
    failed: dict[str, str] = {}
    async with cluster.catalog.housekeeping_lock(deadline) as led:
        if led:
            await asyncio.gather(*(_extend(cluster, name, deadline, made, failed) for name in list(cluster.shards)))
    return Round(led, made, failed)


async def _extend(cluster: Cluster, name: str, deadline: float, made: dict[str, int], failed: dict[str, str]) -> None:
    try:
        async with cluster.shard(name).writer.connection(deadline) as connection:
            made[name] = await extend_runway(connection, datetime.now(UTC), ROUND_TIMEOUT_S)
    except ShardError as error:
        failed[name] = error.detail
