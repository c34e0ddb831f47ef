"""`rollups`: the fleet's day from readings, then from rollups beside it: the same answers, PostgreSQL's CPU, bytes."""

import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import orjson

from bench.commands import command
from bench.context import Context
from bench.http1 import Connection, connect, get, put
from bench.lifelike import COUNTS, MINUTES_A_DAY, USUAL, Telemetry, fill
from bench.measure import MeasurementError
from bench.results import Collected, ScenarioResult, Target
from bench.systems import System, voltroute
from bench.workload import METER, VEHICLE

DEVICES_FULL: Final = 5_000  # of each kind
DEVICES_QUICK: Final = 500
BUCKETS: Final = 64
HOURS: Final = 22  # of a day that was filled, whole ones; and the same a few minutes later
OFF_MIN: Final = 25
TIMES: Final = 5
SETTINGS: Final = {"VOLTROUTE_ROLLUPS_S": "3600", "VOLTROUTE_LIFECYCLE_S": "3600", "VOLTROUTE_QUERY_TIMEOUT_S": "60"}
TELEMETRY: Final = (Telemetry("vehicle", VEHICLE, USUAL[VEHICLE]), Telemetry("meter", METER, USUAL[METER]))
COUNTERS: Final = Telemetry("counter", METER, COUNTS)
TARGETS: Final = [
    Target("rollups: fleet, whole hours, CPU of readings / of rollups", 40, 80),
    Target("rollups: fleet, whole hours, from rollups", 150, 50, higher=False),
    Target("rollups: CPU of the fleet with pairings / without", 2, 2, higher=False),
]
_SIZE: Final = """
SELECT sum(pg_total_relation_size(format('%I', $1::text || '_telemetry_' || t)))::bigint FROM unnest($2::text[]) AS t
"""


async def run(context: Context) -> ScenarioResult:
    """A day of minutes; each read some times from readings, rolled up, and read again. Answers must be the same."""
    found = Collected()
    if context.target is not None:
        return ScenarioResult("rollups", [], TARGETS, 0, ["needs an empty cluster of its own: not run against --url"])
    devices = DEVICES_FULL if context.full else DEVICES_QUICK
    context.begin("rollups", 0, extra=4)
    start = (datetime.now(UTC) - timedelta(days=1)).replace(minute=0, second=0, microsecond=0)
    async with voltroute(context.shards, SETTINGS, BUCKETS) as system:
        made = await _compare(context, system, TELEMETRY, (devices, start), found)
        await _sizes(system, found, made)
        await _paired(system, devices, _paths(start)["fleet, whole hours"], found)
    async with voltroute(context.shards, SETTINGS, BUCKETS) as system:
        made += await _compare(context, system, [COUNTERS], (devices, start), found)
    notes = [f"{devices:,} vehicles and {devices:,} meters, a day of minutes, {HOURS} h asked for {TIMES} times"]
    notes += [] if context.full else [f"--full has {DEVICES_FULL:,} of each"]
    return ScenarioResult("rollups", found.figures(), TARGETS, made, notes)


async def _compare(
    context: Context,
    system: System,
    sent: Sequence[Telemetry],
    of: tuple[int, datetime],
    found: Collected,
) -> int:
    """What some devices sent in a day, read from readings and from rollups; how many readings it is."""
    devices, start = of
    context.step(f"{len(sent) * devices * MINUTES_A_DAY:,} readings are made")
    made = sum([await fill(system, telemetry, devices, start, 1) for telemetry in sent])
    what = "" if sent is TELEMETRY else f"{sent[0].name}s: "
    paths = {f"{what}{name}": path for name, path in _paths(start).items() if not what or name.startswith("fleet")}
    web = await connect(system.url)
    context.step("from readings")
    before = {name: await _read(system, web, path, found, f"{name}, from readings") for name, path in paths.items()}
    context.step("rolling up")
    await command(system, "lifecycle", "policy", "set", "--hot", "7d")
    started = time.perf_counter()
    await command(system, "lifecycle", "run")
    found.add(f"rollups: {what}rolled up a second", "readings/s", made / (time.perf_counter() - started))
    context.step("from rollups")
    for name, path in paths.items():
        if await _read(system, web, path, found, f"{name}, from rollups") != before[name]:
            message = f"{name}: the answer from rollups is not the one from readings"
            raise MeasurementError(message)
        if name.removeprefix(what).startswith("fleet"):
            _ratio(found, f"{name}, CPU of readings / of rollups", [f"{name}, from readings", f"{name}, from rollups"])
    web.close()
    return made


def _period(start: datetime) -> str:
    return f"from={start:%Y-%m-%dT%H:%M:%SZ}&to={start + timedelta(hours=HOURS):%Y-%m-%dT%H:%M:%SZ}"


def _paths(start: datetime) -> dict[str, str]:
    whole, off = _period(start + timedelta(hours=1)), _period(start + timedelta(hours=1, minutes=OFF_MIN))
    return {
        "fleet, whole hours": f"/v1/analytics/fleet?{whole}",
        "fleet, whole minutes": f"/v1/analytics/fleet?{off}",
        "fleet, by the hour": f"/v1/analytics/fleet?{whole}&interval=1h",
        "a vehicle, whole minutes": f"/v1/analytics/performance/{TELEMETRY[0].device(1)}?{off}",
    }


async def _read(system: System, web: Connection, path: str, found: Collected, name: str) -> Any:
    """The answer without its tiers and its time; the median of some, and PostgreSQL's CPU for one."""
    answer = await web.request(get(system.url, path))  # statements are prepared, pages are in memory
    seconds = []
    used = system.cpu().postgres
    for _ in range(TIMES):
        started = time.perf_counter()
        answer = await web.request(get(system.url, path))
        seconds.append(time.perf_counter() - started)
    found.add(f"rollups: {name}", "ms", statistics.median(seconds) * 1e3)
    found.add(f"rollups: {name}, PostgreSQL", "CPU ms", (system.cpu().postgres - used) / TIMES * 1e3)
    if answer.status != 200:
        message = f"{path}: status {answer.status}"
        raise MeasurementError(message)
    body = orjson.loads(answer.body)
    del body["tiers"], body["asOf"]
    return body


def _ratio(found: Collected, name: str, of: list[str]) -> None:
    one, other = (found.values[f"rollups: {each}, PostgreSQL"][0] for each in of)
    found.add(f"rollups: {name}", "", one / max(other, 1e-9))


async def _sizes(system: System, found: Collected, made: int) -> None:
    """What rollups of hot readings take."""
    for kind in (VEHICLE, METER):
        size = 0
        for dsn in system.shards.values():
            connection = await asyncpg.connect(dsn)
            size += await connection.fetchval(_SIZE, kind.name, ["hourly", "minutely"])
            await connection.close()
        found.add(f"rollups: {kind.name}, hours and minutes", "B/reading", size * len(TELEMETRY) / made)


async def _paired(system: System, devices: int, path: str, found: Collected) -> None:
    """Every vehicle is paired with a meter since long ago."""
    web = await connect(system.url)
    vehicle, meter = TELEMETRY
    for number in range(devices):
        ids = {"vehicleId": vehicle.device(number), "meterId": meter.device(number)}
        body = orjson.dumps({**ids, "validFrom": "2026-01-01T00:00:00Z"})
        answer = await web.request(put(system.url, "/v1/pairings", body))
        if answer.status not in {200, 201}:
            message = f"a pairing was refused: {answer.status}"
            raise MeasurementError(message)
    await _read(system, web, path, found, "fleet with pairings, from rollups")
    of = ["fleet with pairings, from rollups", "fleet, whole hours, from rollups"]
    _ratio(found, "CPU of the fleet with pairings / without", of)
    web.close()
