"""`storage`: bytes of a reading hot, packed, and in the seed's schema; what packing costs, and reading it then."""

import asyncio
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import asyncpg
import orjson

from bench.commands import command
from bench.context import Context
from bench.http1 import Connection, connect, get, post
from bench.lifelike import MINUTES_A_DAY, NOISY, OLD_AFTER, TOO_EARLY, USUAL, Telemetry, fill
from bench.measure import MeasurementError
from bench.results import Collected, ScenarioResult, Target
from bench.systems import System, voltroute
from bench.workload import METER, VEHICLE, Kind

DEVICES_FULL: Final = 1_000
DEVICES_QUICK: Final = 120
DAYS: Final = 3
SHARDS: Final = 2
BUCKETS: Final = 2  # few, as these are few devices: those of a bucket share the least size of its tables
AGO: Final = timedelta(days=60)  # before the first month of a cluster that is made today
LATE: Final = 1_000
LATE_SECOND: Final = 31  # no reading's: they are at most 150 ms from the minute
HOT_DAYS: Final = 7
TELEMETRY: Final = (
    Telemetry("vehicle", VEHICLE, USUAL[VEHICLE]),
    Telemetry("meter", METER, USUAL[METER]),
    Telemetry("noisy-vehicle", VEHICLE, NOISY[VEHICLE]),
    Telemetry("noisy-meter", METER, NOISY[METER]),
    Telemetry("microsecond-vehicle", VEHICLE, USUAL[VEHICLE], unit_us=1),
    Telemetry("whole-second-vehicle", VEHICLE, USUAL[VEHICLE], unit_us=1_000_000, jitter_us=0),
)
TARGETS: Final = [
    Target("storage: vehicle, packed", 3, 3, higher=False),
    Target("storage: meter, packed", 4.8, 4.8, higher=False),
    Target("storage: noisy-vehicle, packed", 8, 6, higher=False),
    Target("storage: noisy-meter, packed", 8, 6, higher=False),
]
_SIZE: Final = """
SELECT coalesce(sum(pg_total_relation_size(t.relid)), 0)::bigint
FROM pg_partition_tree(to_regclass($1)) AS t WHERE t.isleaf
"""
_SEED: Final = """
CREATE SCHEMA seed;
CREATE TABLE seed.history (
    id bigserial PRIMARY KEY, device_id varchar(50) NOT NULL, {columns}, timestamp timestamptz NOT NULL,
    ingested_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON seed.history (device_id, timestamp DESC);
CREATE INDEX ON seed.history (timestamp DESC);
INSERT INTO seed.history (device_id, {values}, timestamp) SELECT {id}, {values}, timestamp FROM {history}
"""


async def run(context: Context) -> ScenarioResult:
    """A cluster for each sort of readings: filled, measured, packed, measured again. What is read must be the same."""
    found, proofs = Collected(), 0
    if context.target is not None:
        return ScenarioResult("storage", [], TARGETS, 0, ["needs empty clusters of its own: not run against --url"])
    if datetime.now(UTC).day <= OLD_AFTER:
        return ScenarioResult("storage", [], TARGETS, 0, [TOO_EARLY])
    devices = DEVICES_FULL if context.full else DEVICES_QUICK
    context.begin("storage", 0, extra=2 * len(TELEMETRY))
    for telemetry in TELEMETRY:
        context.step(f"{telemetry.name}: {devices * DAYS * MINUTES_A_DAY:,} readings")
        async with voltroute(SHARDS, buckets=BUCKETS) as system:
            proofs += await _one(context, system, telemetry, devices, found)
    for each in ("vehicle", "meter"):
        tiers = ("hot", "hours while it was hot", "packed", "days and minutes")
        hot, hours, packed, sums = (found.values[f"storage: {each}, {tier}"][0] for tier in tiers)
        year = (HOT_DAYS * (hot + hours) + (365 - HOT_DAYS) * packed + 365 * sums) * MINUTES_A_DAY / 2**20
        found.add(f"storage: a {each}'s year, {HOT_DAYS} days hot", "MiB", year)
    notes = [f"{devices:,} devices of each sort, {DAYS} days of minutes, stamps of milliseconds unless named otherwise"]
    notes += [] if context.full else [f"--full has {DEVICES_FULL:,} of each"]
    return ScenarioResult("storage", found.figures(), TARGETS, proofs, notes)


async def _one(context: Context, system: System, telemetry: Telemetry, devices: int, found: Collected) -> int:
    start = (datetime.now(UTC) - AGO).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    made = await fill(system, telemetry, devices, start, DAYS)
    name, kind = f"storage: {telemetry.name}", telemetry.kind
    shards = {shard: await asyncpg.connect(dsn) for shard, dsn in system.shards.items()}
    web = await connect(system.url)
    try:
        found.add(f"{name}, hot", "B/reading", await _size(shards, kind.history) / made)
        found.add(f"{name}, the seed's schema", "B/reading", await _seed(shards, telemetry) / made)
        answers = [(web, system.url, path) for path in _paths(telemetry, devices, start)]
        before = [await _get(*each) for each in answers]
        if telemetry.name in {"vehicle", "meter"}:
            await _time_reads(found, f"{name}, hot", answers)
        context.step(f"{telemetry.name}: packing")
        await command(system, "lifecycle", "policy", "set", "--hot", "1d")
        started, cpu = time.perf_counter(), system.ended_cpu()
        await command(system, "lifecycle", "run", "--wait")
        used = system.ended_cpu() - cpu
        found.add(f"{name}, packing", "us of PostgreSQL/reading", used * 1e6 / made)
        found.add(f"{name}, packed a second", "readings/s", made / (time.perf_counter() - started))
        packed = await _size(shards, f"{kind.name}_telemetry_packed")
        found.add(f"{name}, packed", "B/reading", packed / made)
        found.add(f"{name}, days and minutes", "B/reading", await _rollups(shards, kind, "daily", "minutely") / made)
        found.add(f"{name}, hours while it was hot", "B/reading", await _rollups(shards, kind, "hourly") / made)
        if await _size(shards, kind.history, rows=True):
            raise MeasurementError(f"{telemetry.name}: not all readings were packed")
        if [await _get(*each) for each in answers] != before:
            raise MeasurementError(f"{telemetry.name}: an answer is not what it was before")
        if telemetry.name in {"vehicle", "meter"}:
            await _time_reads(found, f"{name}, packed", answers)
            await _late(found, web, system, telemetry, devices, start)
            made += 2 * len(_late_days(devices))
            before = [await _get(*each) for each in answers]
        await _archive(context, system, telemetry, made, found)
        if [await _get(*each) for each in answers] != before:
            raise MeasurementError(f"{telemetry.name}: an answer is not what it was before it was archived")
    finally:
        web.close()
        for each in shards.values():
            await each.close()
    return made


async def _archive(context: Context, system: System, telemetry: Telemetry, made: int, found: Collected) -> None:
    """Into a folder, and back: bytes of its objects, and what writing, comparing and restoring take."""
    name, kind = f"storage: {telemetry.name}", telemetry.kind.name
    with tempfile.TemporaryDirectory(prefix="voltroute-bench-") as folder:
        context.step(f"{telemetry.name}: archiving")
        await command(
            system, "lifecycle", "policy", "set", "--archive-after", "2d", "--archive-to", f"file://{folder}/archive"
        )
        started, cpu = time.perf_counter(), system.ended_cpu()
        await command(system, "lifecycle", "run", "--wait")
        found.add(f"{name}, archiving", "us of PostgreSQL/reading", (system.ended_cpu() - cpu) * 1e6 / made)
        found.add(f"{name}, archived a second", "readings/s", made / (time.perf_counter() - started))
        size = await asyncio.to_thread(_objects, Path(folder))
        found.add(f"{name}, Parquet", "B/reading", size / made)
        started = time.perf_counter()
        await command(system, "archive", "restore", kind, "--from", "2000-01-01", "--to", "2100-01-01")
        found.add(f"{name}, restored a second", "readings/s", made / (time.perf_counter() - started))


def _objects(folder: Path) -> int:
    """Bytes of all objects."""
    return sum(each.stat().st_size for each in folder.rglob("*.parquet"))


async def _size(shards: dict[str, Any], root: str, *, rows: bool = False) -> int:
    """Bytes of a root's tables on all shards, indexes and TOAST included; or its rows."""
    sql = f"SELECT count(*) FROM {root}" if rows else _SIZE
    return sum([await each.fetchval(sql, *([] if rows else [root])) for each in shards.values()])


async def _rollups(shards: dict[str, Any], kind: Kind, *tables: str) -> int:
    """Bytes of some tables of a kind's sums."""
    sizes = [f"pg_total_relation_size('{kind.name}_telemetry_{each}')" for each in tables]
    sql = f"SELECT {' + '.join(sizes)}"
    return sum([await each.fetchval(sql) for each in shards.values()])


async def _seed(shards: dict[str, Any], telemetry: Telemetry) -> int:
    """Bytes of the same readings in a table as the seed has it."""
    names = list(telemetry.values)
    sql = _SEED.format(
        columns=", ".join(f"{name} float8" for name in names),
        values=", ".join(names),
        id=telemetry.kind.id_column,
        history=telemetry.kind.history,
    )
    size = 0
    for each in shards.values():
        await each.execute(sql)
        size += await each.fetchval("SELECT pg_total_relation_size('seed.history')")
        await each.execute("DROP SCHEMA seed CASCADE")
    return size


def _paths(telemetry: Telemetry, devices: int, start: datetime) -> list[str]:
    plural = f"{telemetry.kind.name}s"
    day = [(start + timedelta(days=n, hours=6)).strftime("%Y-%m-%dT%H:%M:%SZ") for n in (0, 1)]
    period = f"from={day[0]}&to={day[1]}"
    paths = [f"/v1/{plural}/{telemetry.device(n)}/history?limit=100&{period}" for n in range(0, devices, 10)]
    if telemetry.kind is VEHICLE:
        paths += [f"/v1/analytics/performance/{telemetry.device(n)}?{period}" for n in range(0, devices, 10)]
    return [*paths, f"/v1/analytics/fleet?{period}", f"/v1/analytics/activity?since={day[0]}&limit=50"]


async def _get(web: Connection, url: str, path: str) -> Any:
    answer = await web.request(get(url, path))
    if answer.status != 200:
        message = f"{path}: answers {answer.status}"
        raise MeasurementError(message)
    return _plain(orjson.loads(answer.body))


def _plain(value: Any) -> Any:
    """Without what tells the tiers apart."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items() if name not in {"tiers", "ingestedAt"}}
    return [_plain(each) for each in value] if isinstance(value, list) else value


async def _time_reads(found: Collected, name: str, answers: list[tuple[Connection, str, str]]) -> None:
    """Median milliseconds of each sort of read."""
    sorts: dict[str, list[float]] = {}
    for web, url, path in answers:
        started = time.perf_counter()
        await _get(web, url, path)
        sort = next(each for each in ("history", "performance", "fleet", "activity") if each in path)
        sorts.setdefault(sort, []).append((time.perf_counter() - started) * 1_000)
    for sort, taken in sorts.items():
        found.add(f"{name}: {sort} of 24 h", "ms", sorted(taken)[len(taken) // 2])


def _late_days(devices: int) -> list[tuple[int, int]]:
    """(device, day) of the late readings of one batch."""
    return [(n, day) for day in range(DAYS) for n in range(devices)][:LATE]


async def _late(
    found: Collected, web: Connection, system: System, telemetry: Telemetry, devices: int, start: datetime
) -> None:
    """A reading for each of at most LATE packed days, and again: the minutes have readings, so each day is unpacked."""
    kind = telemetry.kind
    days = _late_days(devices)

    def batch(hour: int) -> bytes:
        rows = []
        for n, day in days:
            moment = start + timedelta(days=day, hours=hour, seconds=LATE_SECOND)
            rows.append(kind.body % (telemetry.device(n).encode(), moment.isoformat().encode()))
        return post(system.url, kind.path, b"[" + b",".join(rows) + b"]")

    await web.request(batch(7))  # the router learns what is frozen
    for name in ("late", "late again"):
        started = time.perf_counter()
        answer = await web.request(batch(8))
        seconds = time.perf_counter() - started
        told = orjson.loads(answer.body)
        if answer.status != 200 or told["accepted" if name == "late" else "duplicates"] != len(days):
            message = f"late readings: {answer.status} {told}"
            raise MeasurementError(message)
        found.add(f"storage: {telemetry.name}, {len(days):,} {name}, a device-day each", "ms", seconds * 1_000)
