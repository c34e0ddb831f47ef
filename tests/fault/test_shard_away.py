"""One shard stalled or dead: the others go on as ever; its readings get 503 in time; afterwards all is well."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx2
import orjson
import pytest
import pytest_asyncio

from tests.support.commands import run_command
from tests.support.ledger import stored
from tests.support.processes import Breakable, breakable
from tests.support.readings import at, ingest, meter
from tests.support.routers import RouterProcess, router_process
from tests.support.servers import TestCluster

DEADLINE_S = 2
ALLOWANCE_S = 3  # of a busy machine; without a deadline the answers below would never come
SETTINGS = {"VOLTROUTE_INGEST_TIMEOUT_S": str(DEADLINE_S), "VOLTROUTE_QUERY_TIMEOUT_S": str(DEADLINE_S)}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def own() -> AsyncIterator[Breakable]:
    async with breakable() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def router(own: Breakable) -> AsyncIterator[RouterProcess]:
    async with router_process(own.cluster.catalog_dsn, **SETTINGS) as process:
        yield process


def as_test_cluster(own: Breakable) -> TestCluster:
    return TestCluster(own.cluster.catalog_dsn, own.cluster.state.shard_dsns(), 8)


def broken(own: Breakable, how: str) -> AbstractContextManager[None]:
    return own.stalled("shard-2") if how == "stalled" else own.killed("shard-2")


@pytest.mark.parametrize("how", ["stalled", "killed"])
async def test_one_shard_away(own: Breakable, router: RouterProcess, how: str) -> None:
    cluster = as_test_cluster(own)
    mine = cluster.devices_of("shard-2", 5, how)
    others = [device for name in ("shard-1", "shard-3") for device in cluster.devices_of(name, 5, how)]
    async with httpx2.AsyncClient(base_url=router.url, timeout=30) as client:
        await ingest(client, [meter(device, 1, kwh=1) for device in mine + others])
        with broken(own, how):
            await _others_go_on(client, others)
            await _own_get_503(client, mine, others)
            await _analytics_say_so(client)
            await _others_go_on(client, others, minute=500)
            ready = await client.get("/readyz")
            assert ready.status_code == 200
        await _recovers(client, mine)
        rows = [(device, moment) for _, device, moment in await stored(cluster.shards)]
        assert len(rows) == len(set(rows))


async def _others_go_on(client: httpx2.AsyncClient, others: list[str], minute: int = 100) -> None:
    """Every reading of the other shards is stored while those of the broken one wait in the same router."""
    for step in range(20):
        answer = await ingest(client, [meter(device, minute + step) for device in others])
        assert answer["accepted"] == len(others)


async def _own_get_503(client: httpx2.AsyncClient, mine: list[str], others: list[str]) -> None:
    started = time.monotonic()
    batch = [meter(device, 2) for device in mine] + [meter(device, 2) for device in others]
    requests = [client.post("/v1/ingest", json=batch)] + [client.post("/v1/ingest", json=meter(d, 3)) for d in mine]
    answers = await asyncio.gather(*requests)
    assert time.monotonic() - started < DEADLINE_S + ALLOWANCE_S
    for answer in answers:
        assert answer.status_code == 503, answer.text
        assert answer.json()["type"] == "/problems/shard-unavailable"
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["missing"] == ["shard-2"]
    body = answers[0].json()
    assert (body["accepted"], body["unavailable"]) == (len(others), len(mine))


async def _analytics_say_so(client: httpx2.AsyncClient) -> None:
    params = {"from": at(0), "to": at(1)}
    refused = await client.get("/v1/analytics/fleet", params=params)
    assert (refused.status_code, refused.json()["shards"]["missing"]) == (503, ["shard-2"])
    assert int(refused.headers["retry-after"]) >= 1
    partial = await client.get("/v1/analytics/fleet", params={**params, "partial": "allow"})
    body = partial.json()
    assert (partial.status_code, body["isPartial"], body["shards"]["missing"]) == (200, True, ["shard-2"])
    assert body["meters"] >= 10
    shards = (await client.get("/v1/shards")).json()
    assert [item["name"] for item in shards["items"] if not item["reachable"]] == ["shard-2"]


async def _recovers(client: httpx2.AsyncClient, mine: list[str]) -> None:
    """Repeating the refused request stores it, and nothing twice."""
    async with asyncio.timeout(60):
        while True:
            answer = await client.post("/v1/ingest", json=[meter(device, 2) for device in mine])
            if answer.status_code == 200:
                break
            assert answer.status_code == 503
            await asyncio.sleep(float(answer.headers["retry-after"]) / 10)
    assert answer.json()["accepted"] + answer.json()["duplicates"] == len(mine)
    async with asyncio.timeout(60):
        while (await client.get("/v1/analytics/fleet")).status_code != 200:
            await asyncio.sleep(0.1)


async def test_without_the_catalog_readings_flow(own: Breakable, router: RouterProcess) -> None:
    async with httpx2.AsyncClient(base_url=router.url, timeout=30) as client:
        with own.killed("catalog"):
            answer = await ingest(client, [meter(f"CATALOG-AWAY-{n}", 1) for n in range(30)])
            assert answer["accepted"] == 30
            assert (await client.get("/v1/meters/CATALOG-AWAY-1/status")).status_code == 200
            refused = await client.get("/v1/pairings")
            assert (refused.status_code, refused.json()["type"]) == (503, "/problems/catalog-unavailable")
        async with asyncio.timeout(60):
            while (await client.get("/v1/pairings")).status_code != 200:
                await asyncio.sleep(0.1)


async def refused(client: httpx2.AsyncClient) -> str:
    """The router's count of readings that met a shard that was away."""
    lines = (await client.get("/metrics")).text.splitlines()
    return next(line for line in lines if "readings_total" in line and 'kind="meter",outcome="unavailable"' in line)


async def test_post_goes_on_when_the_shard_is_back(own: Breakable, router: RouterProcess, tmp_path: Path) -> None:
    """The command line's client repeats what got a 503, and counts every reading once."""
    devices = as_test_cluster(own).devices_of("shard-3", 5, "POSTED")
    file = tmp_path / "readings.ndjson"
    file.write_bytes(b"\n".join(orjson.dumps(meter(device, minute)) for device in devices for minute in range(40)))
    async with httpx2.AsyncClient(base_url=router.url) as client:
        before = await refused(client)
    with own.killed("shard-3"):
        posting = asyncio.create_task(
            run_command("post", file, "--kind", "meter", "--url", router.url, "--batch", 50, "--json")
        )
        async with httpx2.AsyncClient(base_url=router.url) as client, asyncio.timeout(60):
            while await refused(client) == before:
                await asyncio.sleep(0.05)
    done = await posting
    assert done.code == 0, done.err
    assert done.json["accepted"] + done.json["duplicates"] == 200
    assert done.json["retries"] >= 1
    rows = [key for _, *key in await stored(own.cluster.state.shard_dsns()) if str(key[0]).startswith("POSTED")]
    assert len(rows) == 200
