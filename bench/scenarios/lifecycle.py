"""`lifecycle`: days of history are packed by the leader beside about 5,000 readings a second: what devices notice."""

import asyncio
import itertools
import time
from datetime import UTC, datetime, timedelta
from typing import Final

import asyncpg

from bench import beside
from bench.commands import command
from bench.context import Context
from bench.lifelike import MINUTES_A_DAY, OLD_AFTER, TOO_EARLY, USUAL, Telemetry, fill
from bench.measure import MeasurementError
from bench.results import Collected, ScenarioResult, Target
from bench.systems import System, voltroute
from bench.workload import METER, VEHICLE

DEVICES_FULL: Final = 1_000  # of each kind
DEVICES_QUICK: Final = 100
DAYS: Final = 2
AGO: Final = timedelta(days=60)
BUCKETS: Final = 16
SETTINGS: Final = {"VOLTROUTE_LIFECYCLE_S": "0.5"}
PACK_TIMEOUT_S: Final = 900
TARGETS: Final = [
    Target("lifecycle: single p99, during / before", 1.2, 1, higher=False),
    Target("lifecycle: slowest answer during", 200, 100, higher=False),
    Target("lifecycle: refused requests", 0, 0, higher=False),
    Target("lifecycle: deadlocks", 0, 0, higher=False),
]
_DEADLOCKS: Final = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
_PACKED: Final = "SELECT coalesce(sum(packed_readings), 0)::bigint FROM tier"


async def run(context: Context) -> ScenarioResult:
    """Load before, then load while the leader of the same router freezes, packs and drops."""
    found = Collected()
    if context.target is not None:
        return ScenarioResult("lifecycle", [], TARGETS, 0, ["needs a cluster of its own: not run against --url"])
    if datetime.now(UTC).day <= OLD_AFTER:
        return ScenarioResult("lifecycle", [], TARGETS, 0, [TOO_EARLY])
    devices = DEVICES_FULL if context.full else DEVICES_QUICK
    context.begin("lifecycle", 0, extra=3)
    async with voltroute(context.shards, SETTINGS, BUCKETS) as system:
        context.step(f"{2 * devices * DAYS * MINUTES_A_DAY:,} old readings are made")
        start = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - AGO
        made = 0
        for kind in (VEHICLE, METER):
            made += await fill(system, Telemetry(f"old-{kind.name}", kind, USUAL[kind]), devices, start, DAYS)
        context.step("load, nothing is packed")
        await beside.segment("lifecycle", system, system.shards, found)  # the servers still write what was just made
        before = await beside.segment("lifecycle", system, system.shards, found)
        context.step("load, old readings are packed")
        await command(system, "lifecycle", "policy", "set", "--hot", "1d")
        packing = asyncio.create_task(_packed(system, made))
        during = await beside.segments("lifecycle", system, system.shards, found, packing)
        await packing
        beside.report("lifecycle", found, before, during)
        found.add("lifecycle: deadlocks", "", await _sum(system, _DEADLOCKS))
    notes = [f"{made:,} readings of {DAYS} old days were packed under about 5,000 readings/s; one round"]
    return ScenarioResult("lifecycle", found.figures(), TARGETS, found.proofs, notes, found.curves)


async def _packed(system: System, count: int) -> None:
    """Wait until so many readings are packed."""
    end = time.monotonic() + PACK_TIMEOUT_S
    for _ in itertools.takewhile(lambda _: time.monotonic() < end, itertools.count()):
        if await _sum(system, _PACKED) >= count:
            return
        await asyncio.sleep(0.5)
    message = f"not all of {count:,} readings were packed in {PACK_TIMEOUT_S} s"
    raise MeasurementError(message)


async def _sum(system: System, sql: str) -> int:
    """One number of all shards together."""
    total = 0
    for dsn in system.shards.values():
        connection = await asyncpg.connect(dsn)
        total += int(await connection.fetchval(sql))
        await connection.close()
    return total
