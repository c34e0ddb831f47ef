"""Fleet, performance and activity over four shards equal the same questions asked of one plain database."""

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import httpx2
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import LoopRunner
from tests.support.ledger import wipe
from tests.support.maps import remap
from tests.support.readings import START, at, ingest, meter, vehicle
from tests.support.routers import in_process
from tests.support.servers import TestCluster, drop_database, new_cluster, new_database

SHARDS = ("s1", "s2", "s3", "s4")
BUCKETS = 8
MINUTES = 90
WINDOW = (at(10), at(80))

ORACLE = """
CREATE TABLE meter (id text, ts timestamptz, kwh float8, PRIMARY KEY (id, ts));
CREATE TABLE vehicle (id text, ts timestamptz, kwh float8, temp float8, PRIMARY KEY (id, ts));
CREATE TABLE pairing (vehicle text, meter text, starts timestamptz, ends timestamptz);
"""
FLEET = """
SELECT (SELECT sum(kwh) FROM meter WHERE ts > $1 AND ts <= $2) AS ac,
       (SELECT count(*) FROM meter WHERE ts > $1 AND ts <= $2) AS meter_readings,
       (SELECT count(DISTINCT id) FROM meter WHERE ts > $1 AND ts <= $2) AS meters,
       sum(kwh) AS dc, count(*) AS readings, count(DISTINCT id) AS vehicles, avg(temp) AS temp,
       (SELECT sum(kwh) FROM meter AS m WHERE ts > $1 AND ts <= $2 AND EXISTS (
           SELECT FROM pairing AS p WHERE p.meter = m.id AND ts > p.starts AND ts <= p.ends)) AS paired_ac,
       sum(kwh) FILTER (WHERE EXISTS (
           SELECT FROM pairing AS p WHERE p.vehicle = v.id AND ts > p.starts AND ts <= p.ends)) AS paired_dc
FROM vehicle AS v WHERE ts > $1 AND ts <= $2
"""
PERFORMANCE = """
SELECT sum(kwh) AS dc, count(*) AS readings, avg(temp) AS temp,
       count(DISTINCT ceil(extract(epoch FROM ts - $1) / 60)) AS minutes,
       (SELECT sum(m.kwh) FROM meter AS m JOIN pairing AS p ON p.meter = m.id AND p.vehicle = $3
        WHERE m.ts > p.starts AND m.ts <= p.ends AND m.ts > $1 AND m.ts <= $2) AS ac,
       sum(kwh) FILTER (WHERE EXISTS (
           SELECT FROM pairing AS p WHERE p.vehicle = $3 AND ts > p.starts AND ts <= p.ends)) AS paired_dc
FROM vehicle WHERE id = $3 AND ts > $1 AND ts <= $2
"""
ACTIVITY = """
SELECT kind, id, ts FROM (
    SELECT 'meter' AS kind, id, ts FROM meter UNION ALL SELECT 'vehicle', id, ts FROM vehicle
) AS r WHERE ts > $1 ORDER BY ts DESC, kind COLLATE "C" DESC, id COLLATE "C" DESC LIMIT $2
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def small(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=4, buckets=BUCKETS) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def oracle(servers: list[str]) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(await new_database(servers[0], "oracle"))
    await connection.execute(ORACLE)
    yield connection
    await connection.close()
    await drop_database(servers[0], "oracle")


def random_data(seed: int, count: int) -> tuple[list[dict[str, Any]], list[tuple[str, str, int, int]]]:
    """Readings, and pairings (vehicle, meter, from minute, to minute) whose meters never overlap."""
    chance = random.Random(seed)
    readings: dict[tuple[str, float], dict[str, Any]] = {}
    for _ in range(count):
        number, minute = (
            chance.randrange(8),
            chance.choice((chance.randrange(MINUTES), chance.randrange(MINUTES) + 0.5)),
        )
        if chance.random() < 0.5:
            readings[f"M{number}", minute] = meter(f"M{number}", minute, kwh=round(chance.random(), 4))
        else:
            temp = round(chance.uniform(-10, 60), 2)
            readings[f"V{number}", minute] = vehicle(f"V{number}", minute, kwh=round(chance.random(), 4), temp=temp)
    pairs = []
    for number in range(8):
        cut, end = sorted(chance.sample(range(1, MINUTES + 20), 2))
        pairs.append((f"V{chance.randrange(8)}", f"M{number}", 0, cut))
        if chance.random() < 0.5:
            pairs.append((f"V{chance.randrange(8)}", f"M{number}", cut, end))
    return list(readings.values()), pairs


async def load(
    client: httpx2.AsyncClient,
    oracle: asyncpg.Connection,
    readings: list[dict[str, Any]],
    pairs: list[tuple[str, str, int, int]],
) -> None:
    await oracle.execute("TRUNCATE meter, vehicle, pairing")
    for reading in readings:
        moment = datetime.fromisoformat(reading["timestamp"])
        if "meterId" in reading:
            await oracle.execute(
                "INSERT INTO meter VALUES ($1, $2, $3)", reading["meterId"], moment, reading["kwhConsumedAc"]
            )
        else:
            values = (reading["vehicleId"], moment, reading["kwhDeliveredDc"], reading["batteryTemp"])
            await oracle.execute("INSERT INTO vehicle VALUES ($1, $2, $3, $4)", *values)
    if readings:
        assert (await ingest(client, readings))["accepted"] == len(readings)
    for v, m, starts, ends in pairs:
        await oracle.execute(
            "INSERT INTO pairing VALUES ($1, $2, $3, $4)",
            v,
            m,
            *(datetime.fromisoformat(at(x)) for x in (starts, ends)),
        )
        body = {"vehicleId": v, "meterId": m, "validFrom": at(starts), "validTo": at(ends)}
        assert (await client.put("/v1/pairings", json=body)).status_code == 201


def same(ours: float | None, theirs: float | None) -> bool:
    return (ours is None) == (theirs is None) and (ours is None or ours == pytest.approx(theirs, rel=1e-9, abs=1e-9))


async def compare(client: httpx2.AsyncClient, oracle: asyncpg.Connection) -> None:
    period = [datetime.fromisoformat(moment) for moment in WINDOW]
    params = {"from": WINDOW[0], "to": WINDOW[1]}
    fleet = (await client.get("/v1/analytics/fleet", params={**params, "interval": "7m"})).json()
    truth = await oracle.fetchrow(FLEET, *period)
    assert truth is not None
    assert same(fleet["totalEnergyConsumedAc"], truth["ac"])
    assert same(fleet["totalEnergyDeliveredDc"], truth["dc"])
    assert same(fleet["avgBatteryTemp"], truth["temp"])
    assert same(fleet["paired"]["totalEnergyConsumedAc"], truth["paired_ac"])
    assert same(fleet["paired"]["totalEnergyDeliveredDc"], truth["paired_dc"])
    assert [fleet[key] for key in ("meters", "vehicles", "dataPoints", "meterDataPoints")] == [
        truth[key] for key in ("meters", "vehicles", "readings", "meter_readings")
    ]
    assert sum(point["dataPoints"] for point in fleet["series"]) == truth["readings"]
    assert same(sum(point["totalEnergyDeliveredDc"] or 0 for point in fleet["series"]), truth["dc"] or 0)
    for number in range(8):
        response = await client.get(f"/v1/analytics/performance/V{number}", params=params)
        row = await oracle.fetchrow(PERFORMANCE, *period, f"V{number}")
        assert row is not None
        if response.status_code == 404:
            assert (row["readings"], row["ac"]) == (0, None)
            continue
        ours = response.json()
        assert same(ours["totalEnergyConsumedAc"], row["ac"])
        assert same(ours["totalEnergyDeliveredDc"], row["dc"])
        assert same(ours["avgBatteryTemp"], row["temp"])
        assert same(ours["coverage"], row["minutes"] / 70)
        expected = row["paired_dc"] / row["ac"] if row["ac"] and row["paired_dc"] is not None else None
        assert same(ours["efficiencyRatio"], expected)
    activity = (await client.get("/v1/analytics/activity", params={"since": at(30), "limit": 25})).json()
    rows = await oracle.fetch(ACTIVITY, datetime.fromisoformat(at(30)), 25)
    ours = [(i["kind"], i["deviceId"], datetime.fromisoformat(i["timestamp"])) for i in activity["items"]]
    assert ours == [(r["kind"], r["id"], r["ts"]) for r in rows]


def test_any_data_under_any_map(small: TestCluster, oracle: asyncpg.Connection, event_loop_runner: LoopRunner) -> None:
    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        owners=st.lists(st.sampled_from(SHARDS), min_size=BUCKETS, max_size=BUCKETS),
        seed=st.integers(0, 2**32),
        count=st.integers(0, 150),
    )
    def check(owners: list[str], seed: int, count: int) -> None:
        event_loop_runner.run(scenario(owners, seed, count))

    async def scenario(owners: list[str], seed: int, count: int) -> None:
        await wipe(small.shards, small.catalog_dsn)
        await remap(small, owners)
        async with in_process(small) as client:
            await load(client, oracle, *random_data(seed, count))
            await compare(client, oracle)

    assert START.tzinfo is UTC
    check()
