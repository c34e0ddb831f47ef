"""PostgreSQL's own figures, by the names under which exporters tell them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg

from shards.postgres.connections import Connection
from shards.postgres.disk import disk_free

STATEMENTS_TOLD: Final = 10
SLOW_MS: Final = 100.0  # the seed's query: what takes longer on average


@dataclass(frozen=True)
class Figure:
    """A metric of one shard: its samples are (label values, value), beside the label `shard`."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Statement:
    """A statement that is slow on average, or takes most of the time."""

    query_id: str
    query: str
    calls: int
    mean_ms: float
    total_s: float


Samples = dict[Figure, list[tuple[tuple[str, ...], float]]]

_SERVER: Final = {
    "connections": Figure("pg_stat_database_numbackends", "Connections to the server, of all its databases"),
    "max_connections": Figure("pg_settings_max_connections", "max_connections"),
    "xact_commit": Figure("pg_stat_database_xact_commit", "Transactions committed"),
    "xact_rollback": Figure("pg_stat_database_xact_rollback", "Transactions rolled back"),
    "blks_hit": Figure("pg_stat_database_blks_hit", "Blocks found in shared buffers"),
    "blks_read": Figure("pg_stat_database_blks_read", "Blocks read"),
    "deadlocks": Figure("pg_stat_database_deadlocks", "Deadlocks"),
    "temp_bytes": Figure("pg_stat_database_temp_bytes", "Bytes written to temporary files"),
    "frozen_age": Figure("pg_database_frozenxid_age", "Transactions since the oldest that is not frozen"),
    "in_recovery": Figure("pg_replication_is_replica", "1 when the server is a replica"),
}
_DATABASE: Final = """
SELECT (SELECT sum(numbackends) FROM pg_stat_database)::float8 AS connections,
    current_setting('max_connections')::float8 AS max_connections, d.xact_commit::float8, d.xact_rollback::float8,
    d.blks_hit::float8, d.blks_read::float8, d.deadlocks::float8, d.temp_bytes::float8,
    (SELECT age(datfrozenxid) FROM pg_database WHERE datname = current_database())::float8 AS frozen_age,
    pg_is_in_recovery()::int::float8 AS in_recovery, extract(epoch FROM clock_timestamp())::float8 AS clock
FROM pg_stat_database AS d WHERE d.datname = current_database()
"""
_ACTIVITY: Final = """
SELECT coalesce(state, 'unknown') AS label, count(*)::float8 AS value,
    coalesce(max(extract(epoch FROM now() - xact_start)), 0)::float8 AS longest
FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
GROUP BY 1
"""
_STATES: Final = Figure("pg_stat_activity_count", "Connections by state", ("state",))
_LONGEST: Final = Figure("pg_stat_activity_max_tx_duration", "Seconds of the longest transaction, by state", ("state",))
_REPLICAS: Final = """
SELECT application_name AS label, pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::float8 AS value
FROM pg_stat_replication WHERE NOT pg_is_in_recovery() AND replay_lsn IS NOT NULL
"""
_BEHIND: Final = Figure(
    "pg_stat_replication_pg_wal_lsn_diff", "Bytes that a replica has not replayed", ("application_name",)
)
_SLOTS: Final = """
SELECT slot_name AS label, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::float8 AS value
FROM pg_replication_slots WHERE NOT pg_is_in_recovery() AND restart_lsn IS NOT NULL
"""
_KEPT: Final = Figure(
    "pg_replication_slots_pg_wal_lsn_diff", "Bytes of WAL kept for a replication slot", ("slot_name",)
)

_TABLES: Final = {
    "live": Figure("pg_stat_user_tables_n_live_tup", "Rows, over all leaves of a root table", ("relname",)),
    "dead": Figure("pg_stat_user_tables_n_dead_tup", "Dead rows", ("relname",)),
    "seq_scan": Figure("pg_stat_user_tables_seq_scan", "Sequential scans of leaves", ("relname",)),
    "idx_scan": Figure("pg_stat_user_tables_idx_scan", "Index scans of leaves", ("relname",)),
    "updated": Figure("pg_stat_user_tables_n_tup_upd", "Rows updated", ("relname",)),
    "hot": Figure("pg_stat_user_tables_n_tup_hot_upd", "Rows updated without a new entry in an index", ("relname",)),
    "vacuumed": Figure("pg_stat_user_tables_autovacuum_count", "Times that autovacuum was at a leaf", ("relname",)),
}
# Leaves are told by their root: a series for each would be thousands.
_BY_ROOT: Final = """
SELECT r.root AS label, coalesce(sum(n_live_tup), 0)::float8 AS live, coalesce(sum(n_dead_tup), 0)::float8 AS dead,
    coalesce(sum(seq_scan), 0)::float8 AS seq_scan, coalesce(sum(idx_scan), 0)::float8 AS idx_scan,
    coalesce(sum(n_tup_upd), 0)::float8 AS updated, coalesce(sum(n_tup_hot_upd), 0)::float8 AS hot,
    coalesce(sum(autovacuum_count), 0)::float8 AS vacuumed
FROM every_root AS r
LEFT JOIN pg_stat_user_tables AS t ON t.relname = r.root OR starts_with(t.relname, r.root || '_b')
WHERE r.ready GROUP BY 1
"""
_BLOCKS: Final = {
    "hit": Figure("pg_statio_user_tables_heap_blks_hit", "Blocks of tables found in shared buffers"),
    "read": Figure("pg_statio_user_tables_heap_blks_read", "Blocks of tables read"),
    "size": Figure("pg_database_size_bytes", "Bytes of the database"),
    "wal": Figure("pg_wal_size_bytes", "Bytes of WAL on disk"),
}
_IO: Final = """
SELECT coalesce(sum(heap_blks_hit), 0)::float8 AS hit, coalesce(sum(heap_blks_read), 0)::float8 AS read,
    pg_database_size(current_database())::float8 AS size, (SELECT sum(size) FROM pg_ls_waldir())::float8 AS wal
FROM pg_statio_user_tables
"""
_DISK: Final = Figure(
    "voltroute_shard_disk_free_bytes", "Bytes free on the fullest disk that a shard needs, if it is here"
)
_RUNWAY: Final = Figure(
    "voltroute_shard_partition_runway_seconds", "Until the first of a shard's buckets has no partition for new readings"
)
# A bucket's last partition ends when its newest one does: months are made ahead without gaps.
_LAST: Final = r"""
SELECT greatest(extract(epoch FROM min(ends) - now()), 0)::float8 AS runway
FROM (
    SELECT coalesce(max(substring(l.bound FROM $$TO \('(.*)'\)$$)::timestamptz), now()) AS ends
    FROM owned_bucket AS o
    INNER JOIN bucket_table AS b ON b.bucket = o.bucket AND b.role = 'history'
    LEFT JOIN leaf AS l ON l.parent_oid = b.table_oid
    GROUP BY b.table_oid
) AS each_table
HAVING count(*) > 0
"""
_UNDROPPED: Final = Figure(
    "voltroute_shard_undropped_leaf_seconds", "Since the oldest packed leaf that is not dropped was packed; 0: none"
)
_UNROLLED: Final = Figure(
    "voltroute_shard_rollups_behind_seconds",
    "Since the oldest mark of rollups, from which on readings are read; 0: none",
)
_PACKED: Final = Figure("voltroute_shard_packed_readings", "Readings in packed days")
_TIERS: Final = """
SELECT
    (SELECT coalesce(extract(epoch FROM now() - min(published_at)), 0)::float8 FROM packed_leaf) AS undropped,
    (SELECT coalesce(extract(epoch FROM now() - min(rolled_until)), 0)::float8 FROM tier WHERE rolled_of IS NOT NULL)
        AS unrolled,
    (SELECT coalesce(sum(packed_readings), 0)::float8 FROM tier) AS packed
"""
# Only of these are the literals replaced by parameters; of all others a password may be in the text.
_STATEMENTS: Final = r"""
SELECT queryid::text AS query_id, query, calls, mean_exec_time AS mean_ms, total_exec_time / 1000 AS total_s
FROM pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND queryid IS NOT NULL
    AND query ~* '^\s*(select|insert|update|delete|merge|with)\M'
ORDER BY mean_exec_time > $2 DESC, total_exec_time DESC LIMIT $1
"""
CALLS: Final = Figure("pg_stat_statements_calls", "Calls of the statements that take most of the time", ("queryid",))
SECONDS: Final = Figure("pg_stat_statements_seconds", "Seconds spent in them", ("queryid",))
_SKEW: Final = Figure("voltroute_shard_clock_skew_seconds", "How far a shard's clock is ahead of the router's")
CHEAP: Final = (*_SERVER.values(), _SKEW, _STATES, _LONGEST, _BEHIND, _KEPT)
HEAVY: Final = (*_TABLES.values(), *_BLOCKS.values(), _DISK, _RUNWAY, _UNDROPPED, _UNROLLED, _PACKED, CALLS, SECONDS)


async def cheap(connection: Connection) -> Samples:
    """Connections, transactions, blocks, replicas, age: some milliseconds at most."""
    asked_at = time.time()
    server = (await connection.fetch(_DATABASE))[0]
    skew = server["clock"] - (asked_at + time.time()) / 2
    states = await connection.fetch(_ACTIVITY)
    return {
        **{figure: [((), server[name])] for name, figure in _SERVER.items()},
        _SKEW: [((), skew)],
        _STATES: [((record["label"],), record["value"]) for record in states],
        _LONGEST: [((record["label"],), record["longest"]) for record in states],
        _BEHIND: [((record["label"],), record["value"]) for record in await connection.fetch(_REPLICAS)],
        _KEPT: [((record["label"],), record["value"]) for record in await connection.fetch(_SLOTS)],
    }


async def heavy(connection: Connection) -> Samples:
    """Tables, sizes, statements: 150 ms with thousands of leaves."""
    tables = await connection.fetch(_BY_ROOT)
    blocks = (await connection.fetch(_IO))[0]
    told = await statements(connection)
    free = await disk_free(connection)
    tiers = (await connection.fetch(_TIERS))[0]
    return {
        **{figure: [((record["label"],), record[name]) for record in tables] for name, figure in _TABLES.items()},
        **{figure: [((), blocks[name])] for name, figure in _BLOCKS.items()},
        _DISK: [] if free is None else [((), float(free))],
        _RUNWAY: [((), record["runway"]) for record in await connection.fetch(_LAST)],
        _UNDROPPED: [((), tiers["undropped"])],
        _UNROLLED: [((), tiers["unrolled"])],
        _PACKED: [((), tiers["packed"])],
        CALLS: [((each.query_id,), float(each.calls)) for each in told],
        SECONDS: [((each.query_id,), each.total_s) for each in told],
    }


async def statements(connection: Connection, limit: int = STATEMENTS_TOLD) -> Sequence[Statement]:
    """Those slower than SLOW_MS on average first, then by their time; none where pg_stat_statements is not loaded."""
    try:
        records = await connection.fetch(_STATEMENTS, limit, SLOW_MS)
    except (asyncpg.UndefinedTableError, asyncpg.ObjectNotInPrerequisiteStateError):
        return ()
    return [Statement(**dict(record)) for record in records]
