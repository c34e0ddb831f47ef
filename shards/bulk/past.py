"""What a shard has from before the cluster is packed first, so that what is loaded has packed time to go to.

The leaf that holds everything before the cluster's first month is frozen when it is over, whatever stays hot by policy:
no device is there yet, or only one that sends its past.
"""

from typing import Final

from shards.kinds import Kind
from shards.postgres.connections import Connection
from shards.tiers import steps
from shards.tiers.due import Leaf, Tiers
from shards.tiers.state import look_again
from shards.tiers.steps import Kept
from shards.tiers.watching import Watch, watch_nothing

_OVER: Final = "SELECT $1::timestamptz <= clock_timestamp()"
_TABLE: Final = """
SELECT table_oid FROM bucket_table WHERE bucket = $1 AND kind = $2 AND role = 'history' AND NOT detaching
"""


async def pack_past(
    connection: Connection, bucket: int, kind: Kind, summed: Kind | None, watch: Watch = watch_nothing
) -> None:
    """Of one bucket, which the caller holds. `summed`: the kind, if it has rollups."""
    oid = await connection.fetchval(_TABLE, bucket, kind.name)
    for tiers in await look_again(connection, Tiers(bucket, kind.name, [], table_oid=oid or 0), kind.late):
        leaf = _past(tiers)
        if leaf is None or not await connection.fetchval(_OVER, leaf.upper):
            continue
        kept = await Kept.of(connection, tiers, watch, summed)
        if leaf.upper > tiers.frozen_until:
            await steps.freeze(kept, leaf)
        while await steps.pack_some(kept, leaf):
            pass
        await steps.publish(kept, leaf)


def _past(tiers: Tiers) -> Leaf | None:
    first = next(iter(tiers.leaves), None)
    return first if first is not None and first.lower is None and first.upper > tiers.packed_until else None
