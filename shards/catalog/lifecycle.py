"""Policies of the lifecycle, and the width of new leaves, in the catalog."""

from typing import Final

from shards.catalog.database import Catalog
from shards.policy import Policy
from shards.postgres.pools import Connection

_ALL: Final = """
SELECT k.name, p.hot, p.archive_after, p.drop_after, p.rollups_for
FROM lifecycle_policy AS p JOIN kind AS k USING (kind_id) WHERE k.state = 'active' ORDER BY kind_id
"""
_SET: Final = """
INSERT INTO lifecycle_policy (kind_id, hot, archive_after, drop_after, rollups_for)
SELECT kind_id, $2, $3, $4, $5 FROM kind WHERE name = $1
ON CONFLICT (kind_id) DO UPDATE
SET hot = excluded.hot, archive_after = excluded.archive_after, drop_after = excluded.drop_after,
    rollups_for = excluded.rollups_for, set_at = now()
"""
_REMOVE: Final = (
    "DELETE FROM lifecycle_policy USING kind AS k WHERE k.kind_id = lifecycle_policy.kind_id AND k.name = $1"
)
_WIDTH: Final = "UPDATE cluster SET leaf_width = $1"


async def policies(catalog: Catalog, deadline: float) -> dict[str, Policy]:
    """Kind -> its policy, of those that have one."""
    async with catalog.pool.connection(deadline) as connection:
        return await policies_in(connection)


async def policies_in(connection: Connection) -> dict[str, Policy]:
    """The same, in a session of the caller's."""
    return {record["name"]: Policy(*record) for record in await connection.fetch(_ALL)}


async def set_policy(connection: Connection, policy: Policy) -> None:
    """From now on; the leader finds it in its next round."""
    await connection.execute(_SET, policy.kind, policy.hot, policy.archive, policy.drop, policy.rollups)


async def remove_policy(connection: Connection, kind: str) -> bool:
    """Nothing more is frozen; False when there was no policy."""
    return await connection.execute(_REMOVE, kind) == "DELETE 1"


async def set_leaf_width(connection: Connection, width: str) -> None:
    """Of leaves that are made from now on."""
    await connection.execute(_WIDTH, width)
