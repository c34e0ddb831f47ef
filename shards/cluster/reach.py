"""How a router reaches a shard and its replicas: which pools there are, with which logins and limits."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from shards.cluster.replica import Replica
from shards.cluster.replicas import ReplicaRules, Replicas
from shards.cluster.shard import Shard
from shards.errors import Unusable
from shards.postgres.dsn import at_address
from shards.postgres.lineage import Lineage, Role
from shards.postgres.options import PoolLimits, PoolOptions
from shards.postgres.pools import ShardPool
from shards.shard import ReplicaRecord, ShardRecord
from shards.storage import rows

# Told when a pool's database becomes unavailable, for another cause, or available again (None): (shard, login, error).
Changed = Callable[[str, str, Unusable | None], None]


@dataclass(frozen=True)
class Reach:
    """What all pools of a router have in common. `query_timeout_s`: for statements other than writes."""

    limits: PoolLimits
    query_timeout_s: float
    changed: Changed
    rules: ReplicaRules

    def shard(self, cluster_id: str | None, record: ShardRecord, lineage: Lineage) -> Shard:
        """Pools of a shard, none of them open yet; its replicas are still to be adopted."""
        identity = f"{cluster_id} {record.name}"
        writing = PoolOptions("voltroute writer", None, identity, self.changed, writes=True, lineage=lineage)
        reading = self._reading(identity, lineage)
        of_one = None if record.monitor_dsn is None else self._one(record.name, record.monitor_dsn, identity, lineage)
        primary = None if record.monitor_dsn is None else self._one(record.name, record.monitor_dsn, identity, lineage)
        return Shard(
            record,
            writer=ShardPool(record.name, record.writer_dsn, self.limits, writing),
            reader=ShardPool(record.name, record.reader_dsn, self._queries, reading),
            replicas=Replicas(primary, lineage, lambda its: self._replica(record, its, identity, lineage), self.rules),
            monitor=of_one,
        )

    @property
    def _queries(self) -> PoolLimits:
        return replace(self.limits, statement_timeout_s=self.query_timeout_s)

    def _reading(self, identity: str, lineage: Lineage, role: Role = Role.PRIMARY) -> PoolOptions:
        return PoolOptions("voltroute reader", rows.SESSION, identity, self.changed, lineage=lineage, role=role)

    def _one(self, name: str, dsn: str, identity: str, lineage: Lineage, role: Role = Role.PRIMARY) -> ShardPool:
        """A connection that asks the server about itself, however busy the others are."""
        limits = replace(self._queries, min_size=0, max_size=1)
        return ShardPool(
            name, dsn, limits, PoolOptions("voltroute monitor", None, identity, lineage=lineage, role=role)
        )

    def _replica(self, record: ShardRecord, its: ReplicaRecord, identity: str, lineage: Lineage) -> Replica:
        name = f"{record.name}/{its.name}"
        read_dsn = at_address(record.reader_dsn, its.address)
        watch_dsn = at_address(record.monitor_dsn or record.reader_dsn, its.address)
        options = self._reading(identity, lineage, Role.REPLICA)
        reader = ShardPool(name, read_dsn, replace(self._queries, min_size=0), options)
        return Replica(its, reader, self._one(name, watch_dsn, identity, lineage, Role.REPLICA), lineage)
