"""`--workers`: one address, several processes; each may be killed, and none outlives its supervisor."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.support.commands import run_command
from tests.support.ledger import stored, wipe
from tests.support.load import Recorder
from tests.support.readings import meter
from tests.support.routers import RouterProcess, start_router
from tests.support.servers import TestCluster

WAIT_S = 60
COUNT = 2


@asynccontextmanager
async def several(cluster: TestCluster, **settings: str) -> AsyncIterator[RouterProcess]:
    router = await start_router(cluster.catalog_dsn, VOLTROUTE_WORKERS=str(COUNT), VOLTROUTE_POOL_MIN="1", **settings)
    try:
        yield router
    finally:
        await router.stop()


def workers_of(router: RouterProcess) -> list[psutil.Process]:
    return psutil.Process(router.process.pid).children()


async def samples(client: httpx2.AsyncClient, name: str) -> dict[str, float]:
    """Worker -> sum of a metric's series."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families((await client.get("/metrics")).text):
        for sample in family.samples:
            if sample.name == name:
                found[sample.labels["worker"]] = found.get(sample.labels["worker"], 0.0) + sample.value
    return found


async def post(url: str, minute: int) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=10) as client:  # a connection of its own
        response = await client.post("/v1/ingest/meter", json=meter("SHARED", minute))
        assert (response.status_code, response.json()["accepted"]) == (200, 1)


async def test_metrics_are_of_all_workers_whichever_is_asked(cluster: TestCluster) -> None:
    await wipe(cluster.shards)
    async with several(cluster) as router, httpx2.AsyncClient(base_url=router.url, timeout=10) as client:
        for minute in range(60):
            await post(router.url, minute)
        told = await samples(client, "voltroute_ingest_readings_total")
        assert sorted(told) == ["1", "2"]
        assert sum(told.values()) == 60
        assert min(told.values()) > 0  # the kernel spreads connections
        assert await samples(client, "voltroute_worker_up") == {"1": 1, "2": 1}
        assert await samples(client, "voltroute_worker_restarts_total") == {"1": 0, "2": 0}
        half = 10 + 10 + 1  # of writers, of readers, and the one that watches
        told = await samples(client, "voltroute_pool_connections_max")
        assert told == dict.fromkeys(("1", "2"), half * len(cluster.shards))
    assert len(await stored(cluster.shards)) == 60


async def test_a_killed_worker_is_told_and_started_again(cluster: TestCluster) -> None:
    await wipe(cluster.shards)
    async with several(cluster) as router:
        recorder, until = Recorder(), asyncio.Event()
        load = asyncio.create_task(recorder.run(router.url, until))
        await recorder.more(100)
        workers_of(router)[0].kill()
        async with asyncio.timeout(WAIT_S):
            while True:
                async with httpx2.AsyncClient(base_url=router.url, timeout=10) as client:
                    try:
                        told = await samples(client, "voltroute_worker_restarts_total")
                    except httpx2.TransportError:  # the connection was the killed one's
                        continue
                if sum(told.values()) == 1 and len(told) == COUNT:
                    break
        until.set()  # by then it has ended, unless all of its connections were the other one's
        await load
        until.clear()
        load = asyncio.create_task(recorder.run(router.url, until))
        await recorder.more(100)
        until.set()
        await load
    rows = {(device, moment) for _, device, moment in await stored(cluster.shards)}
    assert recorder.acknowledged <= rows
    assert router.process.returncode == 0


async def test_a_sibling_that_does_not_answer_is_said_to_be_down(cluster: TestCluster) -> None:
    async with several(cluster) as router:
        stopped = workers_of(router)[0]
        stopped.send_signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(WAIT_S):
                while True:
                    async with httpx2.AsyncClient(base_url=router.url, timeout=5) as client:
                        try:
                            told = await samples(client, "voltroute_worker_up")
                        except httpx2.TimeoutException:  # the kernel gave the connection to the one that is stopped
                            continue
                    if sorted(told.values()) == [0, 1]:
                        break
        finally:
            stopped.send_signal(signal.SIGCONT)


async def test_a_worker_that_hangs_is_killed_and_started_again(cluster: TestCluster) -> None:
    async with several(cluster, VOLTROUTE_WORKER_SILENT_S="1") as router:
        hanging, other = workers_of(router)
        hanging.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(WAIT_S):
            while True:
                async with httpx2.AsyncClient(base_url=router.url, timeout=5) as client:
                    with contextlib.suppress(httpx2.TransportError):
                        if sum((await samples(client, "voltroute_worker_restarts_total")).values()) == 1:
                            break
        assert not hanging.is_running()
        assert other.is_running()
        assert len(workers_of(router)) == COUNT


async def test_workers_end_with_their_supervisor(cluster: TestCluster) -> None:
    async with several(cluster) as router:
        workers = workers_of(router)
        assert len(workers) == COUNT
        router.kill()
        async with asyncio.timeout(WAIT_S):
            while any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers):
                await asyncio.sleep(0.05)


async def test_stopping_loses_nothing(cluster: TestCluster) -> None:
    await wipe(cluster.shards)
    async with several(cluster) as router:
        recorder, until = Recorder(), asyncio.Event()
        load = asyncio.create_task(recorder.run(router.url, until))
        await recorder.more(300)
        await router.stop()
        until.set()
        await load
    assert router.process.returncode == 0
    rows = {(device, moment) for _, device, moment in await stored(cluster.shards)}
    assert recorder.acknowledged <= rows


async def test_what_cannot_be_is_said(cluster: TestCluster) -> None:
    env = {"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn}
    none = await run_command("serve", "--workers", "0", env=env)
    assert (none.code, "'--workers': Input should be greater than or equal to 1" in none.err) == (2, True)
    many = await run_command("serve", "--workers", "8", env={**env, "VOLTROUTE_POOL_MAX": "7"})
    assert (many.code, "8 workers share VOLTROUTE_POOL_MAX=7" in many.err) == (2, True)
    async with several(cluster) as router:
        port = router.url.rpartition(":")[2]
        taken = await run_command("serve", "--workers", "2", "--port", port, env=env)
    assert (taken.code, f"cannot listen on 127.0.0.1:{port}" in taken.err) == (1, True)
    broken = await run_command(
        "serve", "--workers", "2", "--port", "0", env={**env, "VOLTROUTE_TLS_CERTIFICATE": "/nowhere"}
    )
    assert (broken.code, "did not start" in broken.err) == (1, True)
