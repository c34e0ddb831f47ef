"""Who a database is: each shard carries its cluster's ID and its own name, and is asked before it is believed."""

from dataclasses import dataclass
from typing import Final

from shards.errors import Refused
from shards.postgres.connections import Connection
from shards.postgres.logins import close_to_public
from shards.postgres.sessions import BRIEF, open_session
from shards.shard import ShardRecord

_PLACE: Final = """
SELECT concat_ws('/', (SELECT system_identifier FROM pg_control_system()), inet_server_addr(), inet_server_port(),
        current_database()) AS place,
    (SELECT system_identifier FROM pg_control_system()) AS system,
    ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer AS timeline,
    to_regclass('public.shard_identity') IS NOT NULL AS has_identity,
    to_regclass('public.owned_bucket') IS NOT NULL AS has_shard,
    to_regclass('public.bucket_map') IS NOT NULL AS has_catalog
"""
_IDENTITY: Final = "SELECT cluster_id::text AS cluster_id, name FROM shard_identity"
_OWNED: Final = "SELECT coalesce(array_agg(bucket ORDER BY bucket), '{}') FROM owned_bucket"
_IN_MOVES: Final = "SELECT count(*) FROM bucket_move"
_SIGN: Final = """
INSERT INTO shard_identity (cluster_id, name) VALUES ($1::text::uuid, $2) ON CONFLICT (singleton) DO NOTHING
"""


@dataclass(frozen=True)
class Identity:
    """What a database says of itself. `place`: the same for two DSNs of one database.

    `system`, `timeline`: of its server, a primary; see shards.postgres.lineage.
    """

    place: str
    has_catalog: bool
    has_shard: bool
    cluster_id: str | None
    name: str | None
    owned: tuple[int, ...]
    moves: int
    system: int
    timeline: int

    def check(self, cluster_id: str | None, name: str) -> None:
        """Refused when the database is another cluster's shard, or another shard (None: no cluster yet)."""
        if self.has_catalog:
            raise Refused(f"{name}: that database is a catalog; a shard needs one of its own")
        if self.cluster_id is not None and self.cluster_id != cluster_id:
            raise Refused(f"{name}: that database is shard {self.name} of another cluster ({self.cluster_id})")
        if self.name is not None and self.name != name:
            raise Refused(f"{name}: that database is shard {self.name} of this cluster already")

    def check_lineage(self, record: ShardRecord) -> None:
        """Refused when the server is an old primary of a registered shard."""
        if record.system == self.system and self.timeline < record.timeline:
            raise Refused(
                f"{record.name}: that server is an old primary: its timeline is {self.timeline}, and {record.timeline} "
                "was seen"
            )


async def ask(name: str, dsn: str) -> Identity:
    """Ask the database behind a DSN who it is. ShardError when it does not answer."""
    async with open_session(name, dsn, BRIEF) as connection:
        place = (await connection.fetch(_PLACE))[0]
        signed = await connection.fetchrow(_IDENTITY) if place["has_identity"] else None
        owned = await connection.fetchval(_OWNED) if place["has_shard"] else []
        moves = await connection.fetchval(_IN_MOVES) if place["has_shard"] else 0
    cluster_id, own = (signed["cluster_id"], signed["name"]) if signed else (None, None)
    return Identity(
        place["place"],
        place["has_catalog"],
        place["has_shard"],
        cluster_id,
        own,
        tuple(owned),
        int(moves),
        place["system"],
        place["timeline"],
    )


async def sign(connection: Connection, cluster_id: str, name: str) -> None:
    """Write down who the database is from now on; Refused when it is somebody else already."""
    await connection.execute(_SIGN, cluster_id, name)
    found = (await connection.fetch(_IDENTITY))[0]
    if (found["cluster_id"], found["name"]) != (cluster_id, name):
        raise Refused(f"{name}: that database is shard {found['name']} of cluster {found['cluster_id']}")


async def close_catalog(catalog_dsn: str) -> None:
    """The catalog holds passwords: nobody but its owner connects to it."""
    async with open_session("catalog", catalog_dsn) as connection:
        await close_to_public(connection)
