"""Rollups: whatever was added when, sums over them are those of the readings."""

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import httpx2
import pytest
import pytest_asyncio

from shards.errors import ClusterError
from shards.kinds import KINDS, VEHICLE, Kinds
from shards.policy import Policies
from shards.postgres.sessions import owner_session
from shards.postgres.sql import for_kind
from shards.storage import sums
from shards.storage.correction import correct
from shards.storage.marks import low_water
from shards.storage.rollups import hours
from shards.tiers import rolling, runner
from shards.tiers.runner import Tender
from shards.tiers.steps import Kept
from tests.support.ledger import execute, fetch
from tests.support.readings import START, at, ingest, meter, undated, vehicle
from tests.support.rolling import roll, without_rollups
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tiering import HOT, age, answers, as_if_made, records_of, soon, tend

DAY = 1440  # minutes
HOURS = for_kind(
    f"""
SELECT bucket, vehicle_id, at, sum(readings), sum(energies), sum(registers), sum(temperatures), sum(energy),
    sum(temperature), max(most), bit_or(minutes)
FROM ({hours("true", "'-infinity'", "'infinity'")}) AS h GROUP BY 1, 2, 3 ORDER BY 1, 2, 3""",
    VEHICLE,
)
MINUTES = "SELECT * FROM vehicle_telemetry_minutely ORDER BY bucket, tenant_id, at"
WHOLE = {"from": at(-DAY), "to": at(4 * DAY)}


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(servers: list[str]) -> AsyncIterator[TestCluster]:
    """Three shards, eight buckets, partitions of a day."""
    async with new_cluster(servers, shards=3, buckets=8) as made:
        await as_if_made(made, date(2026, 5, 1), "day")
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def client(cluster: TestCluster) -> AsyncIterator[httpx2.AsyncClient]:
    async with in_process(cluster, runner=False) as made:
        yield made


@pytest.fixture(autouse=True)
def asks_rollups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a device's hour."""
    monkeypatch.setattr(sums, "LONG", timedelta(0))


async def rows(cluster: TestCluster) -> list[Any]:
    return [[await fetch(dsn, sql) for sql in (HOURS, MINUTES)] for dsn in cluster.shards.values()]


async def asked(client: httpx2.AsyncClient, period: dict[str, str]) -> Any:
    devices = {"meters": ["M-0", "M-1"], "vehicles": [f"V-{n}" for n in range(4)]}
    return await answers(client, period, devices)


async def of_readings(client: httpx2.AsyncClient, period: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same answers, without rollups."""

    with without_rollups(monkeypatch):
        return await asked(client, period)


def some_readings(dice: random.Random, count: int) -> list[dict[str, Any]]:
    """Of a few devices in four days, many at the edges of minutes, hours and days, some with too much energy."""
    found = []
    for _ in range(count):
        minute: float = dice.choice([dice.randrange(4 * DAY), 60 * dice.randrange(96), DAY * dice.randrange(4)])
        minute += dice.choice([0, 0, dice.random(), 1e-6 / 60, -1e-6 / 60])
        kwh = dice.choice([0.0, 0.1, 0.25, 3.0, dice.random() / 3])
        n = dice.randrange(4)
        found.append(vehicle(f"V-{n}", minute, kwh, temp=dice.randrange(-50, 600) / 10))
        found.append(meter(f"M-{n % 2}", minute, kwh * 1.1))
    return found


def some_period(dice: random.Random) -> dict[str, str]:
    step = dice.choice([1.0, 60.0, 60.0, 0.25, float(DAY)])
    one, other = sorted(dice.sample(range(int(4 * DAY / step) + 1), 2))
    return {"from": at(one * step), "to": at(other * step)}


@pytest.mark.parametrize("seed", range(4))
async def test_sums_are_those_of_the_readings(
    client: httpx2.AsyncClient, cluster: TestCluster, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rolled up in part, late, frozen, packed and merged, for whole hours and for none, with ratings and pairings."""
    dice = random.Random(seed)
    soon(monkeypatch)
    if seed % 2:
        assert (await client.put("/v1/vehicles/V-1", json={"powerMaxKw": 12})).status_code == 201
        assert (await client.put("/v1/defaults/meters", json={"powerMaxKw": 15, "intervalS": 60})).status_code == 200
    for n in range(2):
        body = {"meterId": f"M-{n}", "vehicleId": f"V-{n}", "validFrom": at(dice.randrange(DAY) + 0.5)}
        assert (await client.put("/v1/pairings", json=body)).status_code in {200, 201}
    steps: list[Any] = [roll, roll, lambda c: age(c, "vehicle", "after publish"), tend]
    dice.shuffle(steps)
    for step in [None, *steps]:
        await ingest(client, some_readings(dice, 60))
        if step is not None:
            await step(cluster)
        await ingest(client, some_readings(dice, 10))
        if dice.random() < 0.5:
            await roll(cluster, dice.sample(range(8), 3))
        for period in (WHOLE, some_period(dice), some_period(dice)):
            assert await asked(client, period) == await of_readings(client, period, monkeypatch), period
    said = undated(await client.get("/v1/analytics/fleet", params=WHOLE))
    assert "rollups" in said["tiers"]
    before = await rows(cluster)
    await roll(cluster)
    for dsn in cluster.shards.values():
        await execute(dsn, "UPDATE tier SET rolled_of = NULL")
    assert before != (added := await rows(cluster))  # the last readings of each step
    await roll(cluster)
    assert await rows(cluster) == added  # made anew, they are what was added one after the other


async def test_a_correction_reaches_the_sums(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    for readings in ([vehicle("V-0", minute, 0.25) for minute in range(120)], vehicle("V-1", 30, 0.25)):
        await ingest(client, readings)
    await roll(cluster)
    (place,) = [
        (dsn, row["bucket"])
        for dsn in cluster.shards.values()
        for row in await fetch(dsn, "SELECT bucket FROM vehicle_current_status WHERE vehicle_id = 'V-0'")
    ]
    session = await asyncpg.connect(place[0])
    key = (place[1], 0, "V-0", START + timedelta(minutes=30))
    await correct(session, VEHICLE, key, {"kwh_delivered_dc": 1.25}, None)
    hour = {"from": at(0), "to": at(60)}
    for _ in range(2):
        told = (await client.get("/v1/analytics/performance/V-0", params=hour)).json()
        assert (told["totalEnergyDeliveredDc"], told["dataPoints"]) == (59 * 0.25 + 1.25, 60)
        fleet = (await client.get("/v1/analytics/fleet", params={**hour, "interval": "1m"})).json()
        assert (fleet["totalEnergyDeliveredDc"], fleet["dataPoints"]) == (60 * 0.25 + 1.25, 61)
        assert fleet["series"][29]["totalEnergyDeliveredDc"] == 1.5
        await roll(cluster)
    await correct(session, VEHICLE, key, {"kwh_delivered_dc": 0.0}, None)
    await session.close()
    told = (await client.get("/v1/analytics/performance/V-0", params=hour)).json()
    assert told["totalEnergyDeliveredDc"] == 59 * 0.25


async def test_what_cannot_be_added_is_made_anew(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """After a clock that was set back, and when another column is summed."""
    await ingest(client, [vehicle(f"V-{n}", minute) for n in range(4) for minute in range(90)])
    assert await roll(cluster) == 360
    made = await rows(cluster)
    for broken in ("rolled_until = now() + interval '1 hour'", "rolled_of = 'soc  battery_temp'"):
        for dsn in cluster.shards.values():
            await execute(dsn, f"UPDATE tier SET {broken}")
            await execute(dsn, "UPDATE vehicle_telemetry_hourly SET readings = 7")
            await execute(dsn, "DELETE FROM vehicle_telemetry_minutely WHERE bucket % 2 = 0")
        assert await roll(cluster) == 360
        assert await rows(cluster) == made
        assert await roll(cluster) == 0


async def test_wrong_sums_are_found_when_their_leaf_is_packed(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """As a clock that was set back for a moment leaves them, which nobody noticed."""
    await ingest(client, [vehicle(f"V-{n}", minute) for n in range(4) for minute in range(-30, 2 * DAY, 7)])
    await roll(cluster)
    made = await rows(cluster)
    spoiled = f"UPDATE vehicle_telemetry_hourly SET readings = readings + 1 WHERE at = '{at(DAY + 60)}'"
    for dsn in cluster.shards.values():
        await execute(dsn, spoiled)
    await tend(cluster)
    for dsn in cluster.shards.values():
        found = await fetch(dsn, "SELECT bucket FROM tier WHERE kind = 'vehicle' AND rolled_of IS NULL")
        assert {row["bucket"] for row in found} == {
            row["bucket"] for row in await fetch(dsn, "SELECT bucket FROM vehicle_current_status")
        }
    told = undated(await client.get("/v1/analytics/fleet", params=WHOLE))
    await roll(cluster)
    assert await rows(cluster) == made
    again = undated(await client.get("/v1/analytics/fleet", params=WHOLE))
    assert [each.pop("tiers") for each in (told, again)] == [["packed"], ["rollups"]]
    assert told == again


async def test_a_round_rolls_up_what_is_old_enough(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """What was ingested within the last seconds may have company that is still to commit, and is left for the next."""
    began = datetime.now(UTC)
    await ingest(client, [vehicle("V-0", minute) for minute in range(5)])
    await tend(cluster)
    for dsn in cluster.shards.values():
        marks = [row["rolled_until"] for row in await fetch(dsn, "SELECT rolled_until FROM tier")]
        assert len(marks) == 2 * len(await fetch(dsn, "SELECT FROM owned_bucket"))
        assert all(began - timedelta(minutes=1) < mark < datetime.now(UTC) - timedelta(seconds=1) for mark in marks)


async def test_usage_by_day(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """The same from readings and from rollups, also when some are late and some packed; bytes follow what they take."""
    days = [vehicle(f"V-{n}", minute) for n in range(6) for minute in range(1, 3 * DAY, 90) if n < 3 or minute < DAY]
    await ingest(client, [*days, *(meter("M-0", minute) for minute in (0, DAY))])
    period = {"from": at(0), "to": at(3 * DAY)}

    async def used() -> tuple[list[tuple[Any, ...]], list[int], list[str]]:
        told = (await client.get("/v1/usage", params=period)).json()
        names = ("from", "kind", "readings", "devices")
        items = [tuple(item[name] for name in names) for item in told["items"]]
        return items, [item["bytes"] for item in told["items"]], told["tiers"]

    before, _, tiers = await used()
    assert before == [
        ("2026-05-01T00:00:00Z", "meter", 1, 1),  # that of the first midnight belongs to the day before
        ("2026-05-01T00:00:00Z", "vehicle", 6 * 16, 6),
        ("2026-05-02T00:00:00Z", "vehicle", 3 * 16, 3),
        ("2026-05-03T00:00:00Z", "vehicle", 3 * 16, 3),
    ]
    assert tiers == ["hot"]
    await roll(cluster)
    assert ((await used())[0], (await used())[2]) == (before, ["rollups"])
    await tend(cluster)
    packed, sizes, tiers = await used()
    assert (packed, tiers) == (before, ["rollups"])
    assert all(sizes)
    await ingest(client, vehicle("V-0", DAY + 5))
    late, _, tiers = await used()
    assert (late[2], tiers) == (("2026-05-02T00:00:00Z", "vehicle", 49, 3), ["late", "rollups"])
    for params, detail in (
        ({"from": at(DAY), "to": at(0)}, "before `to`"),
        ({"from": at(-3000 * DAY), "to": at(0)}, "days before `to`"),
    ):
        refused = await client.get("/v1/usage", params=params)
        assert refused.status_code == 422
        assert detail in refused.json()["detail"]


async def test_readings_that_somebody_packs_who_sums_others(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """The columns got other roles meanwhile: what is packed is in no sums, so that there are none."""
    await ingest(client, [vehicle(f"V-{n}", minute) for n in range(8) for minute in range(30)])
    await roll(cluster)
    await ingest(client, [vehicle(f"V-{n}", minute) for n in range(8) for minute in range(30, 60)])
    policies = {"vehicle": HOT["vehicle"]}
    others = Kinds([replace(VEHICLE, fields=VEHICLE.fields[:2])])
    for record in await records_of(cluster):
        tender = Tender(record, Policies(policies), others)
        async with owner_session(record) as session:
            for tiers in await tender._look(session):
                while (step := tender._due(tiers, datetime.now(UTC))) is not None:
                    await tender._step(await Kept.of(session, tiers, summed=others.all[0]), step, datetime.now(UTC))
                    tiers = (await tender._look(session, tiers))[0]  # noqa: PLW2901 - as the tender does
    told = undated(await client.get("/v1/analytics/fleet", params=WHOLE))
    assert (told["dataPoints"], told["tiers"]) == (8 * 60, ["packed"])
    await roll(cluster)
    again = undated(await client.get("/v1/analytics/fleet", params=WHOLE))
    assert (again["dataPoints"], again["tiers"]) == (8 * 60, ["rollups"])


async def test_a_mark_that_nobody_can_know(
    client: httpx2.AsyncClient, cluster: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open prepared transaction, or an owner that does not see others': it is told, and the rest goes on."""
    await ingest(client, [vehicle("V-0", minute) for minute in range(5)])

    async def unknown(*_: object) -> Any:
        raise ClusterError("a prepared transaction is open there")

    monkeypatch.setattr(runner, "low_water", unknown)
    for record in await records_of(cluster):
        result = await Tender(record, Policies(HOT)).run()
        assert result.failed == {f"rollups of {kind}": "a prepared transaction is open there" for kind in KINDS}
    monkeypatch.undo()
    told = undated(await client.get("/v1/analytics/fleet", params=WHOLE))
    assert (told["dataPoints"], told["tiers"]) == (5, ["packed"])
    session = await asyncpg.connect(next(iter(cluster.shards.values())))
    await session.execute("CREATE ROLE blind_owner")
    await session.execute("SET ROLE blind_owner")
    with pytest.raises(ClusterError, match="pg_read_all_stats"):
        await low_water(session, None)
    await session.execute("RESET ROLE")
    await session.execute("DROP ROLE blind_owner")
    await session.close()


@pytest.mark.parametrize("closed", ["true", "false"])
async def test_a_leaf_that_is_gone_is_not_summarized(
    cluster: TestCluster, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another duty dropped it since somebody looked."""
    monkeypatch.setattr(rolling, "_PAGES", f"SELECT 4000000000::oid, {closed}, 3 WHERE $1 = 'vehicle'")
    session = await asyncpg.connect(next(iter(cluster.shards.values())))
    summaries = rolling.Summaries()
    await summaries.extend(session, VEHICLE)
    assert summaries.known == {}
    assert await session.fetchval("SELECT 1") == 1
    await session.close()


async def test_sums_are_kept_for_so_long(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """Periods from before are read one by one while the readings are there; what is left is as it was."""
    await ingest(client, [vehicle(f"V-{n}", minute) for n in range(4) for minute in range(0, 3 * DAY, 7)])
    assert await roll(cluster) > 0
    await tend(cluster)
    whole = {"from": at(0), "to": at(3 * DAY), "interval": "1h"}
    later = {**whole, "from": at(2 * DAY)}
    before = [undated(await client.get("/v1/analytics/fleet", params=params)) for params in (whole, later)]
    assert [each.pop("tiers") for each in before] == [["rollups"], ["rollups"]]
    kept = datetime.now(UTC) - datetime.fromisoformat(at(2 * DAY)) - timedelta(hours=3)
    await tend(cluster, policies={"vehicle": replace(HOT["vehicle"], rollups=kept)})
    for dsn in cluster.shards.values():
        for table, first in (("hourly", "at"), ("minutely", "at"), ("daily", "day")):
            found = await fetch(dsn, f"SELECT min({first}) AS first FROM vehicle_telemetry_{table}")
            assert str(found[0]["first"] or "9")[:10] >= at(2 * DAY)[:10]
    again = [undated(await client.get("/v1/analytics/fleet", params=params)) for params in (whole, later)]
    assert [each.pop("tiers") for each in again] == [["packed"], ["rollups"]]
    assert again == before
    for dsn in cluster.shards.values():
        await execute(dsn, "UPDATE tier SET rolled_of = NULL")  # made anew, and no further back
    await roll(cluster)
    once_more = undated(await client.get("/v1/analytics/fleet", params=later))
    assert (once_more.pop("tiers"), once_more) == (["rollups"], before[1])
