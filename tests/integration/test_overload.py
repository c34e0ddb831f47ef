"""More than can be stored: refused by its head, and told when to come again; what is acknowledged is stored once."""

import asyncio
import itertools
from collections import Counter
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.support.ledger import stored, wipe
from tests.support.readings import vehicle
from tests.support.routers import router_process
from tests.support.servers import TestCluster

SMALL: Final = {
    "VOLTROUTE_QUEUE_WAIT_MAX_S": "0.001",
    "VOLTROUTE_RUNNER": "false",
}
CLIENTS: Final = 48
HEAD: Final = (
    b"POST /v1/ingest/vehicle HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 1000000\r\n\r\n"
)


class Load:
    """Clients that send again at once, until they are told to stop; those that are refused send the same again."""

    def __init__(self, url: str, size: int) -> None:
        self.url = url
        self.size = size
        self.numbers = itertools.count()
        self.sent: set[tuple[str, int]] = set()
        self.answers: Counter[int] = Counter()
        self.refusals: list[httpx2.Response] = []
        self.enough = asyncio.Event()

    async def send(self) -> None:
        async with httpx2.AsyncClient(base_url=self.url, timeout=60) as client:
            while not self.enough.is_set():
                number = next(self.numbers)
                readings: Any = [vehicle(f"L-{number}-{at}", at) for at in range(self.size)]
                answer = await client.post("/v1/ingest/vehicle", json=readings[0] if self.size == 1 else readings)
                self.answers[answer.status_code] += 1
                if answer.status_code == 200:
                    self.sent |= {(f"L-{number}-{at}", at) for at in range(self.size)}
                else:
                    self.refusals.append(answer)

    async def until(self, metric: str) -> None:
        """Some were refused so, and some were stored; then it ends."""
        async with asyncio.timeout(60), httpx2.AsyncClient(base_url=self.url) as client:
            while metric not in (await client.get("/metrics")).text or not self.sent:
                await asyncio.sleep(0.02)


@pytest.mark.parametrize(("size", "name", "batch"), [(200, "large", "20"), (1, "small", "2")])
async def test_what_cannot_be_stored_in_time_is_refused_at_once(
    cluster: TestCluster, size: int, name: str, batch: str
) -> None:
    await wipe(cluster.shards)
    async with router_process(cluster.catalog_dsn, **SMALL, VOLTROUTE_BATCH_READINGS_MAX=batch) as router:
        load = Load(router.url, size)
        clients = [asyncio.create_task(load.send()) for _ in range(CLIENTS)]
        await load.until(f'voltroute_ingest_shed_total{{size="{name}"}}')
        if name == "large":
            await refused_by_its_head(router.url)
        load.enough.set()
        await asyncio.gather(*clients)  # no connection was reset
        assert set(load.answers) == {200, 429}
        assert all(int(each.headers["retry-after"]) >= 1 for each in load.refusals)
        assert {each.json()["type"] for each in load.refusals} == {"/problems/overloaded"}
        found = [device for _, device, _ in await stored(cluster.shards)]
        assert len(found) == len(set(found))
        assert {device for device, _ in load.sent} <= set(found)
        async with httpx2.AsyncClient(base_url=router.url) as client:  # and then it is over
            for number in range(20):
                answer = await client.post("/v1/ingest/vehicle", json=vehicle(f"AFTER-{number}", 1))
                assert answer.status_code == 200


async def refused_by_its_head(url: str) -> None:
    """The answer is there before any of the body is sent."""
    parts = urlsplit(url)
    async with asyncio.timeout(60):
        while True:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(HEAD)
            try:
                async with asyncio.timeout(1):  # else it was let in, and waits for its body
                    line = await reader.readline()
            except TimeoutError:
                continue
            finally:
                writer.close()
            assert line == b"HTTP/1.1 429 Too Many Requests\r\n"
            return
