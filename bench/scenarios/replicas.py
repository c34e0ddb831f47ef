"""`replicas`: analytics beside ingestion with no, one and two replicas of each shard, and what each notices."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson

from bench.beside import CONNECTIONS, RATE, SEGMENT_S, plan_beside
from bench.context import Context
from bench.filling import fill
from bench.http1 import connect, get
from bench.load import Outcome, closed_loop, open_loop
from bench.measure import MeasurementError, prove_plan
from bench.results import Collected, ScenarioResult, Target
from bench.systems import System, voltroute
from bench.workload import METER, VEHICLE, Plan, Readings

SHARDS: Final = 2
COUNTS: Final = (0, 1, 2)
DEVICES: Final = 400  # of each kind
HOURS: Final = 24
READERS: Final = 4
READS_MAX: Final = 2_000  # a second, that no system here reaches
READY_S: Final = 120
POLL_S: Final = 0.2
TARGETS: Final = [
    Target(f"replicas: {count}, ingestion p99 with analytics / without", 1.5, 1.1, higher=False) for count in (1, 2)
]


async def run(context: Context) -> ScenarioResult:
    """One cluster after the other: ingestion alone, then analytics in a closed loop beside it."""
    found = Collected()
    if context.target is not None:
        return ScenarioResult("replicas", [], TARGETS, 0, ["needs clusters of its own: not run against --url"])
    context.begin("replicas", len(COUNTS) * 2, extra=len(COUNTS))
    for count in COUNTS:
        context.step(f"{count} replicas of each shard: starting")
        async with voltroute(SHARDS, replicas=count) as system:
            end = datetime.now(UTC).replace(second=0, microsecond=0)
            for kind in (VEHICLE, METER):
                readings = Readings(kind, f"A{kind.name[0].upper()}", DEVICES, end - timedelta(hours=HOURS))
                await fill(system, readings, HOURS * 60)
            await _until_read(system, count)
            for _ in range(context.rounds):
                await _round(context, system, count, found)
    rates = [f"replicas: {count}, analytics" for count in COUNTS]
    ratios = [found.ratio(f"replicas: analytics, {count} / 0", rates[count], rates[0]) for count in COUNTS[1:]]
    notes = [f"{SHARDS} shards, {DEVICES} meters and {DEVICES} vehicles, {HOURS} h of minutes; {READERS} readers"]
    return ScenarioResult("replicas", found.figures(*ratios), TARGETS, found.proofs, notes, found.curves)


async def _round(context: Context, system: System, count: int, found: Collected) -> None:
    title = f"replicas: {count}"
    context.step(f"{count} replicas: ingestion alone")
    alone = await _ingest(system, found)
    context.step(f"{count} replicas: analytics beside it")
    plan = Plan(system.url)
    for _ in range(int(READS_MAX * SEGMENT_S)):
        plan.read("/v1/analytics/fleet", "fleet")
    reading = asyncio.create_task(closed_loop(plan, READERS, SEGMENT_S))
    beside = await _ingest(system, found)
    read = await reading
    if set(read.all_statuses()) != {200}:
        message = f"analytics: answers {read.all_statuses()}"
        raise MeasurementError(message)
    found.add(f"{title}, analytics", "requests/s", len(read.acknowledged) / read.seconds)
    for when, outcome in (("without", alone), ("with", beside)):
        found.add(f"{title}, ingestion p99 {when} analytics", "ms", outcome.percentile_ms(99, "single"))
    slower = beside.percentile_ms(99, "single") / alone.percentile_ms(99, "single")
    found.add(f"{title}, ingestion p99 with analytics / without", "x", slower)


async def _ingest(system: System, found: Collected) -> Outcome:
    """Some 5,000 readings a second in an open loop."""
    plan = plan_beside(system.url)
    outcome = await open_loop(plan, CONNECTIONS, RATE)
    found.proofs += (await prove_plan(system, plan, outcome)).acknowledged
    return outcome


async def _until_read(system: System, count: int) -> None:
    """Every replica has what was written, and is read."""
    connection = await connect(system.url)
    try:
        async with asyncio.timeout(READY_S):
            while True:
                told: dict[str, Any] = orjson.loads((await connection.request(get(system.url, "/v1/shards"))).body)
                replicas = [each for shard in told["items"] for each in shard["replicas"]]
                if sum(bool(each["isRead"]) for each in replicas) == SHARDS * count:
                    return
                await asyncio.sleep(POLL_S)
    finally:
        connection.close()
