"""Adding a shard to a cluster, weighing one, taking one out."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final
from urllib.parse import unquote, urlsplit

from shards.catalog import database, kinds, tenants
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import Cause, Refused, SchemaError, ShardError, ShardUnavailable
from shards.operations.finding import Finding
from shards.operations.identity import Identity, ask, sign
from shards.operations.shape import bring
from shards.postgres import migrate
from shards.postgres.disk import disk_free
from shards.postgres.dsn import check_dsn
from shards.postgres.logins import Logins, make_logins, new_logins
from shards.postgres.sessions import BRIEF, open_session
from shards.shard import ShardRecord, check_name

TIMEOUT_S: Final = 10.0
MIGRATE_TIMEOUT_S: Final = 60.0
DISK_FREE_MIN_BYTES: Final = 2**30
LOCKS_MIN: Final = 128
_FACTS: Final = """
SELECT pg_is_in_recovery() AS replica,
    pg_has_role(current_user, 'pg_read_all_stats', 'usage') AS sees_transactions,
    has_schema_privilege('public', 'CREATE') AS may_create,
    (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user) AS may_make_roles,
    pg_has_role(current_user, (SELECT datdba FROM pg_database WHERE datname = current_database()), 'usage') AS is_owner,
    current_setting('max_locks_per_transaction')::int AS locks,
    current_setting('server_encoding') AS encoding,
    current_user AS login, current_database() AS database,
    extract(epoch FROM clock_timestamp())::float8 AS clock
"""


async def examine(name: str, dsn: str, catalog: Catalog, identity: Identity) -> list[Finding]:
    """What a new shard must be: new enough, writable, on time, with room. ShardError when it does not answer."""
    async with open_session(name, dsn, BRIEF) as connection:
        facts = (await connection.fetch(_FACTS))[0]
        version = connection.get_server_version()
        disk = await disk_free(connection)
    async with catalog.pool.connection(deadline_in(5)) as connection:
        clock = await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
    skew = float(facts["clock"]) - float(clock)
    room = disk is None or disk >= DISK_FREE_MIN_BYTES
    holds = len(identity.owned) + identity.moves
    may = facts["may_create"] and facts["may_make_roles"] and facts["is_owner"]
    login, base = facts["login"], facts["database"]
    return [
        Finding("version", version.major >= migrate.SERVER_VERSION_MIN, f"PostgreSQL {version.major}", "update it"),
        Finding(
            "primary", not facts["replica"], "a replica" if facts["replica"] else "accepts writes", "name the primary"
        ),
        Finding("encoding", facts["encoding"] == "UTF8", facts["encoding"], "make the database with ENCODING 'UTF8'"),
        Finding(
            "privileges",
            may,
            "owns the database, may create tables and roles" if may else "may not do what a shard's owner must",
            f"ALTER DATABASE {base} OWNER TO {login}; ALTER ROLE {login} CREATEROLE",
        ),
        Finding(
            "statistics",
            facts["sees_transactions"],
            "sees others' transactions" if facts["sees_transactions"] else "does not see others' transactions",
            f"GRANT pg_read_all_stats TO {login}",
        ),
        Finding(
            "settings",
            facts["locks"] >= LOCKS_MIN,
            f"max_locks_per_transaction = {facts['locks']}",
            f"set max_locks_per_transaction = {LOCKS_MIN} or more, and restart the server",
        ),
        Finding("clock", abs(skew) < 1, f"{skew:+.2f} s beside the catalog's", "synchronise the clocks (NTP)"),
        Finding("disk", room, "unknown" if disk is None else f"{disk / 2**30:.1f} GiB free", "make room"),
        Finding("empty", not holds, f"{holds} buckets or moves" if holds else "owns nothing", "give it a new database"),
    ]


async def add_shard(catalog: Catalog, name: str, dsn: str, weight: float) -> list[Finding]:
    """Check, migrate, sign and register an empty shard; it owns nothing until a rebalance.

    Refused when a check fails, or the name or the database is a shard already. What was interrupted can be repeated.
    """
    check_name(name)
    check_dsn(dsn)
    info = await catalog.info(deadline_in(TIMEOUT_S))
    known = {record.name: record for record in await catalog.shards(deadline_in(TIMEOUT_S))}
    if name in known:
        raise Refused(f"{name} is a shard already")
    try:
        identity = await ask(name, dsn)
    except ShardUnavailable as error:
        if error.cause is not Cause.READ_ONLY:
            raise
        raise Refused(f"{name} cannot become a shard: {error.detail}; name the primary") from None
    identity.check(info.cluster_id, name)
    findings = await examine(name, dsn, catalog, identity)
    wrong = [f"{finding.name}: {finding.found} ({finding.remedy})" for finding in findings if not finding.ok]
    if wrong:
        raise Refused(f"{name} cannot become a shard: {'; '.join(wrong)}")
    report = (await migrate.migrate(None, {name: dsn}, MIGRATE_TIMEOUT_S))[0]
    if report.error:
        raise SchemaError(f"{name}: {report.error}")
    logins = logins_of(info.cluster_id, known)
    async with open_session(name, dsn, BRIEF) as connection:
        await sign(connection, info.cluster_id, name)
        await make_logins(connection, logins)
    async with catalog.membership(deadline_in(MIGRATE_TIMEOUT_S)) as connection:
        # Nobody declares a kind meanwhile: what it has when it is registered is all that there is.
        async with open_session(name, dsn, BRIEF) as shard:
            await bring(shard, await kinds.declared(catalog, deadline_in(TIMEOUT_S)), logins, info)
        record = replace(logins.record(name, dsn, weight), system=identity.system, timeline=identity.timeline)
        await database.register(connection, record)
    return findings


def logins_of(cluster_id: str, known: Mapping[str, ShardRecord]) -> Logins:
    """The logins that the registered shards already use, or new ones."""
    fresh = new_logins(cluster_id)
    for record in sorted(known.values(), key=lambda record: not record.has_tenants):
        query = _password(record.reader_dsn) if record.has_tenants else fresh.query_password
        monitor = fresh.monitor_password if record.monitor_dsn is None else _password(record.monitor_dsn)
        olds = [each.old_reader_dsn for each in known.values() if each.old_reader_dsn is not None]
        old = _password(olds[0]) if olds else None
        return Logins(fresh.suffix, _password(record.writer_dsn), query, monitor, old)
    return fresh


def _password(dsn: str) -> str:
    return unquote(urlsplit(dsn).password or "")


async def set_weight(catalog: Catalog, name: str, weight: float) -> None:
    """How much a shard should hold beside the others. Refused when there is no such shard."""
    if not await catalog.set_shard_weight(name, weight, deadline_in(TIMEOUT_S)):
        raise Refused(f"there is no shard {name}")


async def remove_shard(catalog: Catalog, name: str, *, force: bool = False) -> None:
    """Take an empty shard out of the catalog: by the map, and by its own word.

    Refused while it owns buckets or takes part in a move. `force`: believe the catalog when the shard does not answer,
    or says that it still has something (its database is left as it is).
    """
    async with catalog.membership(deadline_in(TIMEOUT_S * 2)) as connection:
        records = {record.name: record for record in await catalog.shards(deadline_in(TIMEOUT_S))}
        if name not in records:
            raise Refused(f"there is no shard {name}; there are {', '.join(sorted(records))}")
        buckets, moves = await database.uses(connection, name)
        if buckets:
            raise Refused(f"{name} owns {buckets} buckets: empty it first, with `voltroute shard drain {name}`")
        if moves:
            raise Refused(f"{name} takes part in a move that has not ended: see `voltroute rebalance status`")
        pinned = [t.name for t in await tenants.all_of(catalog, deadline_in(TIMEOUT_S)) if name in t.shards]
        if pinned:
            raise Refused(f"{name} is one of the shards to which tenant {', '.join(pinned)} is pinned")
        if not force:
            await _ask_leaving(records[name])
        await database.remove(connection, name)


async def accept(catalog: Catalog, name: str) -> Identity:
    """Believe the server behind a shard's DSN, whatever was known of it before; what it says of itself.

    For a shard that was restored, or upgraded in place: its system is another one, and its timelines begin again.
    Refused when it is another shard, or lacks buckets that the map gives it.
    """
    records = {record.name: record for record in await catalog.shards(deadline_in(TIMEOUT_S))}
    if name not in records:
        raise Refused(f"{name} is no shard of this cluster")
    info, shard_map = await catalog.info(deadline_in(TIMEOUT_S)), await catalog.shard_map(deadline_in(TIMEOUT_S))
    identity = await ask(name, records[name].owner_dsn)
    identity.check(info.cluster_id, name)
    missing = set(shard_map.by_shard.get(name, ()) if shard_map else ()) - set(identity.owned)
    if missing:
        raise Refused(f"{name} owns {len(missing)} buckets by the map that are not on that server: was it restored?")
    await catalog.accept_lineage(name, identity.system, identity.timeline, deadline_in(TIMEOUT_S))
    return identity


async def _ask_leaving(record: ShardRecord) -> None:
    """Refused unless the shard itself says that it has nothing. A catalog from an older backup does not know."""
    try:
        identity = await ask(record.name, record.owner_dsn)
    except ShardError as error:
        raise Refused(
            f"{record.name} does not answer ({error.detail}), so nobody knows what it still has: start it, or leave it "
            "behind with --force"
        ) from None
    if identity.owned or identity.moves:
        raise Refused(
            f"{record.name} says that it owns {len(identity.owned)} buckets and has {identity.moves} moves, and the "
            "catalog knows nothing of them (was it restored?): see `voltroute check`; --force leaves them behind"
        )
