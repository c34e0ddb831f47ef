"""`rebalance`: a shard is added and filled on a quiet cluster, then another one is drained under load."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import asyncpg
import orjson

from bench import beside
from bench.commands import command
from bench.context import Context
from bench.filling import fill
from bench.http1 import connect, get
from bench.load import Outcome
from bench.results import Collected, Curve, ScenarioResult, Target
from bench.systems import VOLTROUTE, System
from bench.workload import METER, VEHICLE, new_readings

MINUTES_QUICK: Final = 300
MINUTES_FULL: Final = 3_000
DEVICES: Final = 2_000  # of each kind
KEEP_S: Final = 2
NEW: Final = "shard-new"
TARGETS: Final = [
    Target("rebalance: copied rows / plain COPY", 0.5, 0.8),
    Target("rebalance: longest write pause", 200, 100, higher=False),
    Target("rebalance: single p99, during / before", 3, 2, higher=False),
    Target("rebalance: refused requests", 0, 0, higher=False),
]


async def run(context: Context) -> ScenarioResult:
    """Quiet moves for the speed of the copy, moves under load for what devices notice of them."""
    found = Collected()
    if context.target is not None:
        return ScenarioResult("rebalance", [], TARGETS, 0, ["needs a cluster of its own: not run against --url"])
    minutes = MINUTES_FULL if context.full else MINUTES_QUICK
    context.begin("rebalance", 0, extra=6)
    context.step("starting")
    async with context.systems() as systems:
        ours = systems[VOLTROUTE]
        context.step(f"{2 * DEVICES * minutes:,} readings are made")
        for kind in (METER, VEHICLE):
            await fill(ours, new_readings(DEVICES, kind), minutes)
        context.step("a shard is added and filled")
        await command(ours, "shard", "add", NEW)
        shards = {**ours.shards, **await _shards(ours)}
        await command(ours, "rebalance", "start", "--watch", "--keep", str(KEEP_S))
        quiet = await _moves(ours)
        copied = sum(move["rowsDone"] for move in quiet) / sum(move["copyS"] for move in quiet)
        context.step("plain COPY")
        plain = await _plain_copy(shards[next(iter(ours.shards))], shards[NEW])
        found.add("rebalance: copied rows", "rows/s", copied)
        found.add("rebalance: plain COPY", "rows/s", plain)
        context.step("load, nothing moves")
        before = await beside.segment("rebalance", ours, shards, found)
        context.step("load, a shard is drained")
        victim = list(ours.shards)[1]
        draining = asyncio.create_task(command(ours, "shard", "drain", victim, "--watch", "--keep", str(KEEP_S)))
        during = await beside.segments("rebalance", ours, shards, found, draining)
        await draining
        moves = await _moves(ours)
        _report(found, before, during, moves)
        ratio = found.ratio("rebalance: copied rows / plain COPY", "rebalance: copied rows", "rebalance: plain COPY")
    notes = [f"{len(quiet)} moves without load, {len(moves)} under about 5,000 readings/s; one round"]
    return ScenarioResult("rebalance", found.figures(ratio), TARGETS, found.proofs, notes, found.curves)


def _report(found: Collected, before: Outcome, during: list[Outcome], moves: list[dict[str, Any]]) -> None:
    beside.report("rebalance", found, before, during)
    found.add("rebalance: longest write pause", "ms", max(move["pauseMs"] for move in moves))
    found.add("rebalance: retries", "", sum(move["retries"] for move in moves))
    points = [(float(place), move["pauseMs"]) for place, move in enumerate(moves)]
    found.curve(Curve("write pause of each move", "move", "ms", points))


async def _shards(system: System) -> dict[str, str]:
    """Name -> DSN of all shards, from the catalog."""
    connection = await asyncpg.connect(system.catalog)
    try:
        return {row["name"]: row["owner_dsn"] for row in await connection.fetch("SELECT name, owner_dsn FROM shard")}
    finally:
        await connection.close()


async def _moves(system: System) -> list[dict[str, Any]]:
    connection = await connect(system.url)
    answer = await connection.request(get(system.url, "/v1/rebalance"))
    connection.close()
    moves: list[dict[str, Any]] = orjson.loads(answer.body)["moves"]
    return moves


async def _plain_copy(source_dsn: str, target_dsn: str) -> float:
    """Rows a second of copying one shard's largest leaf into an empty table like it on the other: the ceiling."""
    source, target = await asyncpg.connect(source_dsn), await asyncpg.connect(target_dsn)
    try:
        leaf = await source.fetchval(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '_telemetry_history_b'"
            " ORDER BY pg_relation_size(oid) DESC LIMIT 1"
        )
        root = leaf.partition("_b")[0]
        await target.execute(f"CREATE TABLE plain_copy (LIKE {root} INCLUDING ALL)")
        chunks: asyncio.Queue[bytes | None] = asyncio.Queue(8)

        async def give() -> AsyncIterator[bytes]:
            while (chunk := await chunks.get()) is not None:
                yield chunk

        async def read() -> None:
            await source.copy_from_table(leaf, output=chunks.put, format="binary")
            await chunks.put(None)

        started = time.perf_counter()
        _, done = await asyncio.gather(read(), target.copy_to_table("plain_copy", source=give(), format="binary"))
        seconds = time.perf_counter() - started
        await target.execute("DROP TABLE plain_copy")
        return int(str(done).rpartition(" ")[2]) / seconds
    finally:
        await source.close()
        await target.close()
