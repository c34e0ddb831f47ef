"""Planning a rebalance for a cluster as it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from shards.catalog import tenants
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import InvalidArgument, NoCluster
from shards.moves import rebalances
from shards.moves.loads import bucket_loads
from shards.moves.placement import Load, Place, Plan, costs_of, make_plan
from shards.shard import ShardRecord, ShardState

TIMEOUT_S: Final = 10.0
SAMPLE_S: Final = 5.0
COPY_RATE_ASSUMED: Final = 20 * 2**20  # bytes a second, before any move was measured
MEASURES: Final = ("bytes", "rate")


@dataclass(frozen=True)
class Planned:
    """A plan, the loads behind it, the epoch it holds for, the shards, and the copy rate of earlier moves."""

    plan: Plan
    loads: list[Load]
    epoch: int
    shards: list[ShardRecord]
    copy_rate: float | None

    @property
    def size_bytes(self) -> int:
        """What the moves copy."""
        return sum(self.loads[move.bucket].size_bytes for move in self.plan.moves)

    @property
    def estimated_s(self) -> float:
        """How long that takes, one move after the other."""
        return self.size_bytes / (self.copy_rate or COPY_RATE_ASSUMED) + len(self.plan.moves)


async def plan_now(catalog: Catalog, by: str, threshold: float, weights: Mapping[str, float]) -> Planned:
    """A plan that evens out `by` "bytes" or "rate" (measured for 5 s). InvalidArgument for unknown names."""
    if by not in MEASURES:
        raise InvalidArgument(f"--by {by}: bytes or rate")
    deadline = deadline_in(TIMEOUT_S)
    records = await catalog.shards(deadline)
    shard_map = await catalog.shard_map(deadline)
    if shard_map is None:
        raise NoCluster("the catalog has no shard map: `voltroute init` was not finished")
    unknown = weights.keys() - {record.name for record in records}
    if unknown:
        raise InvalidArgument(f"--weight: there is no shard {', '.join(sorted(unknown))}")
    loads = await bucket_loads({r.name: r for r in records}, shard_map, SAMPLE_S if by == "rate" else 0.0)
    places = [Place(r.name, weights.get(r.name, r.weight), r.state is ShardState.DRAINING) for r in records]
    made = make_plan(shard_map.owners, costs_of(loads, by), places, threshold, await tenants.pins(catalog, deadline))
    return Planned(made, loads, shard_map.epoch, records, await rebalances.copy_rate(catalog, deadline_in(TIMEOUT_S)))
