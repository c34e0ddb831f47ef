"""Buckets that move, with months that are archived, restored, or on their way out: both sides know what is gone."""

import asyncio
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio

from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.moves import rebalances
from shards.moves.phases import Move, Phase, Role
from shards.moves.placement import PlannedMove
from shards.operations import resolve
from shards.operations.archive import Wanted
from tests.support.archiving import leave, left, restored, use
from tests.support.ledger import execute, fetch
from tests.support.months import DEVICES, LEFT, PERIOD, packed, states, sums, total
from tests.support.moving import Steps, ended, leftovers, owner_of, reached, running, start
from tests.support.readings import vehicle
from tests.support.rolling import roll
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tiering import Interrupted, answers, until

pytestmark = pytest.mark.timeout(400)  # each moves every bucket three times
MAY = Wanted(None, date(2026, 5, 1), date(2026, 6, 1))
BUCKETS = 4


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(servers: list[str], tmp_path: Path) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=BUCKETS) as made:
        await use(made, f"file://{tmp_path}/archive")
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def client(cluster: TestCluster) -> AsyncIterator[httpx2.AsyncClient]:
    async with in_process(cluster, runner=False) as made:
        yield made


async def plan(cluster: TestCluster) -> list[PlannedMove]:
    """Every bucket to the next shard."""
    names = [*cluster.shards]
    owners = [await owner_of(cluster, bucket) for bucket in range(BUCKETS)]
    return [PlannedMove(at, owner, names[names.index(owner) - 1]) for at, owner in enumerate(owners)]


@pytest.mark.parametrize("place", [None, "inside take", "after export", "after seal"])
async def test_moved_and_moved_back(client: httpx2.AsyncClient, cluster: TestCluster, place: str | None) -> None:
    """Wherever they were on their way out when the moves began."""
    of_hours, of_all = await packed(client, cluster)
    if place is None:
        await left(cluster)
        await restored(cluster, MAY)
    else:
        with pytest.raises(Interrupted):
            await leave(cluster, until(place, 3))
    catalog = Catalog(cluster.catalog_dsn)
    await start(catalog, await plan(cluster), keep_s=600)
    async with running(catalog):
        await reached(catalog, Phase.CLEANUP)
        assert await sums(client) == of_hours
        if place is None:
            late = await client.post("/v1/ingest/vehicle", json=vehicle("V-0", 7.25))
            assert late.status_code == 422, late.text
        assert await rebalances.roll_back(catalog, None, deadline_in(5)) == BUCKETS
        await reached(catalog, Phase.ROLLBACK_CLEANUP)
        await execute(cluster.catalog_dsn, "UPDATE rebalance SET keep_s = 0")
        assert await ended(catalog) == "cancelled"
    assert await leftovers(cluster) == []
    await roll(cluster)
    assert await sums(client) == of_hours
    await start(catalog, await plan(cluster))
    async with running(catalog):
        assert await ended(catalog) == "done"
    await roll(cluster)
    assert await sums(client) == of_hours
    await left(cluster)
    assert (await total(cluster, LEFT) > 0) is (place is None)  # what was restored stays for its time
    await restored(cluster)
    assert await states(cluster) == {"restored"}
    assert (await sums(client), await answers(client, PERIOD, DEVICES)) == (of_hours, of_all)
    await catalog.close()


async def test_an_operators_decision_keeps_sums_of_archived_time(
    client: httpx2.AsyncClient, cluster: TestCluster
) -> None:
    """The target has the horizons, and no sums yet, when it is told to keep the bucket."""
    of_hours, of_all = await packed(client, cluster)
    await left(cluster)
    has_sums = "SELECT max(bucket)::int AS bucket FROM vehicle_telemetry_daily"
    bucket = max([(await fetch(dsn, has_sums))[0]["bucket"] or 0 for dsn in cluster.shards.values()])
    source = await owner_of(cluster, bucket)
    target = next(name for name in cluster.shards if name != source)
    catalog = Catalog(cluster.catalog_dsn)
    await start(catalog, [PlannedMove(bucket, source, target)])
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
    assert await owner_of(cluster, bucket) == target
    await roll(cluster)
    assert await sums(client) == of_hours
    await restored(cluster)
    assert await answers(client, PERIOD, DEVICES) == of_all
    await catalog.close()
