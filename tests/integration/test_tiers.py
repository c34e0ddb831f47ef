"""Frozen, packed and late readings: every answer is as it was, and what comes late is stored once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from tests.integration.test_keys import until as until_status
from tests.support.ledger import fetch
from tests.support.readings import ingest, meter, register, vehicle
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tenants import Made, new_tenant
from tests.support.tiering import PLACES, Interrupted, answers, soon, tend, until

WHOLE = {"from": "2026-04-30T00:00:00Z", "to": "2026-05-03T18:00:00Z"}
PERIOD = {"from": "2026-05-01T00:00:30Z", "to": "2026-05-03T18:00:00Z"}
DEVICES = {"meters": ["M-0", "M-1", "R-1", "X-1"], "vehicles": ["V-0", "V-1", "V-2"]}
NOW = datetime.now(UTC)
COUNTS = """
SELECT (SELECT count(*) FROM vehicle_telemetry_history) AS hot, (SELECT count(*) FROM vehicle_telemetry_late) AS late,
    (SELECT coalesce(sum(n), 0) FROM vehicle_telemetry_packed) AS packed,
    (SELECT count(*) FROM packed_leaf) AS undropped
"""


@pytest_asyncio.fixture(loop_scope="session")
async def aged(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=8) as cluster:
        yield cluster


@pytest_asyncio.fixture(loop_scope="session")
async def client(aged: TestCluster) -> AsyncIterator[httpx2.AsyncClient]:
    async with in_process(aged, runner=False) as made:
        yield made


def old_readings() -> list[dict[str, Any]]:
    """Three days of a few devices, with gaps, registers, mixed meters, and readings of now."""
    readings = []
    for n in range(2):
        readings += [
            meter(f"M-{n}", minute * 7.5, kwh=minute % 9 / 8, voltage=229.5 + minute % 3) for minute in range(500)
        ]
    readings += [
        register("R-1", minute * 11, 1000 + minute * 0.25 - (500 if minute > 200 else 0)) for minute in range(300)
    ]
    for minute in range(60):  # both ways, so that columns are missing here and there
        readings.append(register("X-1", minute * 30, minute) if minute % 3 else meter("X-1", minute * 30))
    for n in range(3):
        readings += [
            vehicle(
                f"V-{n}", minute * 5.0 + n / 60, kwh=minute % 7 / 10_000, soc=minute % 1000 / 10, temp=20 + minute % 5
            )
            for minute in range(800)
        ]
    now = [{**vehicle(f"V-{n}"), "timestamp": (NOW - timedelta(minutes=n)).isoformat()} for n in range(3)]
    return readings + now


async def pair(client: httpx2.AsyncClient) -> None:
    for n in range(2):
        body = {"meterId": f"M-{n}", "vehicleId": f"V-{n}", "validFrom": "2026-05-01T12:00:00Z"}
        assert (await client.put("/v1/pairings", json=body)).status_code in {200, 201}


async def totals(cluster: TestCluster) -> dict[str, int]:
    found: dict[str, int] = {}
    for dsn in cluster.shards.values():
        for name, value in (await fetch(dsn, COUNTS))[0].items():
            found[name] = found.get(name, 0) + int(value)
    return found


async def test_every_answer_is_as_it_was_at_every_step(client: httpx2.AsyncClient, aged: TestCluster) -> None:
    readings = old_readings()
    await ingest(client, readings)
    await pair(client)
    before = await answers(client, PERIOD, DEVICES)
    assert before["fleet 1h"]["dataPoints"] > 1500
    for place in PLACES[:10]:
        with pytest.raises(Interrupted):
            await tend(aged, until(place))
        assert await answers(client, PERIOD, DEVICES) == before, place
    await tend(aged)
    assert await answers(client, PERIOD, DEVICES) == before
    assert await totals(aged) == {"hot": 3, "late": 0, "packed": 2400, "undropped": 0}
    page = (await client.get("/v1/vehicles/V-0/history", params={"limit": 2})).json()
    assert page["tiers"] == ["hot", "packed"]
    assert [item["ingestedAt"] is None for item in page["items"]] == [False, True]
    fleet = (await client.get("/v1/analytics/fleet", params=PERIOD)).json()
    assert fleet["tiers"] == ["packed", "rollups"]  # meters that send registers are read one by one


async def test_late_readings_count_as_in_the_hot_range(
    client: httpx2.AsyncClient, aged: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ingest(client, old_readings())
    with pytest.raises(Interrupted):
        await tend(aged, until("after freeze"))  # one bucket is frozen, and not packed
    await late_comes(client, "a")
    await tend(aged)
    await late_comes(client, "b")
    soon(monkeypatch)
    before = await answers(client, PERIOD, DEVICES)
    await tend(aged)
    assert await answers(client, PERIOD, DEVICES) == before
    assert (await totals(aged))["late"] == 0
    await late_comes(client, "b", again=True)
    assert await answers(client, PERIOD, DEVICES) == before


async def late_comes(client: httpx2.AsyncClient, name: str, *, again: bool = False) -> None:
    """A batch of new readings, repeats and conflicts of old times, with one of now, told apart as ever."""
    new = [
        vehicle(f"V-{n}", 3 + minute * 5 + (0.1 if name == "a" else 0.2), kwh=0.1)
        for n in range(3)
        for minute in range(9)
    ]
    new += [meter("M-0", 1 + minute * 7.5 + (0.1 if name == "a" else 0.2)) for minute in range(9)]
    new += [vehicle(f"V-{name}-only-late", minute) for minute in range(3)]
    repeats = [
        vehicle(f"V-{n}", minute * 5.0 + n / 60, minute % 7 / 10_000, minute % 1000 / 10, 20 + minute % 5)
        for n in range(3)
        for minute in range(5)
    ]
    conflicts = [vehicle(f"V-{n}", minute * 5.0 + n / 60, kwh=9.5) for n in range(3) for minute in range(5, 8)]
    live = [{**vehicle("V-now", kwh=0.1 * len(name)), "timestamp": (NOW + timedelta(seconds=ord(name))).isoformat()}]
    told = await ingest(client, new + repeats + conflicts + live + new[:2])
    accepted = 0 if again else len(new) + len(live)
    assert told["accepted"] == accepted
    assert told["duplicates"] == len(new) + len(live) + 2 + len(repeats) - accepted
    assert told["conflicts"] == len(conflicts)
    repeated = await ingest(client, new)
    assert (repeated["accepted"], repeated["duplicates"]) == (0, len(new))
    status = (await client.get(f"/v1/vehicles/V-{name}-only-late/status")).json()
    assert status["lastUpdated"] == "2026-05-01T00:02:00Z"
    history = (await client.get(f"/v1/vehicles/V-{name}-only-late/history")).json()
    assert len(history["items"]) == 3


async def test_tiers_are_each_tenants_own(aged: TestCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """One ID of two tenants in one bucket, packed, late, merged: each reads its own, and counts against its own."""
    mine, theirs = await new_tenant(aged, "mine"), await new_tenant(aged, "theirs")
    async with in_process(aged, runner=False) as client:
        await until_status(client, 200, headers=theirs.headers)

        async def post(key: Made, *readings: dict[str, Any]) -> tuple[int, int, int]:
            told = (await client.post("/v1/ingest", json=readings, headers=key.headers)).json()
            return told["accepted"], told["duplicates"], told["conflicts"]

        async def read(key: Made) -> list[float]:
            page = (await client.get("/v1/meters/M/history", headers=key.headers)).json()
            fleet = (await client.get("/v1/analytics/fleet", params=WHOLE, headers=key.headers)).json()
            values = [item["kwhConsumedAc"] for item in page["items"]]
            assert fleet["totalEnergyConsumedAc"] == pytest.approx(sum(values))
            return values

        assert await post(mine, *(meter("M", n, 1.0) for n in range(4))) == (4, 0, 0)
        assert await post(theirs, *(meter("M", n, 2.0) for n in range(2))) == (2, 0, 0)
        await tend(aged)
        soon(monkeypatch)
        for _ in range(2):
            assert (await read(mine), await read(theirs)) == ([1.0] * 4, [2.0] * 2)
            assert await post(theirs, meter("M", 0, 1.0), meter("M", 1, 2.0)) == (0, 1, 1)
            assert await post(mine, meter("M", 0, 1.0), meter("M", 1, 2.0)) == (0, 1, 1)
            await tend(aged)
        assert await post(theirs, meter("M", 2, 2.0), meter("M", 3, 2.0)) == (2, 0, 0)
        assert (await read(mine), await read(theirs)) == ([1.0] * 4, [2.0] * 4)
        await tend(aged)
        assert (await read(mine), await read(theirs)) == ([1.0] * 4, [2.0] * 4)


async def test_a_repeat_that_meets_a_merge_waits_for_it(
    client: httpx2.AsyncClient, aged: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its reading is on the way from late to packed, a repeat must find it in neither place too early."""
    soon(monkeypatch)
    await ingest(client, [vehicle("V-0", minute) for minute in range(5)])
    await tend(aged)
    late = vehicle("V-0", 2.5)
    assert (await ingest(client, late))["accepted"] == 1
    repeats: list[asyncio.Task[Any]] = []

    async def meet(place: str) -> None:
        if place == "inside merge":
            repeats.append(asyncio.create_task(ingest(client, late)))
            await eventually_async(lambda: waits(aged))

    await tend(aged, meet)
    (repeat,) = repeats
    assert ((await repeat)["accepted"], (await repeat)["duplicates"]) == (0, 1)
    assert await totals(aged) == {"hot": 0, "late": 0, "packed": 6, "undropped": 0}


async def waits(cluster: TestCluster) -> bool:
    """Whether somebody waits for a lock that a merge holds."""
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    return any([(await fetch(dsn, waiting))[0][0] for dsn in cluster.shards.values()])


async def eventually_async(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.01)
