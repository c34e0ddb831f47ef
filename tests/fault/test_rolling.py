"""A release: two routers behind a TCP balancer are restarted one after the other, and no device hears of it."""

import asyncio
import signal

import httpx2
import pytest

from shards.embedded.ports import free_ports
from tests.support.balancer import balancer
from tests.support.ledger import stored, wipe
from tests.support.posting import Devices
from tests.support.readings import meter
from tests.support.routers import RouterProcess, start_router
from tests.support.servers import TestCluster

DRAIN = {"VOLTROUTE_DRAIN_DELAY_S": "2", "VOLTROUTE_MAP_POLL_S": "0.2"}


async def start(cluster: TestCluster, port: int) -> RouterProcess:
    return await start_router(cluster.catalog_dsn, **DRAIN, VOLTROUTE_PORT=str(port))


async def leaders(client: httpx2.AsyncClient, ports: list[int]) -> int:
    told = [(await client.get(f"http://127.0.0.1:{port}/metrics")).text for port in ports]
    return sum("voltroute_runner_leads 1.0" in text for text in told)


@pytest.mark.timeout(240)
async def test_a_rolling_restart_fails_no_request(cluster: TestCluster) -> None:
    await wipe(cluster.shards)
    ports = free_ports(2)
    running = {port: await start(cluster, port) for port in ports}
    try:
        async with balancer(ports) as front, httpx2.AsyncClient(base_url=front.url) as client:
            for port in ports:
                await front.until(port, "UP")
            devices = Devices(client, 16)
            async with devices.posting():
                await devices.more(200)
                for port in [*ports, *ports]:
                    old = running[port]
                    old.process.send_signal(signal.SIGTERM)
                    await front.until(port, "DOWN")
                    await devices.more(50)  # the other one serves, and this one what it still gets
                    async with asyncio.timeout(60):
                        assert await old.process.wait() == 0
                    running[port] = await start(cluster, port)
                    await front.until(port, "UP")
                    await devices.more(100)
            assert set(devices.statuses) == {200}
            async with asyncio.timeout(60):
                while await leaders(client, ports) != 1:  # the lease was handed over
                    await asyncio.sleep(0.1)
    finally:
        for router in running.values():
            await router.stop()
    found = [(device, at) for _, device, at in await stored(cluster.shards)]
    assert len(found) == len(set(found))
    assert devices.acknowledged <= set(found)


async def test_a_connection_ends_with_its_next_answer(cluster: TestCluster) -> None:
    """It is told so, and looks for another router, before this one goes; until then it is served."""
    router = await start_router(cluster.catalog_dsn, VOLTROUTE_DRAIN_DELAY_S="600")
    try:
        async with httpx2.AsyncClient(base_url=router.url) as client:
            assert "connection" not in (await client.post("/v1/ingest", json=meter("DRAINED", 1))).headers
            router.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(30):
                while (await client.get("/readyz")).status_code != 503:
                    await asyncio.sleep(0.02)
            for send in (
                client.post("/v1/ingest", json=meter("DRAINED", 2)),
                client.post("/v1/ingest?strict=true", json=meter("DRAINED", 3)),
                client.get("/v1/meters/DRAINED/status"),
            ):
                answer = await send
                assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    finally:
        router.kill()
        await router.process.wait()
