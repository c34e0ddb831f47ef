"""`reads`: what status, history and activity cost over HTTP, beside their bare statements and an empty application."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg

from bench.context import Context
from bench.filling import fill
from bench.http1 import Connection, connect, get
from bench.measure import MeasurementError
from bench.ownership import bucket_of, owners
from bench.results import Collected, ScenarioResult, Target
from bench.systems import NULL, VOLTROUTE, System
from bench.workload import METER, VEHICLE, Readings

DEVICES: Final = 500  # of each kind
HOURS: Final = 24
ROWS: Final = 100
READS: Final = ("status", "history", "activity")
POINTS: Final = "reads: 24 h as 300 points / status"
TARGETS: Final = [
    Target(POINTS, 3, 3, higher=False),
    *(Target(f"reads: {read} / (its statement + an empty answer)", 2, 1.5, higher=False) for read in READS),
]
_NEWEST: Final = "SELECT * FROM {table} WHERE bucket = $1 AND {id} = $2"
_HISTORY: Final = _NEWEST + " AND timestamp <= $3 ORDER BY timestamp DESC LIMIT 100"
_ACTIVITY: Final = "SELECT * FROM {table} WHERE timestamp > $1 ORDER BY timestamp DESC, {id} DESC LIMIT 100"

Read = Callable[[], Awaitable[None]]


async def run(context: Context) -> ScenarioResult:
    """One after the other on connections that are open, in turns: the caches are warm, nothing else happens."""
    found = Collected()
    if context.target is not None:
        return ScenarioResult("reads", [], TARGETS, 0, ["needs an empty cluster of its own: not run against --url"])
    context.begin("reads", 1, extra=2)
    context.step("starting")
    async with context.systems() as systems:
        ours = systems[VOLTROUTE]
        end = datetime.now(UTC).replace(second=0, microsecond=0)
        made = [
            Readings(kind, f"R{kind.name[0].upper()}", DEVICES, end - timedelta(hours=HOURS))
            for kind in (VEHICLE, METER)
        ]
        context.step(f"{2 * DEVICES * HOURS * 60:,} readings are made")
        for readings in made:
            await fill(ours, readings, HOURS * 60)
        opened = {name: await asyncpg.connect(dsn) for name, dsn in ours.shards.items()}
        connections = {name: await connect(systems[name].url) for name in (VOLTROUTE, NULL)}
        try:
            reads = _over_http(ours, systems[NULL], connections, made[0].device(0), end)
            reads |= await _bare(ours, opened, made[0].device(0), end)
            for _ in range(context.rounds):
                context.step("reads")
                for name, milliseconds in (await _in_turns(reads, context.seconds)).items():
                    found.add(f"reads: {name}", "ms", milliseconds)
        finally:
            for each in opened.values():
                await each.close()
            for one in connections.values():
                one.close()
    return ScenarioResult("reads", found.figures(*_ratios(found)), TARGETS, 0, [])


def _over_http(
    ours: System, null: System, connections: Mapping[str, Connection], device: str, end: datetime
) -> dict[str, Read]:
    since = (end - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    paths = {
        "status": f"/v1/vehicles/{device}/status",
        "history": f"/v1/vehicles/{device}/history?limit={ROWS}",
        "activity": f"/v1/analytics/activity?since={since}&limit={ROWS}",
        "points": f"/v1/vehicles/{device}/points?field=soc&points=300",
        "series": f"/v1/vehicles/{device}/series?field=soc&interval=1h",
    }

    def read(name: str, url: str, path: str) -> Read:
        payload = get(url, path)

        async def ask() -> None:
            answer = await connections[name].request(payload)
            if answer.status != 200:
                message = f"{path}: answers {answer.status}"
                raise MeasurementError(message)

        return ask

    found = {topic: read(VOLTROUTE, ours.url, path) for topic, path in paths.items()}
    return {**found, "an empty answer": read(NULL, null.url, "/empty")}


async def _bare(ours: System, opened: Mapping[str, Any], device: str, end: datetime) -> dict[str, Read]:
    """The statements by themselves: of a device on its shard, of all on every shard at once."""
    owner = await owners(ours.shards)
    bucket = bucket_of(device, len(owner))
    mine, since = opened[owner[bucket]], end - timedelta(hours=1)
    status = _NEWEST.format(table=VEHICLE.status, id=VEHICLE.id_column)
    history = _HISTORY.format(table=VEHICLE.history, id=VEHICLE.id_column)
    newest = [_ACTIVITY.format(table=kind.history, id=kind.id_column) for kind in (METER, VEHICLE)]

    async def on(connection: Any) -> None:
        for statement in newest:
            await connection.fetch(statement, since)

    async def activity() -> None:
        await asyncio.gather(*(on(each) for each in opened.values()))

    return {
        "statement of status": lambda: mine.fetch(status, bucket, device),
        "statement of history": lambda: mine.fetch(history, bucket, device, end),
        "statement of activity": activity,
    }


async def _in_turns(reads: Mapping[str, Read], seconds: float) -> dict[str, float]:
    """Median milliseconds of each."""
    taken: dict[str, list[float]] = {name: [] for name in reads}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, read in reads.items():
            started = time.perf_counter()
            await read()
            taken[name].append(time.perf_counter() - started)
    return {name: sorted(each)[len(each) // 2] * 1_000 for name, each in taken.items()}


def _ratios(found: Collected) -> list[Any]:
    ratios = [
        found.ratio(POINTS, "reads: points", "reads: status"),
        found.ratio("reads: 24 h by the hour / status", "reads: series", "reads: status"),
    ]
    for read in READS:
        bare, floor = f"reads: statement of {read}", "reads: an empty answer"
        both = [a + b for a, b in zip(found.values[bare], found.values[floor], strict=True)]
        for value in both:
            found.add(f"reads: statement of {read} + an empty answer", "ms", value)
        ratios.append(found.ratio(f"reads: {read} / its statement", f"reads: {read}", bare))
        ratios.append(
            found.ratio(
                f"reads: {read} / (its statement + an empty answer)", f"reads: {read}", f"{bare} + an empty answer"
            )
        )
    return ratios
