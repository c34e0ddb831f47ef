"""What is on the servers of an embedded cluster: its owner, the login of replicas, a database each."""

from typing import Final

from shards.embedded.server import REPLICATION
from shards.embedded.state import CATALOG, DATABASE, OWNER, State
from shards.postgres.logins import scram_sha_256
from shards.postgres.sessions import BRIEF, open_session

_HAS_SCHEMA: Final = "SELECT to_regclass('public.bucket_map') IS NOT NULL"
_HAS_MAP: Final = "SELECT EXISTS (SELECT FROM bucket_map)"
_HAS_ROLE: Final = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)"
_REPLICATION_SQL: Final = "SELECT format('CREATE ROLE %I LOGIN REPLICATION PASSWORD %L', $1::text, $2::text)"
_OWNER_SQL: Final = "SELECT format('CREATE ROLE %I LOGIN CREATEROLE PASSWORD %L', $1::text, $2::text)"


async def registered(state: State) -> dict[str, str]:
    """The shards that the catalog knows, by the state's DSNs; all of them when it has no map yet.

    A server that was added and never registered just runs.
    """
    async with open_session(CATALOG, state.dsn(CATALOG), BRIEF) as connection:
        if not (await connection.fetchval(_HAS_SCHEMA) and await connection.fetchval(_HAS_MAP)):
            return state.shard_dsns()
        known = {record["name"] for record in await connection.fetch("SELECT name FROM shard")}
    return {name: dsn for name, dsn in state.shard_dsns().items() if name in known}


async def make_database(state: State, name: str) -> None:
    """Owner and database on one primary, and the login of its replicas, unless they are there."""
    async with open_session(name, state.superuser_dsn(state.primary(name), "postgres"), BRIEF) as connection:
        if not await connection.fetchval(_HAS_ROLE, OWNER):
            await connection.execute(await connection.fetchval(_OWNER_SQL, OWNER, scram_sha_256(state.owner_password)))
        await connection.execute(f"GRANT pg_monitor TO {OWNER} WITH ADMIN OPTION")
        if state.replication_password and not await connection.fetchval(_HAS_ROLE, REPLICATION):
            secret = scram_sha_256(state.replication_password)
            await connection.execute(await connection.fetchval(_REPLICATION_SQL, REPLICATION, secret))
        if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", DATABASE):
            await connection.execute(f"CREATE DATABASE {DATABASE} OWNER {OWNER}")
    async with open_session(name, state.superuser_dsn(state.primary(name), DATABASE), BRIEF) as connection:
        await connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")  # its owner may not
