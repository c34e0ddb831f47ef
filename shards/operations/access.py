"""Checks of who is let in, and of what keeps tenants apart."""

from datetime import UTC, datetime, timedelta
from typing import Final

from shards.catalog import keys
from shards.catalog.database import Catalog
from shards.catalog.keys import KeyRecord
from shards.operations.finding import Finding
from shards.postgres.connections import Connection
from shards.postgres.dsn import login_of
from shards.postgres.logins import COUNTS_NO_STATEMENTS
from shards.shard import ShardRecord

EXPIRES_SOON: Final = timedelta(days=7)
_APART: Final = """
SELECT
    (SELECT coalesce(array_agg(r.root ORDER BY r.lock_order), '{}') FROM every_root AS r
     JOIN pg_class AS c ON c.oid = to_regclass('public.' || r.root)
     WHERE r.ready AND (NOT c.relrowsecurity OR NOT EXISTS (
         SELECT FROM pg_policy AS p
         WHERE p.polrelid = c.oid AND p.polname = 'one_tenant'
             AND (SELECT oid FROM pg_roles WHERE rolname = $1) = ANY(p.polroles)
     ))) AS open,
    (SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = $1) AS above
"""
_MONITORS: Final = "SELECT pg_has_role(oid, 'pg_monitor', 'usage') FROM pg_roles WHERE rolname = $1"
_SERVES: Final = "SELECT set_config('voltroute.tenant', '-1', false)"
_SERVED: Final = "SELECT current_setting('voltroute.tenant', true)"


async def keys_of(catalog: Catalog, deadline: float) -> Finding:
    """Whether anybody is let in, and which keys end soon."""
    found = await keys.listed(catalog, None, deadline)
    valid = [key for key in found if key.state == "valid"]
    if not found:
        return Finding("keys", ok=True, found="none was ever made: routers serve everybody, and only on loopback")
    if not valid:
        words = "all are revoked or expired: nobody is let in"
        return Finding("keys", ok=False, found=words, remedy="voltroute key create")
    text = f"{len(valid)} valid, of {len({key.tenant for key in valid})} tenants"
    ending = [key for key in valid if _ends_soon(key)]
    if ending:
        text += f"; soon expire {', '.join(f'{key.key_id} ({key.expires_at:%Y-%m-%d})' for key in ending[:5])}"
    return Finding("keys", not ending, text, "make new ones with `voltroute key create` and hand them over in time")


def _ends_soon(key: KeyRecord) -> bool:
    return key.expires_at is not None and key.expires_at < datetime.now(UTC) + EXPIRES_SOON


async def apart(record: ShardRecord, connection: Connection) -> Finding:
    """As the owner: whether row-level security stands behind every read of the query login."""
    if not record.has_tenants:
        words = "the reader's login sees the default tenant alone"
        return Finding(f"{record.name} tenants", ok=False, found=words, remedy="voltroute migrate up")
    found = (await connection.fetch(_APART, login_of(record.reader_dsn)))[0]
    wrong = [f"{root} has no policy for the reader" for root in found["open"]]
    wrong += ["the reader's login is above row-level security"] if found["above"] else []
    words = "; ".join(wrong) if wrong else "a session reads one tenant"
    words += "; the login of routers of before is there" if record.old_reader_dsn is not None else ""
    return Finding(
        f"{record.name} tenants", not wrong, words, "voltroute migrate up; ALTER ROLE ... NOSUPERUSER NOBYPASSRLS"
    )


async def seen(record: ShardRecord, connection: Connection) -> Finding:
    """As the owner: whether the monitor's login may read PostgreSQL's statistics."""
    name = f"{record.name} statistics"
    if record.monitor_dsn is None:
        return Finding(name, ok=False, found="there is no login that reads them", remedy="voltroute migrate up")
    login = login_of(record.monitor_dsn)
    if not await connection.fetchval(_MONITORS, login):
        words = "the monitor's login may not read them"
        return Finding(name, ok=False, found=words, remedy=f"GRANT pg_monitor TO {login}")
    if await connection.fetchval(COUNTS_NO_STATEMENTS):
        words = "pg_stat_statements is loaded, and not made in this database"
        return Finding(name, ok=False, found=words, remedy="CREATE EXTENSION pg_stat_statements, as a superuser there")
    return Finding(name, ok=True, found="the monitor's login reads them")


async def kept(name: str, connection: Connection) -> Finding:
    """As the reader: whether a session keeps what it is told; through a pooler that shares sessions it does not."""
    await connection.execute(_SERVES)
    served = await connection.fetchval(_SERVED)
    words = "a session keeps its tenant" if served == "-1" else "a session forgets its tenant between two statements"
    remedy = "something in between shares sessions (transaction pooling): connect directly, or pool whole sessions"
    return Finding(f"{name} sessions", served == "-1", words, remedy)
