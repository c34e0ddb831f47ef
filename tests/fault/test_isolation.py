"""No request ever reads or writes another tenant's row, whatever else happens on the connections that all share."""

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine, Mapping
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.test_keys import until
from tests.support.ledger import fetch
from tests.support.readings import meter, vehicle
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tenants import Made, new_key, new_tenant

DEVICES = 4
TOGETHER = 12
REQUESTS = 2_500  # of one example
END_READERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name IN ('voltroute reader', 'voltroute writer') AND datname = current_database()
"""
READS = (
    "/v1/meters/{}/status",
    "/v1/meters/{}/history",
    "/v1/vehicles/{}/history",
    "/v1/meters",
    "/v1/vehicles?prefix=D",
    "/v1/analytics/activity?since=2026-01-01T00:00:00Z",
    "/v1/analytics/performance/{}?from=2026-04-01T00:00:00Z&to=2026-06-01T00:00:00Z",
    "/v1/analytics/fleet?from=2026-04-01T00:00:00Z&to=2026-06-01T00:00:00Z",
)


def energy(tenant: int) -> float:
    """Of every reading of a tenant; its sums are this times their readings."""
    return {0: 1.0, 1: 1_009.0, 2: 100_003.0, 3: 11.0}[tenant]


def check(tenant: int, body: Any) -> None:
    """Every reading in an answer is the tenant's, and every sum is one of its readings alone."""
    if isinstance(body, list):
        for each in body:
            check(tenant, each)
    elif isinstance(body, dict):
        for name, value in body.items():
            if name.startswith("kwh") and value is not None:
                assert value == energy(tenant), body
            elif name == "totalEnergyDeliveredDc" and "dataPoints" in body:
                assert (value or 0) == energy(tenant) * body["dataPoints"], body
            elif name == "totalEnergyConsumedAc" and "meterDataPoints" in body:
                assert (value or 0) == energy(tenant) * body["meterDataPoints"], body
            else:
                check(tenant, value)


class Guest:
    """Sends requests as any of the tenants."""

    def __init__(self, client: httpx2.AsyncClient, keys: Mapping[int, list[Made]], chance: random.Random) -> None:
        self.client, self.keys, self.chance = client, keys, chance
        self.seen: Counter[object] = Counter()

    async def one(self) -> None:
        chance = self.chance
        tenant = chance.choice(list(self.keys))
        headers, device = chance.choice(self.keys[tenant]).headers, f"D{chance.randrange(DEVICES)}"
        if chance.random() < 0.35:
            minute, kwh = chance.randrange(100_000) / 10, energy(tenant)
            items = [meter(device, minute, kwh, tenant), vehicle(device, minute, kwh)]
            answer = await self.client.post("/v1/ingest", json=items, headers=headers)
            assert answer.status_code in {200, 503}, answer.text
            assert answer.json().get("conflicts", 0) == 0, answer.text
        else:
            path = chance.choice(READS).format(device)
            answer = await self.client.get(path, headers=headers)
            assert answer.status_code in {200, 404, 503}, (path, answer.text)
            if answer.status_code == 200:
                check(tenant, answer.json())
        self.seen[answer.status_code] += 1

    async def given_up(self) -> None:
        """A request whose client goes away at any moment."""
        task = asyncio.create_task(self.one())
        for _ in range(self.chance.randrange(40)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled() and task.exception() is not None:
            task.result()
        self.seen["given up"] += 1


async def visit(
    cluster: TestCluster, client: httpx2.AsyncClient, keys: Mapping[int, list[Made]], seed: int
) -> Counter[object]:
    guest = Guest(client, keys, random.Random(seed))
    for _ in range(REQUESTS // TOGETHER):
        group: list[Coroutine[Any, Any, object]]
        group = [guest.given_up() if guest.chance.random() < 0.1 else guest.one() for _ in range(TOGETHER)]
        if guest.chance.random() < 0.03:
            group.append(fetch(guest.chance.choice(list(cluster.shards.values())), END_READERS))
        await asyncio.gather(*group)
    return guest.seen


@pytest.mark.long
@pytest.mark.timeout(1_800)  # 50,000 requests each
@pytest.mark.parametrize("pool_max", [1, 2])
async def test_no_row_of_another_tenant_is_read_or_written(servers: list[str], pool_max: int) -> None:
    seen: Counter[object] = Counter()
    async with new_cluster(servers, shards=3, buckets=8) as cluster:
        keys = {0: [await new_key(cluster), await new_key(cluster)]}
        for tenant in (1, 2, 3):
            pins = ("s2", "s3") if tenant == 3 else ()
            keys[tenant] = [await new_tenant(cluster, f"t{tenant}", *pins), await new_key(cluster, f"t{tenant}")]
        async with in_process(cluster, pool_min=1, pool_max=pool_max, runner=False) as client:
            await until(client, 200, headers=keys[3][1].headers)

            # In a thread, because hypothesis calls its function without an event loop.
            loop = asyncio.get_running_loop()

            @settings(max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @given(seed=st.integers(0, 2**32))
            def examples(seed: int) -> None:
                seen.update(asyncio.run_coroutine_threadsafe(visit(cluster, client, keys, seed), loop).result(600))

            await asyncio.to_thread(examples)
        for dsn in cluster.shards.values():
            for kind, column in (("meter", "kwh_consumed_ac"), ("vehicle", "kwh_delivered_dc")):
                rows = await fetch(dsn, f"SELECT DISTINCT tenant_id, {column} FROM {kind}_telemetry_history")
                assert {tuple(row) for row in rows} <= {(tenant, energy(tenant)) for tenant in keys}
    assert sum(seen.values()) >= 40_000
    assert seen[200] > 30_000
