"""Is a cluster as it must be, asked the way routers ask: with their logins, in their sessions, down to a write."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from shards.catalog.database import Catalog, ClusterInfo
from shards.catalog.shard_map import ShardMap
from shards.clock import deadline_in
from shards.errors import Cause, ClusterError, ShardError, ShardUnavailable
from shards.operations import access
from shards.operations.finding import Finding
from shards.postgres import migrate
from shards.postgres.connections import Connection
from shards.postgres.disk import disk_free
from shards.postgres.options import PoolLimits, PoolOptions
from shards.postgres.pools import ShardPool
from shards.postgres.sessions import BRIEF, owner_session
from shards.postgres.transactions import rolled_back
from shards.shard import ShardRecord
from shards.storage import tables
from shards.storage.partitions import runway

TIMEOUT_S: Final = 10.0
CLOCK_SKEW_MAX_S: Final = 5.0
DISK_FREE_MIN_BYTES: Final = 2**30
SLOTS_FREE_MIN: Final = 10
_LIMITS: Final = PoolLimits(min_size=1, max_size=1, connect_timeout_s=5.0, acquire_timeout_s=5.0)
_SETTINGS: Final = """
SELECT name, setting FROM pg_settings
WHERE name IN ('synchronous_commit', 'fsync', 'full_page_writes', 'search_path', 'TimeZone')
"""
_SLOTS: Final = """
SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int - count(*)
FROM pg_stat_activity WHERE backend_type = 'client backend'
"""
_MAY: Final = """
SELECT has_schema_privilege('public', 'CREATE') AS ddl,
    has_table_privilege('meter_telemetry_history', 'UPDATE') OR has_table_privilege('meter_telemetry_history', 'DELETE')
        OR has_column_privilege('meter_telemetry_history', 'ingested_at', 'INSERT') AS change,
    has_database_privilege(current_database(), 'TEMPORARY') AS temporary
"""
# Rows that another cluster's logins could reach: rights of the server-wide group roles, or of everybody.
_OPEN: Final = """
SELECT has_database_privilege('public', current_database(), 'CONNECT') AS connect,
    EXISTS (SELECT FROM pg_roles WHERE rolname IN ('voltroute_writer', 'voltroute_reader')
        AND has_table_privilege(oid, 'meter_current_status', 'SELECT')) AS groups
"""
_PROBE: Final = """
INSERT INTO meter_telemetry_history (timestamp, kwh_consumed_ac, voltage, bucket, meter_id)
SELECT now(), 0, 0, bucket, 'voltroute-doctor' FROM owned_bucket WHERE bucket = $1
ON CONFLICT DO NOTHING
"""
_BUCKETS: Final = """
SELECT (SELECT coalesce(array_agg(bucket ORDER BY bucket), '{}') FROM owned_bucket) AS owned,
    (SELECT coalesce(array_agg(bucket), '{}') FROM bucket_move) AS moving
"""


async def examine(catalog_dsn: str) -> list[Finding]:
    """Every check of the cluster; those of a shard that does not answer are one that fails, with its cause."""
    catalog = Catalog(catalog_dsn)
    try:
        deadline = deadline_in(TIMEOUT_S)
        info = await catalog.info(deadline)
        records = await catalog.shards(deadline)
        shard_map = await catalog.shard_map(deadline)
        let_in = await access.keys_of(catalog, deadline)
    except (ShardError, ClusterError) as error:
        detail = error.detail if isinstance(error, ShardError) else str(error)
        return [Finding("catalog", ok=False, found=detail, remedy=_remedy(error))]
    finally:
        await catalog.close()
    found = [Finding("catalog", ok=True, found=f"reachable, {len(records)} shards"), _map(shard_map), let_in]
    reports = await migrate.status(catalog_dsn, {record.name: record.owner_dsn for record in records})
    found += map(_schema, reports)
    for part in await asyncio.gather(*(_shard(record, info, shard_map) for record in records)):
        found += part
    return found


def _remedy(error: Exception) -> str:
    if isinstance(error, ShardUnavailable):
        return _REMEDIES.get(error.cause, "start the server; routers go on with the other shards meanwhile")
    return "see the message"


_REMEDIES: Final = {
    Cause.LOGIN_REFUSED: "check the login and its password: `voltroute init` again sets both",
    Cause.CONNECTIONS_EXHAUSTED: "raise max_connections, or lower VOLTROUTE_POOL_MAX",
    Cause.DISK_FULL: "make room on the server's disk",
    Cause.READ_ONLY: "this is a replica or read-only: name the primary",
    Cause.LOCKED: "end the session that holds the lock: see pg_locks",
}


def _map(shard_map: ShardMap | None) -> Finding:
    if shard_map is None:
        return Finding(
            "shard map", ok=False, found="missing", remedy="repeat the `voltroute init` that was interrupted"
        )
    return Finding("shard map", ok=True, found=f"epoch {shard_map.epoch}, {shard_map.bucket_count} buckets, all owned")


def _schema(report: migrate.Report) -> Finding:
    name = f"schema of {report.database}"
    if report.error:
        return Finding(
            name, ok=False, found=report.error, remedy="see its other lines; start the server, or check its DSN"
        )
    found = f"version {report.version}"
    return Finding(name, not report.pending, found + (", pending" if report.pending else ""), "voltroute migrate up")


async def _shard(record: ShardRecord, info: ClusterInfo, shard_map: ShardMap | None) -> list[Finding]:
    found: list[Finding] = []
    name, identity = record.name, f"{info.cluster_id} {record.name}"
    bucket = None  # one that a reading can be written to
    try:
        async with owner_session(record, BRIEF) as connection:
            buckets = await _buckets(name, connection, shard_map)
            bucket = min(buckets.settled, default=None)
            found += [buckets.finding, *await _as_owner(name, connection)]
            found += [await access.apart(record, connection), await access.seen(record, connection)]
    except ShardError as error:
        found.append(Finding(f"{name} owner", ok=False, found=error.detail, remedy=_remedy(error)))
    for login, dsn in (("writer", record.writer_dsn), ("reader", record.reader_dsn)):
        pool = ShardPool(name, dsn, _LIMITS, PoolOptions(f"voltroute {login}", None, identity))
        try:
            async with pool.connection(deadline_in(TIMEOUT_S)) as connection:
                if login == "writer":
                    found += await _as_writer(name, connection, bucket)
                else:
                    found += [*await _as_reader(name, connection), await access.kept(name, connection)]
        except ShardError as error:
            found.append(Finding(f"{name} {login}", ok=False, found=error.detail, remedy=_remedy(error)))
        finally:
            await pool.close()
    return found


@dataclass(frozen=True)
class _Buckets:
    """Buckets of a shard that are in no move, and whether they are those that the map means."""

    settled: frozenset[int]
    finding: Finding


async def _buckets(name: str, connection: Connection, shard_map: ShardMap | None) -> _Buckets:
    """While a bucket moves, both sides have it for a time; `check` knows which of them must."""
    record = (await connection.fetch(_BUCKETS))[0]
    moving = frozenset(record["moving"])
    owned = frozenset(record["owned"]) - moving
    mapped = frozenset(shard_map.by_shard.get(name, ()) if shard_map else ()) - moving
    same = owned == mapped
    found = f"{len(mapped)} by the map, {'and on the shard' if same else f'{len(owned)} on it'}"
    found += f"; {len(moving)} in moves" if moving else ""
    return _Buckets(owned, Finding(f"{name} buckets", same, found, "`voltroute check` says which, and what to do"))


async def _as_writer(name: str, connection: Connection, bucket: int | None) -> list[Finding]:
    settings = {r["name"]: r["setting"] for r in await connection.fetch(_SETTINGS)}
    may = (await connection.fetch(_MAY))[0]
    async with rolled_back(connection):
        stored = await connection.execute(_PROBE, bucket) == "INSERT 0 1"  # as a reading is written
    lax = [key for key in ("fsync", "full_page_writes", "synchronous_commit") if settings[key] == "off"]
    more = [what for what, has in (("create tables", may["ddl"]), ("change history", may["change"])) if has]
    temporary = ["make temporary tables"] if may["temporary"] else []
    return [
        Finding(
            f"{name} writes",
            ok=True,
            found="the writer's login stores a reading (rolled back)" if stored else "not tried: no bucket to write to",
        ),
        Finding(
            f"{name} durability",
            not lax,
            f"{', '.join(lax)} is off: acknowledged readings can be lost" if lax else "commits are on disk",
            f"set {', '.join(lax)} to on for the server, and reload it",
        ),
        Finding(
            f"{name} session",
            (settings["search_path"], settings["TimeZone"]) == ("public", "UTC"),
            f"search_path {settings['search_path']}, time zone {settings['TimeZone']}",
            "a pooler in between drops start-up parameters: connect directly",
        ),
        Finding(
            f"{name} privileges",
            not (more or temporary),
            f"the writer may {' and '.join([*more, *temporary])}" if more or temporary else "the writer only inserts",
            "voltroute migrate up, which closes it",
        ),
    ]


async def _as_reader(name: str, connection: Connection) -> list[Finding]:
    theirs: Any = await connection.fetchval("SELECT clock_timestamp()")
    skew = abs((datetime.now(UTC) - theirs).total_seconds())
    found = f"{skew:.1f} s apart from this machine"
    return [Finding(f"{name} clock", skew < CLOCK_SKEW_MAX_S, found, "synchronise the clocks (NTP)")]


async def _as_owner(name: str, connection: Connection) -> list[Finding]:
    days = runway(datetime.now(UTC), await tables.leaf_width(connection))
    lacking = set()
    for day in days:
        moment = datetime(day.year, day.month, day.day, tzinfo=UTC)
        lacking |= set(await tables.buckets_without_leaf(connection, moment, TIMEOUT_S))
    strangers = [each.what for each in await tables.foreign(connection)]
    return [
        Finding(
            f"{name} partitions",
            not lacking,
            f"buckets {sorted(lacking)} lack one" if lacking else f"made up to {days[-1]}",
            "run a router: its leader makes them; its log names what is in the way",
        ),
        Finding(
            f"{name} tables",
            not strangers,
            "; ".join(strangers[:5]) if strangers else "all as voltroute made them",
            "move their rows, then detach or drop them",
        ),
        *await _room(name, connection),
        await _closed(name, connection),
    ]


async def _room(name: str, connection: Connection) -> list[Finding]:
    slots = int(await connection.fetchval(_SLOTS))
    free = await disk_free(connection)
    return [
        Finding(
            f"{name} connections",
            slots >= SLOTS_FREE_MIN,
            f"{slots} more are possible",
            "raise max_connections, or lower VOLTROUTE_POOL_MAX",
        ),
        Finding(
            f"{name} disk",
            free is None or free >= DISK_FREE_MIN_BYTES,
            "not on this machine" if free is None else f"{free / 2**30:.1f} GiB free",
            "make room",
        ),
    ]


async def _closed(name: str, connection: Connection) -> Finding:
    found = (await connection.fetch(_OPEN))[0]
    open_ = [what for what, so in (("everybody", found["connect"]), ("other clusters' logins", found["groups"])) if so]
    return Finding(
        f"{name} access",
        not open_,
        f"open to {' and '.join(open_)}" if open_ else "closed to everybody but this cluster's logins",
        "voltroute migrate up, which closes it",
    )
