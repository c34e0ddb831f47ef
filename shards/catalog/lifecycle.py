"""Policies of the lifecycle, and the width of new leaves, in the catalog."""

from typing import Final

from shards.catalog.database import Catalog
from shards.policy import Policies, Policy
from shards.postgres.connections import Connection

_ALL: Final = """
SELECT k.name, p.hot, p.archive_after, p.drop_after, p.rollups_for, p.tablespace
FROM lifecycle_policy AS p JOIN kind AS k USING (kind_id) WHERE k.state = 'active' ORDER BY kind_id
"""
_OWN: Final = """
SELECT k.name, p.hot, p.archive_after, p.drop_after, p.rollups_for, p.tablespace,
    t.name AS tenant, t.first_bucket, t.bucket_count
FROM tenant_policy AS p JOIN kind AS k USING (kind_id) JOIN tenant AS t USING (tenant_id)
WHERE k.state = 'active' AND t.first_bucket IS NOT NULL ORDER BY kind_id, tenant_id
"""
_SET: Final = """
INSERT INTO lifecycle_policy (kind_id, hot, archive_after, drop_after, rollups_for, tablespace)
SELECT kind_id, $2, $3, $4, $5, $6 FROM kind WHERE name = $1
ON CONFLICT (kind_id) DO UPDATE
SET hot = excluded.hot, archive_after = excluded.archive_after, drop_after = excluded.drop_after,
    rollups_for = excluded.rollups_for, tablespace = excluded.tablespace, set_at = now()
"""
_SET_OWN: Final = """
INSERT INTO tenant_policy (kind_id, tenant_id, hot, archive_after, drop_after, rollups_for, tablespace)
SELECT k.kind_id, t.tenant_id, $3, $4, $5, $6, $7
FROM kind AS k CROSS JOIN tenant AS t WHERE k.name = $1 AND t.name = $2
ON CONFLICT (kind_id, tenant_id) DO UPDATE
SET hot = excluded.hot, archive_after = excluded.archive_after, drop_after = excluded.drop_after,
    rollups_for = excluded.rollups_for, tablespace = excluded.tablespace, set_at = now()
"""
_REMOVE_OWN: Final = """
DELETE FROM tenant_policy AS p USING kind AS k, tenant AS t
WHERE k.kind_id = p.kind_id AND t.tenant_id = p.tenant_id AND k.name = $1 AND t.name = $2
"""
_REMOVE: Final = (
    "DELETE FROM lifecycle_policy USING kind AS k WHERE k.kind_id = lifecycle_policy.kind_id AND k.name = $1"
)
_WIDTH: Final = "UPDATE cluster SET leaf_width = $1"


async def policies(catalog: Catalog, deadline: float) -> Policies:
    """All there are."""
    async with catalog.pool.connection(deadline) as connection:
        return await policies_in(connection)


async def policies_in(connection: Connection) -> Policies:
    """The same, in a session of the caller's."""
    kinds = {record["name"]: Policy(*record) for record in await connection.fetch(_ALL)}
    own = []
    for *spans, first, count in await connection.fetch(_OWN):
        own.append((range(first, first + count), Policy(*spans)))
    return Policies(kinds, own)


async def set_policy(connection: Connection, policy: Policy) -> None:
    """From now on; the leader finds it in its next round."""
    spans = (policy.hot, policy.archive, policy.drop, policy.rollups, policy.tablespace)
    if policy.tenant is None:
        await connection.execute(_SET, policy.kind, *spans)
    else:
        await connection.execute(_SET_OWN, policy.kind, policy.tenant, *spans)


async def remove_policy(connection: Connection, kind: str, tenant: str | None = None) -> bool:
    """Nothing more is frozen, or of a tenant as the kind's policy says; False when there was no policy."""
    if tenant is not None:
        return await connection.execute(_REMOVE_OWN, kind, tenant) == "DELETE 1"
    return await connection.execute(_REMOVE, kind) == "DELETE 1"


async def set_leaf_width(connection: Connection, width: str) -> None:
    """Of leaves that are made from now on."""
    await connection.execute(_WIDTH, width)
