"""Adding a shard to a cluster, emptying one, taking one out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from shards import migrate
from shards.catalog import Catalog, ShardRecord, check_names, deadline_in
from shards.disk import disk_free
from shards.driver import translated
from shards.dsn import check_dsn
from shards.errors import ClusterError, Refused
from shards.logins import Logins, make_logins, new_logins
from shards.sessions import SessionLimits, owner_session

DISK_FREE_MIN_BYTES: Final = 2**30
LOCKS_MIN: Final = 128
_LIMITS: Final = SessionLimits(statement_timeout_s=30)
_FACTS: Final = """
SELECT pg_is_in_recovery() AS replica,
    pg_has_role(current_user, 'pg_read_all_stats', 'usage') AS sees_transactions,
    has_schema_privilege('public', 'CREATE') AS may_create,
    current_setting('max_locks_per_transaction')::int AS locks,
    current_setting('server_encoding') AS encoding,
    extract(epoch FROM clock_timestamp())::float8 AS clock,
    to_regclass('public.owned_bucket') IS NOT NULL AS has_schema
"""
_ROLES: Final = """
SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user
"""
_HOLDS: Final = "SELECT (SELECT count(*) FROM owned_bucket) + (SELECT count(*) FROM bucket_move)"


@dataclass(frozen=True)
class Finding:
    """A check of a database that is to become a shard."""

    name: str
    ok: bool
    found: str


async def examine(name: str, dsn: str, catalog: Catalog) -> list[Finding]:
    """What a new shard must be: new enough, writable, on time, with room. ShardError when it does not answer."""
    record = ShardRecord(name, "active", dsn, dsn, dsn)
    async with owner_session(record, _LIMITS) as connection:
        facts = (await connection.fetch(_FACTS))[0]
        version = connection.get_server_version()
        may_make_roles = bool(await connection.fetchval(_ROLES))
        holds = await connection.fetchval(_HOLDS) if facts["has_schema"] else 0
        disk = await disk_free(connection)
    async with catalog.pool.connection(deadline_in(5)) as connection:
        clock = await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
    skew = float(facts["clock"]) - float(clock)
    room = disk is None or disk >= DISK_FREE_MIN_BYTES
    return [
        Finding("version", version.major >= migrate.SERVER_VERSION_MIN, f"PostgreSQL {version.major}"),
        Finding("primary", not facts["replica"], "a replica" if facts["replica"] else "accepts writes"),
        Finding("encoding", facts["encoding"] == "UTF8", facts["encoding"]),
        Finding("privileges", facts["may_create"] and may_make_roles, "may create tables and roles"),
        Finding("statistics", facts["sees_transactions"], "sees others' transactions (pg_read_all_stats)"),
        Finding("settings", facts["locks"] >= LOCKS_MIN, f"max_locks_per_transaction = {facts['locks']}"),
        Finding("clock", abs(skew) < 1, f"{skew:+.2f} s beside the catalog's"),
        Finding("disk", room, "unknown" if disk is None else f"{disk / 2**30:.1f} GiB free"),
        Finding("empty", not holds, f"{holds} buckets or moves" if holds else "owns nothing"),
    ]


async def add_shard(catalog: Catalog, name: str, dsn: str, weight: float, timeout_s: float = 60.0) -> list[Finding]:
    """Check, migrate and register an empty shard; it owns nothing until a rebalance.

    Refused when a check fails, or the name or the database is a shard already. What was interrupted can be repeated.
    """
    check_names({name: dsn})
    check_dsn(dsn)
    deadline = deadline_in(timeout_s)
    info = await catalog.info(deadline)
    known = {record.name: record for record in await catalog.shards(deadline)}
    if name in known:
        message = f"{name} is a shard already"
        raise Refused(message)
    if any(record.owner_dsn == dsn for record in known.values()):
        message = "that database is a shard of this cluster already, under another name"
        raise Refused(message)
    findings = await examine(name, dsn, catalog)
    wrong = [f"{finding.name}: {finding.found}" for finding in findings if not finding.ok]
    if wrong:
        raise Refused(f"{name} cannot become a shard: {'; '.join(wrong)}")
    report = (await migrate.migrate(None, {name: dsn}, timeout_s))[0]
    if report.error:
        raise ClusterError(f"{name}: {report.error}")
    logins = logins_of(info.cluster_id, known)
    with translated(name):
        await make_logins(dsn, logins, timeout_s)
    writer, reader = logins.dsns(dsn)
    await catalog.register(ShardRecord(name, "active", dsn, writer, reader), deadline)
    await catalog.set_shard_weight(name, weight, deadline)
    return findings


def logins_of(cluster_id: str, known: Mapping[str, ShardRecord]) -> Logins:
    """The logins that the registered shards already use, or new ones."""
    fresh = new_logins(cluster_id)
    for record in known.values():
        writer, reader = urlsplit(record.writer_dsn), urlsplit(record.reader_dsn)
        return Logins(fresh.suffix, unquote(writer.password or ""), unquote(reader.password or ""))
    return fresh


async def remove_shard(catalog: Catalog, name: str, timeout_s: float = 10.0) -> None:
    """Take an empty shard out of the catalog. Refused while it owns buckets or takes part in a move."""
    deadline = deadline_in(timeout_s)
    records = {record.name for record in await catalog.shards(deadline)}
    if name not in records:
        raise Refused(f"there is no shard {name}; there are {', '.join(sorted(records))}")
    if await catalog.remove_shard(name, deadline):
        return
    shard_map = await catalog.shard_map(deadline)
    owned = len(shard_map.by_shard.get(name, ())) if shard_map else 0
    if owned:
        raise Refused(f"{name} owns {owned} buckets: empty it first, with `voltroute shard drain {name}`")
    raise Refused(f"{name} takes part in a move that has not ended: see `voltroute rebalance status`")
