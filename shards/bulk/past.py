"""What a shard has from before the cluster is packed first, so that what is loaded has packed time to go to.

The leaf that holds everything before the cluster's first month is frozen when it is over, whatever stays hot by policy:
no device is there yet, or only one that sends its past.
"""

from collections.abc import Mapping
from typing import Final

from shards.kinds import Kind
from shards.postgres.pools import Connection
from shards.tiers import steps
from shards.tiers.due import Leaf, Tiers
from shards.tiers.holding import held
from shards.tiers.state import look, look_again
from shards.tiers.steps import Kept
from shards.tiers.watching import Watch, watch_nothing

_OVER: Final = "SELECT $1::timestamptz <= clock_timestamp()"


async def pack_past(
    connection: Connection, kind: Kind, summed: Kind | None, watch: Watch = watch_nothing
) -> Mapping[int, str]:
    """Bucket -> why it could not be done now. `summed`: the kind, if it has rollups."""
    failed: dict[int, str] = {}
    for tiers in await look(connection, {kind.name: kind.late}):
        if _past(tiers) is None:
            continue
        async with held(connection, tiers.bucket) as is_ours:
            if not is_ours:
                failed[tiers.bucket] = "another step of its lifecycle is under way"
                continue
            for found in await look_again(connection, tiers, kind.late):
                await _pack(connection, found, summed, watch)
    return failed


def _past(tiers: Tiers) -> Leaf | None:
    first = next(iter(tiers.leaves), None)
    return first if first is not None and first.lower is None and first.upper > tiers.packed_until else None


async def _pack(connection: Connection, tiers: Tiers, summed: Kind | None, watch: Watch) -> None:
    leaf = _past(tiers)
    if leaf is None or not await connection.fetchval(_OVER, leaf.upper):
        return
    kept = await Kept.of(connection, tiers, watch, summed)
    if leaf.upper > tiers.frozen_until:
        await steps.freeze(kept, leaf)
    while await steps.pack_some(kept, leaf):
        pass
    await steps.publish(kept, leaf)
