"""doctor: is everything as it must be, and if not, what to do."""

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import asyncpg
import typer

from router.cli.inspecting import read_cluster
from router.cli.output import print_json, say, say_check
from router.cli.target import DataOption, JsonOption, find_catalog, load_settings
from router.settings import Settings
from shards import migrate
from shards.catalog import ShardRecord
from shards.driver import translated
from shards.embedded.binaries import find_binaries
from shards.errors import ClusterError, ShardError
from shards.partitions import MONTHS_AHEAD, buckets_without_month, runway
from shards.shard_map import ShardMap

CONNECT_TIMEOUT_S = 5.0
CLOCK_SKEW_MAX_S = 5.0
_OWNED = "SELECT coalesce(array_agg(bucket ORDER BY bucket), '{}') FROM owned_bucket"
_MAY_RUN_DDL = "SELECT has_schema_privilege('public', 'CREATE')"
_MAY_CHANGE_HISTORY = (
    "SELECT has_table_privilege('meter_telemetry_history', 'UPDATE')"
    " OR has_table_privilege('meter_telemetry_history', 'DELETE')"
    " OR has_column_privilege('meter_telemetry_history', 'ingested_at', 'INSERT')"
)


@dataclass(frozen=True)
class Check:
    """One finding. `remedy` says what to do when it is not `ok`."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


def doctor(data: DataOption = None, json: JsonOption = False) -> None:
    """Check this machine and the cluster; every failed check comes with its remedy."""
    checks = asyncio.run(_all(data))
    if json:
        print_json([asdict(check) for check in checks])
    else:
        for check in checks:
            say_check(check.name, check.found, ok=check.ok)
            if not check.ok:
                say(f"      -> {check.remedy}")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


async def _all(data: DataOption) -> list[Check]:
    settings = load_settings()
    checks = [_python(), _binaries(settings.pg_bin), _environment()]
    try:
        dsn = find_catalog(data, settings)
        shards, shard_map = await read_cluster(dsn)
    except (ClusterError, ShardError) as error:
        return [*checks, Check("catalog", ok=False, found=str(error), remedy="start it, or say where it is")]
    checks.append(Check("catalog", ok=True, found=f"reachable, {len(shards)} shards"))
    checks.append(_map(shard_map))
    reports = await migrate.status(dsn, {shard.name: shard.owner_dsn for shard in shards})
    checks.extend(map(_schema, reports))
    for shard in shards:
        checks += [check async for check in _shard(shard, shard_map)]
    return checks


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info >= (3, 11), found, "install Python 3.11 or newer")


def _environment() -> Check:
    unknown = Settings.unknown_variables()
    found = f"no setting reads {', '.join(unknown)}" if unknown else "every VOLTROUTE_ variable is a setting"
    return Check("environment", not unknown, found, "see `voltroute config show` for the names")


def _binaries(override: str | None) -> Check:
    try:
        return Check("embedded PostgreSQL", ok=True, found=str(find_binaries(override)))
    except ClusterError as error:
        return Check("embedded PostgreSQL", ok=False, found=str(error), remedy="needed for `up` and `demo` only")


def _map(shard_map: ShardMap | None) -> Check:
    if shard_map is None:
        return Check("shard map", ok=False, found="missing", remedy="repeat the `voltroute init` that was interrupted")
    return Check("shard map", ok=True, found=f"epoch {shard_map.epoch}, {shard_map.bucket_count} buckets, all owned")


def _schema(report: migrate.Report) -> Check:
    name = f"schema of {report.database}"
    if report.error:
        return Check(name, ok=False, found=report.error, remedy="start the server, or check its DSN")
    found = f"version {report.version}"
    return Check(name, not report.pending, found + (", pending" if report.pending else ""), "voltroute migrate up")


async def _shard(shard: ShardRecord, shard_map: ShardMap | None) -> AsyncIterator[Check]:
    try:
        with translated(shard.name):
            yield await _clock(shard)
            yield await _ownership(shard, shard_map)
            yield await _partitions(shard)
            yield await _privileges(shard)
    except ShardError as error:
        remedy = "start the server; routers go on with the other shards meanwhile"
        yield Check(shard.name, ok=False, found=error.detail, remedy=remedy)


async def _fetch(dsn: str, sql: str) -> object:
    connection = await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S)
    try:
        return await connection.fetchval(sql, timeout=CONNECT_TIMEOUT_S)
    finally:
        connection.terminate()


async def _clock(shard: ShardRecord) -> Check:
    theirs = await _fetch(shard.reader_dsn, "SELECT clock_timestamp()")
    if not isinstance(theirs, datetime):
        raise TypeError(theirs)
    skew = abs((datetime.now(UTC) - theirs).total_seconds())
    remedy = "synchronise the clocks (NTP)"
    return Check(f"{shard.name} clock", skew < CLOCK_SKEW_MAX_S, f"{skew:.1f} s apart from this machine", remedy)


async def _ownership(shard: ShardRecord, shard_map: ShardMap | None) -> Check:
    owned = await _fetch(shard.reader_dsn, _OWNED)
    mapped = list(shard_map.by_shard.get(shard.name, ())) if shard_map else []
    remedy = "the shard's tables and the catalog's map differ; restore the catalog from its backup"
    return Check(f"{shard.name} buckets", owned == mapped, f"{len(mapped)} by the map, and on the shard", remedy)


async def _partitions(shard: ShardRecord) -> Check:
    month = runway(datetime.now(UTC), MONTHS_AHEAD)[-1]
    connection = await asyncpg.connect(shard.owner_dsn, timeout=CONNECT_TIMEOUT_S)
    try:
        lacking = await buckets_without_month(connection, month, CONNECT_TIMEOUT_S)
    finally:
        connection.terminate()
    found = f"made up to {month:%Y-%m}" if not lacking else f"{lacking} buckets have none for {month:%Y-%m}"
    return Check(f"{shard.name} partitions", not lacking, found, "run a router: its housekeeping makes them")


async def _privileges(shard: ShardRecord) -> Check:
    ddl = await _fetch(shard.writer_dsn, _MAY_RUN_DDL)
    change = await _fetch(shard.writer_dsn, _MAY_CHANGE_HISTORY)
    found = "the writer only inserts" if not (ddl or change) else "the writer may do more than it must"
    remedy = "revoke CREATE on schema public, and UPDATE and DELETE on history, from the writer"
    return Check(f"{shard.name} privileges", not (ddl or change), found, remedy)
