"""Charts: what every interval says, against the readings themselves, from all tiers; points; gaps; what is refused."""

import math
import random
import statistics
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from shards.storage.charts import ACCURACY
from tests.support.archiving import catalog_at
from tests.support.declared import CHARGER
from tests.support.declaring import QUICK, make
from tests.support.readings import at, ingest, meter, vehicle
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tiering import tend

DAY = 1440
WHOLE = {"from": at(-60), "to": at(3 * DAY + 30)}
FIGURES = ("min", "max", "mean", "timeWeightedMean", "last", "p50", "p90", "p99")


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=8) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def client(cluster: TestCluster) -> AsyncIterator[httpx2.AsyncClient]:
    async with in_process(cluster, **QUICK) as made:
        yield made


def some_readings() -> list[dict[str, Any]]:
    dice = random.Random(7)
    readings = []
    for n in range(4):
        minute = dice.random() * 30
        while minute < 3 * DAY:
            readings.append(
                vehicle(f"V-{n}", minute, soc=dice.randrange(1001) / 10, temp=dice.randrange(-300, 600) / 10)
            )
            minute += dice.choice((1, 1, 1, 2.5, 90))
    return readings + [vehicle("V-0", minute, soc=50) for minute in (-60, 0, 60, 3 * DAY + 30)]


def moment(text: Any) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def of_device(readings: list[dict[str, Any]], device: str, field: str) -> list[tuple[datetime, float]]:
    start, end = moment(WHOLE["from"]), moment(WHOLE["to"])
    mine = [(moment(each["timestamp"]), float(each[field])) for each in readings if each["vehicleId"] == device]
    return sorted({when: value for when, value in mine if start < when <= end}.items())


def expected(values: list[tuple[datetime, float]], start: datetime, end: datetime) -> dict[str, Any]:
    """By the words of the document."""
    mine = [value for when, value in values if start < when <= end]
    held = [
        (value, (min(until, end) - max(since, start)).total_seconds())
        for (since, value), (until, _) in pairwise([*values, (moment(WHOLE["to"]), 0.0)])
        if min(until, end) > max(since, start)
    ]
    weight = sum(seconds for _, seconds in held)
    cuts = statistics.quantiles(mine, n=100, method="inclusive") if len(mine) > 1 else [mine[0]] * 99
    return {
        "readings": len(mine),
        "min": min(mine),
        "max": max(mine),
        "mean": sum(mine) / len(mine),
        "timeWeightedMean": sum(value * seconds for value, seconds in held) / weight if weight else None,
        "last": mine[-1],
        "p50": cuts[49],
        "p90": cuts[89],
        "p99": cuts[98],
    }


def is_as(told: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(
        told[name] == wanted[name]
        or (
            told[name] is not None and wanted[name] is not None and math.isclose(told[name], wanted[name], rel_tol=1e-9)
        )
        for name in wanted
    )


async def get(client: httpx2.AsyncClient, path: str, **params: str) -> Any:
    answer = await client.get(path, params={**WHOLE, **params})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def of_one(client: httpx2.AsyncClient, readings: list[dict[str, Any]], device: str) -> list[Any]:
    """What charts of a device say, after it was compared with its readings."""
    answers: list[Any] = []
    for field, interval in (("soc", "1h"), ("batteryTemp", "7m"), ("soc", "day"), ("soc", "5d")):
        told = await get(client, f"/v1/vehicles/{device}/series", field=field, interval=interval)
        values = of_device(readings, device, field)
        assert told["unit"] == {"soc": "%", "batteryTemp": "Cel"}[field]
        for item in told["items"]:
            wanted = expected(values, moment(item["from"]), moment(item["to"]))
            assert is_as(item, wanted), (device, field, item, wanted)
        assert sum(item["readings"] for item in told["items"]) == len(values)
        answers.append(told["items"])
    for count in ("10", "300", "2000"):
        told = await get(client, f"/v1/vehicles/{device}/points", field="soc", points=count)
        values = of_device(readings, device, "soc")
        assert told["readings"] == len(values)
        shown = [(moment(each["timestamp"]), each["value"]) for each in told["points"]]
        assert len(shown) == min(int(count), len(values))
        assert set(shown) <= set(values)
        assert (shown[0], shown[-1]) == (values[0], values[-1])
        answers.append(told["points"])
    return answers


async def of_all(client: httpx2.AsyncClient, readings: list[dict[str, Any]]) -> list[Any]:
    """The same of all devices."""
    answers: list[Any] = []
    for field, interval in (("soc", "6h"), ("kwhDeliveredDc", "day"), ("batteryTemp", "1h")):
        told = await get(client, "/v1/vehicles/series", field=field, interval=interval)
        every = [value for n in range(4) for value in of_device(readings, f"V-{n}", field)]
        for item in told["items"]:
            mine = sorted(v for when, v in every if moment(item["from"]) < when <= moment(item["to"]))
            assert (item["readings"], item["min"], item["max"]) == (len(mine), mine[0], mine[-1])
            assert math.isclose(item["sum"], sum(mine), rel_tol=1e-9, abs_tol=1e-9)
            assert math.isclose(item["mean"] * len(mine), item["sum"], rel_tol=1e-9, abs_tol=1e-9)
            for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
                true = mine[math.floor(share * (len(mine) - 1))]
                assert math.isclose(item[name], true, rel_tol=ACCURACY * 1.01, abs_tol=1e-9), (item, name, true)
        assert (told["isPartial"], told["shards"]["ok"]) == (False, 3)
        answers.append(told["items"])
    return answers


async def test_every_figure_of_every_tier(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    readings = some_readings()
    await ingest(client, readings)

    async def told() -> list[Any]:
        of_devices = [await of_one(client, readings, device) for device in ("V-0", "V-1")]
        return [*of_devices, await of_all(client, readings)]

    hot = await told()
    await tend(cluster)
    assert await told() == hot
    late = [vehicle("V-1", minute + 0.123, soc=99.5) for minute in range(0, DAY, 100)]
    readings += late
    await ingest(client, late)
    await told()
    await tend(cluster)
    await told()


async def test_fields_of_other_types(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """A share of time for yes or no; float4 as it was sent; no texts."""
    async with catalog_at(cluster.catalog_dsn) as catalog:
        await make(catalog, client, CHARGER)
    sent = [
        {"chargerId": "C", "timestamp": at(minute), "kwh": 1, "state": "idle", "plugged": minute < 30, "powerKw": 0.1}
        for minute in range(0, 60, 10)
    ]
    told = (await client.post("/v1/ingest/charger", json=sent)).json()
    assert told["accepted"] == 6, told
    period = {"from": at(-1), "to": at(59)}
    plugged = await get(client, "/v1/chargers/C/series", field="plugged", **period)
    assert [item["mean"] for item in plugged["items"]] == [0.5]
    assert plugged["items"][0]["timeWeightedMean"] == pytest.approx(30 / 59)
    power = await get(client, "/v1/chargers/C/points", field="powerKw", **period)
    assert {each["value"] for each in power["points"]} == {0.1}
    refused = await client.get("/v1/chargers/C/series", params={"field": "state"})
    assert "it has kwh, powerKw, voltage, phases, plugged" in refused.json()["detail"]


async def test_gaps_and_zones(client: httpx2.AsyncClient) -> None:
    await ingest(client, [vehicle("V-0", minute, soc=soc) for minute, soc in ((30, 10), (50, 20), (200, 40))])
    period = {"from": at(0), "to": at(300), "interval": "1h", "field": "soc"}
    means = {"none": [15, 40], "null": [15, None, None, 40, None], "previous": [15, 20, 20, 40, 40]}
    means["linear"] = [15, 15 + 25 / 3, 15 + 50 / 3, 40, None]
    for fill, wanted in means.items():
        told = await get(client, "/v1/vehicles/V-0/series", **period, fill=fill)
        assert [item["mean"] for item in told["items"]] == pytest.approx(wanted), fill
        of_all = await get(client, "/v1/vehicles/series", **period, fill=fill)
        if fill != "previous":
            assert [item["mean"] for item in of_all["items"]] == pytest.approx(wanted), fill
        assert sum(item["readings"] for item in told["items"]) == 3
    months = {"from": "2026-04-30T22:00:00Z", "to": "2026-05-02T22:00:00Z", "interval": "day", "tz": "Europe/Berlin"}
    told = await get(client, "/v1/vehicles/V-0/series", field="soc", fill="null", **months)
    assert [(item["from"], item["readings"]) for item in told["items"]] == [
        ("2026-04-30T22:00:00Z", 3),
        ("2026-05-01T22:00:00Z", 0),
    ]


async def test_now_holds_no_longer_than_now(client: httpx2.AsyncClient) -> None:
    """A value weighs until now, whatever period is asked for."""
    now = datetime.now(UTC).replace(microsecond=0)
    await ingest(
        client,
        [
            {**vehicle("V-0", soc=soc), "timestamp": (now - timedelta(hours=h)).isoformat()}
            for h, soc in ((3, 0), (1, 90))
        ],
    )
    period = {"from": (now - timedelta(hours=4)).isoformat(), "to": (now + timedelta(hours=9)).isoformat()}
    told = await get(client, "/v1/vehicles/V-0/series", field="soc", interval="13h", **period)
    assert told["items"][0]["timeWeightedMean"] == pytest.approx(30, abs=1)
    assert told["items"][0]["last"] == 90


async def test_what_is_refused_or_unknown(client: httpx2.AsyncClient) -> None:
    await ingest(client, [meter("M-0", 1), vehicle("V-0", 1)])
    for path, params, status, words in (
        ("/v1/vehicles/V-0/series", {}, 422, "field: is required"),
        ("/v1/vehicles/V-0/series", {"field": "nope"}, 422, "it has soc, kwhDeliveredDc, batteryTemp"),
        ("/v1/vehicles/V-0/series", {"field": "soc", "fill": "x"}, 422, "fill"),
        ("/v1/vehicles/V-0/series", {"field": "soc", "interval": "1m", "from": at(-9 * DAY)}, 422, "more than 1000"),
        ("/v1/vehicles/V-0/points", {"field": "soc", "points": "2"}, 422, "from 3 to 2000"),
        ("/v1/vehicles/V-9/points", {"field": "soc"}, 404, "no vehicle V-9"),
        ("/v1/meters/M-9/series", {"field": "voltage"}, 404, "no meter M-9"),
        ("/v1/vehicles/series", {"field": "voltage"}, 422, "a vehicle has no numbers of that name"),
    ):
        answer = await client.get(path, params=params)
        assert (answer.status_code, words in answer.text) == (status, True), answer.text
    nothing = await client.get("/v1/vehicles/V-0/points", params={"field": "soc"})
    assert (nothing.json()["readings"], nothing.json()["points"]) == (0, [])
    empty = await client.get("/v1/meters/series", params={"field": "registerKwh"})
    assert empty.json()["items"] == []
