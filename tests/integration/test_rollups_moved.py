"""Rollups of buckets that move: what one side does not have summed, nobody believes to be."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest_asyncio

from shards.catalog.database import Catalog
from shards.moves.phases import Move, Role
from shards.moves.placement import PlannedMove
from shards.operations import resolve
from tests.support.ledger import execute, fetch
from tests.support.moving import Steps, ended, owner_of, running, start
from tests.support.readings import at, ingest, vehicle
from tests.support.rolling import roll
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster

WHOLE = {"from": at(-60), "to": at(120)}


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=8) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def client(cluster: TestCluster) -> AsyncIterator[httpx2.AsyncClient]:
    async with in_process(cluster, runner=False) as made:
        yield made


async def test_an_operators_decision_leaves_no_half_sums(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """The target was given the mark, and its sums were not copied yet, when it was told to keep the bucket."""
    await ingest(client, [vehicle(f"V-{n}", minute) for n in range(40) for minute in range(30)])
    await roll(cluster)
    catalog = Catalog(cluster.catalog_dsn)
    source = await owner_of(cluster, 0)
    target = next(name for name in cluster.shards if name != source)
    await start(catalog, [PlannedMove(0, source, target)])
    stopped: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def stop(move: Move) -> None:
        if not stopped.done():
            stopped.set_result(move.move_id)
        await asyncio.Event().wait()

    async with running(catalog, Steps(at={"before leaf": stop})):
        number = await stopped
    await resolve.keep(catalog, number, Role.TARGET)
    async with running(catalog):
        assert await ended(catalog) in {"done", "failed"}
    assert await owner_of(cluster, 0) == target
    for _ in range(2):
        told = (await client.get("/v1/analytics/fleet", params=WHOLE)).json()
        assert told["dataPoints"] == 40 * 30
        await roll(cluster)
    await catalog.close()


async def test_readings_behind_the_mark_that_a_move_brings(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """As a clock that was set back leaves them on the source: neither side has them in its sums."""
    await ingest(client, [vehicle(f"V-{n}", minute) for n in range(40) for minute in range(30)])
    await roll(cluster)
    catalog = Catalog(cluster.catalog_dsn)
    source = await owner_of(cluster, 0)
    target = next(name for name in cluster.shards if name != source)
    stray = """
INSERT INTO vehicle_telemetry_history (timestamp, ingested_at, soc, kwh_delivered_dc, battery_temp, bucket, vehicle_id)
SELECT timestamp + interval '1 second', ingested_at, soc, kwh_delivered_dc, battery_temp, bucket, vehicle_id
FROM vehicle_telemetry_history WHERE bucket = 0
"""
    steps = Steps()

    async def step_back(_move: Move) -> None:
        await execute(cluster.shards[source], stray)
        # A runner that knows nothing of the clock compares by content.
        await execute(cluster.shards[source], "UPDATE bucket_move SET low_water = NULL")

    steps.at["after entering catchup"] = step_back
    before = (await fetch(cluster.shards[source], "SELECT count(*) FROM vehicle_telemetry_history WHERE bucket = 0"))[0]
    assert before["count"]
    await start(catalog, [PlannedMove(0, source, target)])
    async with running(catalog, steps):
        assert await ended(catalog) == "done"
    told = (await client.get("/v1/analytics/fleet", params=WHOLE)).json()
    assert told["dataPoints"] == 40 * 30 + before["count"]
    await roll(cluster)
    again = (await client.get("/v1/analytics/fleet", params=WHOLE)).json()
    assert (again["dataPoints"], again["tiers"]) == (told["dataPoints"], ["rollups"])
    await catalog.close()
