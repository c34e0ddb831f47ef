"""Correcting one stored reading."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import NoMap
from shards.kinds import Kind, Value
from shards.postgres.sessions import BRIEF, owner_session
from shards.storage.correction import Correction
from shards.storage.correction import correct as replace

TIMEOUT_S: Final = 10.0


async def correct(
    catalog: Catalog,
    tenant: int,
    kind: Kind,
    key: tuple[str, datetime],
    changed: Mapping[str, Value],
    reason: str | None,
) -> Correction:
    """Replace some values (column -> value) of a tenant's reading, whose `key` is (device, timestamp), on its shard.

    Refused when there is none.
    """
    deadline = deadline_in(TIMEOUT_S)
    shard_map = await catalog.shard_map(deadline)
    if shard_map is None:
        raise NoMap("the cluster has no shard map yet: repeat the `voltroute init` that was interrupted")
    device_id, moment = key
    bucket = shard_map.bucket(tenant, device_id)
    records = {record.name: record for record in await catalog.shards(deadline)}
    async with owner_session(records[shard_map.owner(bucket)], BRIEF) as connection:
        return await replace(connection, kind, (bucket, tenant, device_id, moment), changed, reason)
