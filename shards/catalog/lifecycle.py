"""Policies of the lifecycle, and the width of new leaves, in the catalog."""

from datetime import timedelta
from typing import Final

from shards.catalog.database import Catalog
from shards.policy import Policy
from shards.postgres.pools import Connection

_ALL: Final = """
SELECT k.name, p.hot FROM lifecycle_policy AS p JOIN kind AS k USING (kind_id) WHERE k.state = 'active' ORDER BY kind_id
"""
_SET: Final = """
INSERT INTO lifecycle_policy (kind_id, hot) SELECT kind_id, $2 FROM kind WHERE name = $1
ON CONFLICT (kind_id) DO UPDATE SET hot = excluded.hot, set_at = now()
"""
_REMOVE: Final = (
    "DELETE FROM lifecycle_policy USING kind AS k WHERE k.kind_id = lifecycle_policy.kind_id AND k.name = $1"
)
_WIDTH: Final = "UPDATE cluster SET leaf_width = $1"


async def policies(catalog: Catalog, deadline: float) -> dict[str, Policy]:
    """Kind -> its policy, of those that have one."""
    async with catalog.pool.connection(deadline) as connection:
        records = await connection.fetch(_ALL)
    return {record["name"]: Policy(record["name"], record["hot"]) for record in records}


async def set_policy(connection: Connection, kind: str, hot: timedelta) -> None:
    """From now on; the leader finds it in its next round."""
    await connection.execute(_SET, kind, hot)


async def remove_policy(connection: Connection, kind: str) -> bool:
    """Nothing more is frozen; False when there was no policy."""
    return await connection.execute(_REMOVE, kind) == "DELETE 1"


async def set_leaf_width(connection: Connection, width: str) -> None:
    """Of leaves that are made from now on."""
    await connection.execute(_WIDTH, width)
