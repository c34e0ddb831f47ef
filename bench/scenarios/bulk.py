"""`load`: weeks of readings by `voltroute load`, from CSV and Parquet, beside the rate of batches over HTTP."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import asyncpg
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from bench.commands import command
from bench.context import Context
from bench.http1 import connect, get
from bench.lifelike import MINUTES_A_DAY
from bench.measure import MeasurementError, Shape, saturate
from bench.results import Collected, ScenarioResult, Target
from bench.systems import System, voltroute
from bench.workload import VEHICLE

FORMS: Final = ("CSV", "Parquet")
DEVICES: Final = 2_000
DAYS_FULL: Final = 14
DAYS_QUICK: Final = 3
AGO_DAYS: Final = 120  # when the last of them was: before the cluster
YEAR_DEVICES: Final = 4
TIMES: Final = 20
CONNECTIONS: Final = 8
BATCH: Final = 1_000
EXPECTED_RATE: Final = 400_000
SETTINGS: Final = {"VOLTROUTE_ROLLUPS_S": "3600", "VOLTROUTE_LIFECYCLE_S": "3600"}
TARGETS: Final = [
    Target("load: CSV / batches over HTTP", 5, 8),
    Target("load: Parquet / batches over HTTP", 5, 8),
    Target("load: a device, performance of a year", 100, 50, higher=False),
]
_SIZE: Final = """
SELECT sum(pg_total_relation_size(leaf_oid))::bigint FROM bucket_table AS b CROSS JOIN LATERAL leaves_of(b.name) AS l
WHERE b.kind = 'vehicle' AND b.role = 'packed'
"""
_ROLLUPS: Final = "SELECT sum(pg_total_relation_size('vehicle_telemetry_' || t))::bigint FROM unnest($1::text[]) AS t"


async def run(context: Context) -> ScenarioResult:
    """Batches first, then files, each by the command as operators type it, then one of them again."""
    found = Collected()
    if context.target is not None:
        return ScenarioResult("load", [], TARGETS, 0, ["needs an empty cluster of its own: not run against --url"])
    days = DAYS_FULL if context.full else DAYS_QUICK
    context.begin("load", 1, extra=6)
    async with voltroute(context.shards, SETTINGS, 64) as system:
        await command(system, "lifecycle", "policy", "set", "--hot", "7d")
        await command(system, "lifecycle", "run")  # rollups are kept from here on
        for _ in range(context.rounds):
            context.step(f"batches of {BATCH:,} over HTTP")
            requests = int(EXPECTED_RATE * context.seconds / BATCH) + CONNECTIONS
            measured = await saturate(
                system, Shape(BATCH, CONNECTIONS).plan(system.url, requests), CONNECTIONS, context.seconds
            )
            found.add("load: batches over HTTP", "readings/s", measured.rate)
            found.proofs += measured.proof.acknowledged
        with tempfile.TemporaryDirectory() as folder:
            for number, form in enumerate(FORMS):
                context.step(f"{form} is made")
                file = Path(folder) / f"fleet.{form.lower()}"
                made = _write(file, f"{form.upper()}-", datetime.now(UTC) - timedelta(days=AGO_DAYS + number), days)
                context.step(f"{made:,} readings are loaded from {form}")
                await _load(system, file, made, 0, found, f"load: {form}")
                found.add(f"load: {form} file", "B/reading", file.stat().st_size / made)
            context.step("the same again")
            await _load(system, file, made, made, found, "load: what is there already")
            await _sizes(system, found, 2 * made)
            context.step(f"a year of {YEAR_DEVICES} vehicles")
            file = Path(folder) / "year.parquet"
            years = _write(file, "YEAR-", datetime.now(UTC) - timedelta(days=AGO_DAYS), 365, YEAR_DEVICES)
            await _load(system, file, years, 0, found, "load: a year of few vehicles")
            await _year(system, found, Path(folder) / "year.ndjson")
    batches = statistics.median(found.values["load: batches over HTTP"])
    for form in FORMS:
        found.add(f"load: {form} / batches over HTTP", "x", found.values[f"load: {form}"][0] / batches)
    notes = [f"{DEVICES:,} vehicles, {days} days of minutes, by time; the command with its start, reading and checking"]
    notes += [] if context.full else [f"--full has {DAYS_FULL} days"]
    return ScenarioResult("load", found.figures(), TARGETS, found.proofs, notes)


async def _load(system: System, file: Path, made: int, known: int, found: Collected, name: str) -> None:
    started = time.perf_counter()
    told = orjson.loads(await command(system, "load", VEHICLE.name, str(file), "--json"))
    found.add(name, "readings/s", made / (time.perf_counter() - started))
    if (told["accepted"], told["duplicates"]) != (made - known, known):
        message = f"{name}: {told} of {made} readings"
        raise MeasurementError(message)


async def _year(system: System, found: Collected, out: Path) -> None:
    """A device's year, as pages and files ask for it."""
    end = datetime.now(UTC) - timedelta(days=AGO_DAYS)
    period = f"from={end - timedelta(days=365):%Y-%m-%dT00:00:00Z}&to={end:%Y-%m-%dT00:00:00Z}"
    day = f"from={end - timedelta(days=31):%Y-%m-%dT00:00:00Z}&to={end - timedelta(days=30):%Y-%m-%dT00:00:00Z}"
    web = await connect(system.url)
    for name, path in {
        "performance of a year": f"/v1/analytics/performance/YEAR-00001?{period}",
        "a year's energy by the day": f"/v1/vehicles/YEAR-00001/series?field=kwhDeliveredDc&interval=day&{period}",
        "24 h as 300 points": f"/v1/vehicles/YEAR-00001/points?field=soc&points=300&{day}",
        "status": "/v1/vehicles/YEAR-00001/status",
    }.items():
        seconds = []
        for _ in range(TIMES):
            started = time.perf_counter()
            answer = await web.request(get(system.url, path))
            seconds.append(time.perf_counter() - started)
            if answer.status != 200:
                message = f"{path}: status {answer.status}: {answer.body[:200]!r}"
                raise MeasurementError(message)
        found.add(f"load: a device, {name}", "ms", statistics.median(seconds) * 1e3)
    web.close()
    options = ("--device", "YEAR-00001", "--from", f"{end - timedelta(days=365):%Y-%m-%dT00:00:00Z}", "--json")
    started = time.perf_counter()
    told = orjson.loads(await command(system, "export", "vehicles", str(out), *options, remote=True))
    found.add("load: export of a year, NDJSON", "readings/s", told["readings"] / (time.perf_counter() - started))


def _write(file: Path, prefix: str, last: datetime, days: int, devices: int = DEVICES) -> int:
    """A fleet's readings in the order of time, as a dump has them; how many."""
    start = int((last - timedelta(days=days)).timestamp()) // 86_400 * 86_400 * 1_000
    is_csv, made, writer = file.suffix == ".csv", 0, None
    for table in _hours(prefix, start, days, devices):
        if writer is None:
            kind = pa.csv.CSVWriter if is_csv else pa.parquet.ParquetWriter
            writer = kind(str(file), table.schema)
        writer.write_table(table)
        made += table.num_rows
    if writer is not None:
        writer.close()
    return made


def _hours(prefix: str, start: int, days: int, count: int) -> Iterator[Any]:
    rng = np.random.default_rng(7)
    devices = pa.array([f"{prefix}{number:05d}" for number in range(count)])
    number = np.tile(np.arange(count), 60)
    temperature = 25 + np.zeros(count)
    for hour in range(days * MINUTES_A_DAY // 60):
        minute = hour * 60 + np.repeat(np.arange(60), count)
        walk = np.cumsum(rng.random((60, count)) - 0.5, axis=0) * 0.1 + temperature
        temperature = walk[-1]
        charging = (minute + number * 37) % 480 < 90
        stamps = start + minute * 60_000 + rng.integers(-150, 150, 60 * count) + 1_000
        yield pa.table(
            {
                "vehicleId": devices.take(pa.array(number)),
                "timestamp": pa.array(stamps, pa.timestamp("ms", "UTC")),
                "soc": np.round(50 + 40 * np.sin((minute + number * 37) / 300), 1),
                "kwhDeliveredDc": np.where(charging, np.round(0.11 + rng.random(60 * count) * 0.002, 4), 0),
                "batteryTemp": np.round(walk.reshape(-1), 1),
            }
        )


async def _sizes(system: System, found: Collected, made: int) -> None:
    packed, rolled = 0, 0
    for dsn in system.shards.values():
        connection = await asyncpg.connect(dsn)
        packed += await connection.fetchval(_SIZE) or 0
        rolled += await connection.fetchval(_ROLLUPS, ["hourly", "daily", "minutely"])
        await connection.close()
    found.add("load: packed", "B/reading", packed / made)
    found.add("load: rollups", "B/reading", rolled / made)
