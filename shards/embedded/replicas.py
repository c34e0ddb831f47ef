"""The replicas of an embedded cluster: made, started behind their primaries, and told to the catalog."""

import asyncio
from typing import Final

from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.embedded.binaries import server_account
from shards.embedded.server import Server
from shards.embedded.standby import follow, keep_wal_for
from shards.embedded.state import CATALOG, State
from shards.errors import ClusterError, ShardError
from shards.operations.replicas import add_replica, remove_replica
from shards.shard import ReplicaRecord, ShardRecord

TIMEOUT_S: Final = 10.0


async def prepare(state: State, server: Server) -> None:
    """Make a replica of a shard's primary, which runs; or have an old primary follow it. ShardError, MachineError."""
    primary = state.primary(state.shard_of(server.name))
    await keep_wal_for(server, state.superuser_dsn(primary, "postgres"))
    await asyncio.to_thread(follow, server, state.replication_password, server_account())


async def register(state: State) -> bool:
    """Have the catalog know the replicas as they are now; False while one of them does not receive yet."""
    catalog = Catalog(state.dsn(CATALOG))
    try:
        records = await catalog.shards(deadline_in(TIMEOUT_S))
        return all([await _register(catalog, state, record) for record in records])
    except (ShardError, ClusterError):
        return False
    finally:
        await catalog.close()


async def _register(catalog: Catalog, state: State, shard: ShardRecord) -> bool:
    """Of one shard. What is no server of ours is an operator's, and left as it is."""
    wanted = {name: f"127.0.0.1:{state.ports[name]}" for name in state.replicas(shard.name)}
    known = {each.name: each.address for each in shard.replicas if each.name in state.ports}
    for name in (name for name, address in known.items() if address != wanted.get(name)):
        await remove_replica(catalog, shard.name, name)
    missing = [ReplicaRecord(name, address) for name, address in wanted.items() if known.get(name) != address]
    return all([await _add(catalog, shard.name, each) for each in missing])


async def _add(catalog: Catalog, shard: str, replica: ReplicaRecord) -> bool:
    try:
        await add_replica(catalog, shard, replica)
    except (ShardError, ClusterError):
        return False
    return True
