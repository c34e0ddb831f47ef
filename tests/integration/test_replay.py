"""Whatever is shuffled, repeated and sent at the same time, history has no duplicate and status never goes back."""

import asyncio
import random
from datetime import datetime

import httpx2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import LoopRunner
from tests.support.ledger import statuses, stored, wipe
from tests.support.readings import meter, vehicle
from tests.support.routers import router_process
from tests.support.servers import TestCluster

RELAXED = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
DEVICES = st.lists(st.tuples(st.sampled_from("ABCDEFGH"), st.integers(0, 30)), min_size=1, max_size=60)


async def replay(client: httpx2.AsyncClient, requests: list[list[dict[str, object]]]) -> tuple[int, int]:
    """Post all requests at once; (accepted, duplicates)."""
    answers = await asyncio.gather(*(client.post("/v1/ingest", json=readings) for readings in requests))
    bodies = [answer.json() for answer in answers]
    assert all(answer.status_code == 200 for answer in answers), bodies
    return sum(b["accepted"] for b in bodies), sum(b["duplicates"] for b in bodies)


def newest(readings: list[dict[str, object]]) -> dict[str, datetime]:
    found: dict[str, datetime] = {}
    for reading in readings:
        device = str(reading.get("meterId") or reading.get("vehicleId"))
        moment = datetime.fromisoformat(str(reading["timestamp"]))
        found[device] = max(moment, found.get(device, moment))
    return found


def test_any_replay(cluster: TestCluster, client: httpx2.AsyncClient, event_loop_runner: LoopRunner) -> None:
    @RELAXED
    @given(items=DEVICES, seed=st.integers(0, 2**16), size=st.integers(1, 20), copies=st.integers(1, 3))
    def check(items: list[tuple[str, int]], seed: int, size: int, copies: int) -> None:
        event_loop_runner.run(scenario(items, seed, size, copies))

    async def scenario(items: list[tuple[str, int]], seed: int, size: int, copies: int) -> None:
        await wipe(cluster.shards)
        readings = [(meter if d < "E" else vehicle)(d, minute) for d, minute in items]
        sent = readings * copies
        random.Random(seed).shuffle(sent)
        requests = [sent[i : i + size] for i in range(0, len(sent), size)]
        accepted, duplicates = await replay(client, requests)
        distinct = {(d, minute) for d, minute in items}
        assert (accepted, accepted + duplicates) == (len(distinct), len(sent))
        rows = await stored(cluster.shards)
        assert len(rows) == len(distinct) == len({(device, moment) for _, device, moment in rows})
        assert await statuses(cluster.shards) == newest(readings)

    check()


async def test_two_routers_side_by_side(cluster: TestCluster) -> None:
    """The same devices through both, overlapping and in opposite orders: nothing deadlocks, nothing doubles."""
    await wipe(cluster.shards)
    readings = [make(f"D{n}", minute) for make in (meter, vehicle) for n in range(40) for minute in range(10)]
    shuffle = random.Random(7).shuffle
    async with (
        router_process(cluster.catalog_dsn) as one,
        router_process(cluster.catalog_dsn) as two,
        httpx2.AsyncClient(base_url=one.url, timeout=30) as a,
        httpx2.AsyncClient(base_url=two.url, timeout=30) as b,
    ):
        work = []
        for client in (a, b):
            for _ in range(4):
                sent = list(readings)
                shuffle(sent)
                work.append(replay(client, [sent[i : i + 50] for i in range(0, len(sent), 50)]))
        counts = await asyncio.gather(*work)
    assert sum(accepted for accepted, _ in counts) == len(readings)
    assert sum(duplicates for _, duplicates in counts) == 7 * len(readings)
    rows = await stored(cluster.shards)
    assert len(rows) == len(readings)
