"""kill -9 of a router under load: what it acknowledged is there. SIGTERM: it finishes what it accepted."""

import asyncio

import httpx2

from tests.support.ledger import statuses, stored, wipe
from tests.support.load import Recorder
from tests.support.readings import meter
from tests.support.routers import start_router
from tests.support.servers import TestCluster

KILLS = 20
ACKNOWLEDGED_BEFORE_A_KILL = 150


async def test_killed_twenty_times(cluster: TestCluster) -> None:
    await wipe(cluster.shards)
    recorder = Recorder()
    for _ in range(KILLS):
        router = await start_router(cluster.catalog_dsn, VOLTROUTE_POOL_MIN="1")
        never = asyncio.Event()
        load = asyncio.create_task(recorder.run(router.url, never))
        await recorder.more(ACKNOWLEDGED_BEFORE_A_KILL)
        router.kill()
        async with asyncio.timeout(30):
            await load
            await router.process.wait()
    rows = [(device, moment) for _, device, moment in await stored(cluster.shards)]
    assert len(rows) == len(set(rows))
    assert recorder.acknowledged <= set(rows)
    assert len(recorder.acknowledged) >= KILLS * ACKNOWLEDGED_BEFORE_A_KILL
    assert set(recorder.statuses) == {200}
    status = await statuses(cluster.shards)
    assert all(status[device] >= moment for device, moment in recorder.newest().items())


async def test_a_stopping_router_finishes_what_it_accepted(cluster: TestCluster) -> None:
    await wipe(cluster.shards)
    router = await start_router(cluster.catalog_dsn)
    recorder = Recorder()
    until = asyncio.Event()
    load = asyncio.create_task(recorder.run(router.url, until))
    await recorder.more(300)
    await router.stop()
    until.set()
    await load
    assert router.process.returncode == 0
    rows = {(device, moment) for _, device, moment in await stored(cluster.shards)}
    assert recorder.acknowledged <= rows


async def test_readiness_ends_before_the_router_does(cluster: TestCluster) -> None:
    router = await start_router(cluster.catalog_dsn, VOLTROUTE_DRAIN_DELAY_S="30")
    async with httpx2.AsyncClient(base_url=router.url, timeout=10) as client:
        assert (await client.get("/readyz")).status_code == 200
        router.process.terminate()
        async with asyncio.timeout(10):
            while (await client.get("/readyz")).status_code != 503:
                pass
        assert (await client.post("/v1/ingest", json=meter("LATE", 1))).status_code == 200
    router.kill()
    await router.process.wait()
