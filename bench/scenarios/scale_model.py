"""`scale-model`: costs of small clusters, fitted, and what many devices need by them."""

import re
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Final

import asyncpg

from bench import http1, model
from bench.capacity import COSTS, SCALE
from bench.context import Context
from bench.load import closed_loop
from bench.measure import Shape, flood
from bench.model import Costs, Point
from bench.results import Collected, ScenarioResult
from bench.systems import System, voltroute
from bench.workload import Plan, new_readings

COUNTS: Final = (1, 4)  # shards, so that one has 64 buckets, the others 16
SHAPES: Final = (Shape(1, 64), Shape(8, 16), Shape(100, 8), Shape(1_000, 8))
EXPECTED_RATE: Final = {1: 20_000, 8: 60_000, 100: 200_000, 1_000: 400_000}
BUCKETS: Final = 64
FLEETS: Final = (10_000, 1_000_000, 10_000_000)
FAN_OUTS: Final = (1, 4, 16, 100)
SLOW: Final = (0.01, 100.0)  # one call in a hundred takes 100 ms more
READS: Final = 300
_SUM: Final = re.compile(
    rb"^(voltroute_batch_(?:readings|duration_seconds)_(?:sum|count))\{[^}]*\} (\S+)", re.MULTILINE
)
_WRITTEN: Final = """
SELECT (pg_current_wal_insert_lsn() - '0/0')::float8 AS wal, pg_database_size(current_database()) AS size
"""


async def _get(system: System, path: str) -> bytes:
    connection = await http1.connect(system.url)
    try:
        return (await connection.request(http1.get(system.url, path))).body
    finally:
        connection.close()


async def _counted(system: System) -> Mapping[str, float]:
    """Sums over all lanes of what Prometheus would read."""
    found: dict[str, float] = {}
    for name, value in _SUM.findall(await _get(system, "/metrics")):
        found[name.decode()] = found.get(name.decode(), 0.0) + float(value)
    return found


async def _written(system: System) -> tuple[float, float]:
    """Bytes of WAL so far, and of the databases, over all shards."""
    wal = size = 0.0
    for dsn in system.shards.values():
        connection = await asyncpg.connect(dsn)
        try:
            (row,) = await connection.fetch(_WRITTEN)
        finally:
            await connection.close()
        wal, size = wal + row["wal"], size + row["size"]
    return wal, size


async def _point(system: System, shape: Shape, seconds: float, found: Collected) -> tuple[Point, float]:
    """One measurement, and the bytes that a reading takes."""
    before, (wal, size) = await _counted(system), await _written(system)
    measured = await flood(system, shape, seconds, EXPECTED_RATE[shape.size])
    after, (wal_after, size_after) = await _counted(system), await _written(system)
    used = {name: after[name] - before.get(name, 0.0) for name in after}
    readings, batches = used["voltroute_batch_readings_sum"], used["voltroute_batch_readings_count"]
    found.proofs += measured.proof.acknowledged
    point = Point(
        shape.size,
        readings / batches,
        BUCKETS // len(system.shards),
        measured.cpu_us.server,
        measured.cpu_us.postgres,
        (wal_after - wal) / readings,
        used["voltroute_batch_duration_seconds_sum"] / used["voltroute_batch_duration_seconds_count"],
    )
    return point, (size_after - size) / readings


async def _reads(system: System) -> list[float]:
    """Milliseconds of reads that one shard answers, one after the other: 1,000 values that are as frequent as those."""
    readings, plan = new_readings(1), Plan(system.url)
    plan.write(readings, range(200))
    for _ in range(READS):
        plan.read(f"/v1/vehicles/{readings.device(0)}/history?limit=100", "read")
    outcome = await closed_loop(plan, 1, None)
    return [outcome.percentile_ms(at / 10, "read") for at in range(1_000)]


async def run(context: Context) -> ScenarioResult:
    """Measure, fit, and say what follows. Nothing here is a claim about machines that were not measured."""
    found, points, disk = Collected(), list[Point](), list[float]()
    if context.target is not None:
        return ScenarioResult("scale-model", [], [], 0, ["needs clusters of its own: not run against --url"])
    context.begin("scale-model", len(COUNTS) * len(SHAPES), extra=len(COUNTS) + 1)
    async with AsyncExitStack() as stack:
        systems = []
        for count in COUNTS:
            context.step(f"starting {count} shards")
            systems.append(await stack.enter_async_context(voltroute(count)))
            await flood(systems[-1], SHAPES[-1], 1, EXPECTED_RATE[1_000])
        for _ in range(context.rounds):
            for shape in SHAPES:
                for system in systems:
                    context.step(f"{shape.size:,} a request, {len(system.shards)} shards")
                    point, size = await _point(system, shape, context.seconds, found)
                    points.append(point)
                    disk += [size] if shape.size >= 100 else []
                    name = f"scale-model: {shape.size} a request, {point.buckets} buckets a shard"
                    for what, value in (("router CPU", point.router_us), ("PostgreSQL CPU", point.postgres_us)):
                        found.add(f"{name}, {what}", "us/reading", value)
                    found.add(f"{name}, batch", "readings", point.batch)
        context.step("reads")
        one_ms = await _reads(systems[0])
    costs = Costs.of(points)
    for part, named in COSTS.items():
        for (what, unit), value in zip(named, getattr(costs, part), strict=True):
            found.add(f"{SCALE}, {part}, {what}", unit, value)
    found.add("scale-model: hot disk", "bytes/reading", sum(disk) / len(disk))
    return ScenarioResult("scale-model", found.figures(), [], found.proofs, notes(costs, sum(disk) / len(disk), one_ms))


def notes(costs: Costs, disk_bytes: float, one_ms: list[float]) -> list[str]:
    """What the fitted costs say, in lines."""
    each, transaction, bucket = costs.postgres
    lines = [
        f"router CPU: {costs.router[0]:.1f} us a reading + {costs.router[1]:.0f} a request",
        f"PostgreSQL CPU: {each:.1f} us a reading + {transaction:.0f} a transaction + {bucket:.1f} a bucket in it",
        f"WAL: {costs.wal[0]:.0f} bytes a reading + {costs.wal[1]:.0f} a transaction",
        f"hot disk: {disk_bytes:.0f} bytes a reading",
        f"a transaction: {costs.commit[0] * 1000:.1f} ms + {costs.commit[1] * 1e6:.0f} us a reading",
    ]
    lines += [model.needs(costs, devices, disk_bytes).words() for devices in FLEETS]
    for words, slow in (("as measured", (0.0, 0.0)), (f"{SLOW[0]:.0%} of calls {SLOW[1]:.0f} ms slower", SLOW)):
        for shards in FAN_OUTS:
            made = model.fan_out(one_ms, shards, slow)
            lines.append(
                f"fan-out over {shards:>3} shards, {words}: p99 {made.p99_ms:.1f} ms; {made.hedged_ms:.1f} ms with a "
                f"second try after p95 ({made.more:.0%} calls more)"
            )
    return lines
