"""Status, history, performance, fleet, activity: exact values, pages, parameters."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from tests.support.ledger import execute, wipe
from tests.support.readings import at, ingest, meter, undated, vehicle
from tests.support.servers import TestCluster

PERIOD = {"from": at(0), "to": at(60)}


@pytest.fixture(autouse=True)
async def _clean(cluster: TestCluster) -> None:
    await wipe(cluster.shards, cluster.catalog_dsn)


async def get(client: httpx2.AsyncClient, path: str, **params: Any) -> dict[str, Any]:
    response = await client.get(path, params=params)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def pair(client: httpx2.AsyncClient, vehicle_id: str, meter_id: str, start: str, end: str | None = None) -> int:
    body = {"vehicleId": vehicle_id, "meterId": meter_id, "validFrom": start, "validTo": end}
    return (await client.put("/v1/pairings", json=body)).status_code


async def test_status_is_the_newest(client: httpx2.AsyncClient) -> None:
    await ingest(client, [vehicle("V", 5, soc=55), vehicle("V", 9, soc=59), vehicle("V", 7, soc=57)])
    await ingest(client, vehicle("V", 8, soc=58))
    status = await get(client, "/v1/vehicles/V/status")
    assert (status["soc"], status["lastUpdated"]) == (59.0, "2026-05-01T00:09:00Z")
    assert (await client.get("/v1/vehicles/NOBODY/status")).status_code == 404
    assert (await client.get("/v1/meters/V/status")).status_code == 404


async def test_history_in_pages(client: httpx2.AsyncClient) -> None:
    await ingest(client, [meter("M", minute) for minute in range(1, 26)])
    seen: list[str] = []
    params: dict[str, Any] = {**PERIOD, "limit": 10}
    for size in (10, 10, 5):
        page = await get(client, "/v1/meters/M/history", **params)
        assert len(page["items"]) == size
        seen += [item["timestamp"] for item in page["items"]]
        params["cursor"] = page["next"]
    assert page["next"] is None
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) == 25


async def test_windows_exclude_their_start_and_include_their_end(client: httpx2.AsyncClient) -> None:
    await ingest(client, [meter("M", minute) for minute in (0, 1, 60, 61)])
    page = await get(client, "/v1/meters/M/history", **PERIOD)
    assert [item["timestamp"] for item in page["items"]] == ["2026-05-01T01:00:00Z", "2026-05-01T00:01:00Z"]


async def test_performance_of_a_paired_vehicle(client: httpx2.AsyncClient) -> None:
    await ingest(client, [meter("M", n, kwh=1.0) for n in range(1, 31)])
    await ingest(client, [vehicle("V", n, kwh=0.9, temp=20 + n % 2) for n in range(1, 31)])
    assert await pair(client, "V", "M", at(0)) == 201
    answer = await get(client, "/v1/analytics/performance/V", **PERIOD)
    assert answer["totalEnergyConsumedAc"] == pytest.approx(30)
    assert answer["totalEnergyDeliveredDc"] == pytest.approx(27)
    assert answer["efficiencyRatio"] == pytest.approx(0.9)
    assert answer["avgBatteryTemp"] == pytest.approx(20.5)
    assert (answer["dataPoints"], answer["coverage"], answer["meterIds"]) == (30, 0.5, ["M"])
    assert (answer["healthStatus"], answer["isPartial"]) == ("HEALTHY", False)
    assert answer["shards"]["missing"] == []


async def test_efficiency_counts_only_the_paired_time(client: httpx2.AsyncClient) -> None:
    await ingest(client, [meter("M1", n, kwh=1.0) for n in range(1, 61)])
    await ingest(client, [meter("M2", n, kwh=2.0) for n in range(1, 61)])
    await ingest(client, [vehicle("V", n, kwh=0.8) for n in range(1, 61)])
    assert await pair(client, "V", "M1", at(0), at(20)) == 201
    assert await pair(client, "V", "M2", at(20), at(30)) == 201
    answer = await get(client, "/v1/analytics/performance/V", **PERIOD)
    assert answer["totalEnergyConsumedAc"] == pytest.approx(20 + 20)
    assert answer["totalEnergyDeliveredDc"] == pytest.approx(48)
    assert answer["efficiencyRatio"] == pytest.approx(24 / 40)
    assert answer["healthStatus"] == "CRITICAL"


async def test_no_meter_data_is_not_zero(client: httpx2.AsyncClient) -> None:
    await ingest(client, [vehicle("V", n) for n in range(1, 5)])
    answer = await get(client, "/v1/analytics/performance/V", **PERIOD)
    assert (answer["efficiencyRatio"], answer["totalEnergyConsumedAc"]) == (None, None)
    assert answer["healthStatus"] == "NO_METER_DATA"
    await ingest(client, [meter("M", n) for n in range(1, 5)])
    await pair(client, "OTHER", "M", at(0))
    other = await get(client, "/v1/analytics/performance/OTHER", **PERIOD)
    assert (other["healthStatus"], other["efficiencyRatio"]) == ("NO_VEHICLE_DATA", None)
    assert other["totalEnergyConsumedAc"] == pytest.approx(2.0)
    assert (await client.get("/v1/analytics/performance/NOBODY")).status_code == 404


async def test_more_dc_than_ac_is_an_anomaly(client: httpx2.AsyncClient) -> None:
    await ingest(client, [meter("M", 1, kwh=1.0), vehicle("V", 1, kwh=1.1)])
    await pair(client, "V", "M", at(0))
    assert (await get(client, "/v1/analytics/performance/V", **PERIOD))["healthStatus"] == "ANOMALY"


async def test_fleet_and_its_series(client: httpx2.AsyncClient) -> None:
    await ingest(client, [meter(f"M{d}", n, kwh=1.0) for d in range(10) for n in range(1, 61)])
    await ingest(client, [vehicle(f"V{d}", n, kwh=0.9) for d in range(10) for n in range(1, 61)])
    await pair(client, "V0", "M0", at(0), at(30))
    answer = await get(client, "/v1/analytics/fleet", **PERIOD, interval="15m")
    assert (answer["meters"], answer["vehicles"], answer["dataPoints"], answer["coverage"]) == (10, 10, 600, 1.0)
    assert answer["totalEnergyConsumedAc"] == pytest.approx(600)
    assert answer["efficiencyRatio"] == pytest.approx(0.9)
    assert answer["paired"]["totalEnergyConsumedAc"] == pytest.approx(30)
    assert answer["paired"]["totalEnergyDeliveredDc"] == pytest.approx(27)
    assert [point["dataPoints"] for point in answer["series"]] == [150, 150, 150, 150]
    assert [point["to"] for point in answer["series"]][-1] == "2026-05-01T01:00:00Z"


async def test_activity_is_sorted_over_shards_and_kinds(client: httpx2.AsyncClient) -> None:
    await ingest(client, [meter(f"M{n}", n) for n in range(30)] + [vehicle(f"V{n}", n + 0.5) for n in range(30)])
    answer = await get(client, "/v1/analytics/activity", since=at(0), limit=20)
    assert [item["deviceId"] for item in answer["items"][:4]] == ["V29", "M29", "V28", "M28"]
    times = [item["timestamp"] for item in answer["items"]]
    assert times == sorted(times, reverse=True)
    assert (len(times), answer["items"][0]["kind"], answer["items"][0]["voltage"]) == (20, "vehicle", None)


async def test_pairings_do_not_overlap_and_can_be_ended(client: httpx2.AsyncClient) -> None:
    assert await pair(client, "V1", "M", at(0)) == 201
    assert await pair(client, "V1", "M", at(0)) == 200
    conflict = await client.put("/v1/pairings", json={"vehicleId": "V2", "meterId": "M", "validFrom": at(10)})
    assert (conflict.status_code, conflict.json()["type"]) == (409, "/problems/pairing-conflict")
    assert await pair(client, "V1", "M", at(0), at(10)) == 200
    assert await pair(client, "V2", "M", at(10)) == 201
    listed = await get(client, "/v1/pairings", meterId="M", limit=1)
    assert [item["vehicleId"] for item in listed["items"]] == ["V1"]
    second = await get(client, "/v1/pairings", meterId="M", limit=1, cursor=listed["next"])
    assert ([item["vehicleId"] for item in second["items"]], second["next"]) == (["V2"], None)
    where = {"vehicleId": "V2", "meterId": "M", "validFrom": at(10)}
    assert (await client.delete("/v1/pairings", params=where)).status_code == 204
    assert (await client.delete("/v1/pairings", params=where)).status_code == 404
    backwards = {"vehicleId": "V3", "meterId": "M3", "validFrom": at(1), "validTo": at(0)}
    assert (await client.put("/v1/pairings", json=backwards)).status_code == 422


BAD_QUERIES = [
    ("/v1/meters/M/history?limit=0", "limit"),
    ("/v1/meters/M/history?limit=1001", "limit"),
    ("/v1/meters/M/history?from=yesterday", "from"),
    ("/v1/meters/M/history?from=2026-05-02T00:00:00Z&to=2026-05-01T00:00:00Z", "from"),
    ("/v1/meters/M/history?form=2026-05-02T00:00:00Z", "form"),
    ("/v1/meters/M/history?cursor=!!", "cursor"),
    ("/v1/meters/M%20M/status", "id"),
    ("/v1/analytics/fleet?interval=5", "interval"),
    ("/v1/analytics/fleet?interval=1m&from=2020-01-01T00:00:00Z", "interval"),
    ("/v1/analytics/fleet?partial=maybe", "partial"),
    ("/v1/analytics/activity?since=2026-05-02T00:00:00", "since"),
    ("/v1/analytics/activity?since=0001-01-01T00:00:00%2B14:00", "since"),
    ("/v1/pairings?limit=1&limit=2", "limit"),
]


@pytest.mark.parametrize(("path", "name"), BAD_QUERIES)
async def test_a_bad_parameter_is_named(client: httpx2.AsyncClient, path: str, name: str) -> None:
    response = await client.get(path)
    assert response.status_code == 422, response.text
    assert response.json()["errors"][0]["pointer"] == name


async def test_an_offset_may_lose_its_plus_on_the_way(client: httpx2.AsyncClient) -> None:
    await ingest(client, meter("M", 1))
    response = await client.get("/v1/meters/M/history?from=2026-05-01T02:00:00+02:00&to=2026-05-01T00:02:00Z")
    assert len(response.json()["items"]) == 1


async def test_default_period_is_the_last_day(client: httpx2.AsyncClient) -> None:
    answer = await get(client, "/v1/analytics/fleet")
    start, end = (datetime.fromisoformat(answer[name]) for name in ("from", "to"))
    assert timedelta(0) <= timedelta(hours=24) - (end - start) < timedelta(minutes=1)
    assert (start.second, start.microsecond) == (0, 0)
    assert datetime.now(UTC) - end < timedelta(minutes=1)


async def test_history_without_a_start_gives_the_newest_however_old(client: httpx2.AsyncClient) -> None:
    moments = [datetime.now(UTC) - timedelta(days=days) for days in (0, 40, 41, 200)]
    await ingest(client, [{**meter("EDGE"), "timestamp": moment.isoformat()} for moment in moments])
    first = await get(client, "/v1/meters/EDGE/history", limit=3)
    second = await get(client, "/v1/meters/EDGE/history", limit=3, cursor=first["next"])
    assert ([len(page["items"]) for page in (first, second)], second["next"]) == ([3, 1], None)


async def test_a_cursor_carries_the_whole_window(client: httpx2.AsyncClient) -> None:
    """Also its old end: nothing older comes in between two pages, and nothing vanishes."""
    moments = [datetime.now(UTC) - timedelta(days=days) for days in (0, 40, 41, 200)]
    await ingest(client, [{**meter("PINNED"), "timestamp": moment.isoformat()} for moment in moments])
    start = (datetime.now(UTC) - timedelta(days=100)).isoformat()
    first = await get(client, "/v1/meters/PINNED/history", **{"limit": 2, "from": start})
    second = await get(client, "/v1/meters/PINNED/history", limit=2, cursor=first["next"])
    assert ([len(page["items"]) for page in (first, second)], second["next"]) == ([2, 1], None)


async def test_a_fleet_with_many_pairings_lets_others_through(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """3,000 pairings: sums over all chunks, and a probe that is answered meanwhile."""
    await ingest(client, [meter(f"PM{n}", 1, kwh=1.0) for n in range(3_000)])
    insert = (
        "INSERT INTO pairing (vehicle_id, meter_id, valid_from)"
        " SELECT 'PV' || n, 'PM' || n, '2026-05-01T00:00Z' FROM generate_series(0, 2999) AS n"
    )
    await execute(cluster.catalog_dsn, insert)
    asked = asyncio.create_task(get(client, "/v1/analytics/fleet", **PERIOD))
    probes = 0
    while not asked.done():
        assert (await client.get("/livez")).status_code == 200
        await asyncio.sleep(0.001)  # a probe of this process waits for nothing by itself
        probes += 1
    answer = await asked
    assert probes > 3
    assert (answer["paired"]["pairings"], answer["paired"]["totalEnergyConsumedAc"]) == (3_000, 3_000.0)


async def pages(client: httpx2.AsyncClient, path: str, **params: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    following: dict[str, Any] = {}
    while True:
        page = await get(client, path, **params, **following)
        found += page["items"]
        if page["next"] is None:
            return found
        assert len(page["items"]) == params["limit"]
        following = {"cursor": page["next"]}


@pytest.mark.parametrize("limit", [1, 7, 1000])
async def test_devices_come_in_pages_by_id(client: httpx2.AsyncClient, limit: int) -> None:
    ids = [f"{prefix}{n}" for prefix in ("LIST-", "LIST.", "LIST-A|", "list-", "DE*ABC*E", "+49*8@") for n in range(4)]
    await ingest(client, [meter(device, minute) for device in ids for minute in (0, 1)])
    await ingest(client, vehicle("LIST-V", 3))
    found = await pages(client, "/v1/meters", limit=limit, prefix="LIST-")
    assert [each["meterId"] for each in found] == sorted(device for device in ids if device.startswith("LIST-"))
    assert {each["lastUpdated"] for each in found} == {"2026-05-01T00:01:00Z"}
    assert found[0] == await get(client, f"/v1/meters/{found[0]['meterId']}/status")
    for prefix in ("DE*", "+", "LIST-A|", "LIST-A|2", "nothing"):
        part = await pages(client, "/v1/meters", limit=limit, prefix=prefix)
        assert [each["meterId"] for each in part] == sorted(device for device in ids if device.startswith(prefix))
    everything = [each["meterId"] for each in await pages(client, "/v1/meters", limit=max(limit, 50))]
    assert everything == sorted(set(everything))
    assert set(ids) <= set(everything)
    assert [each["vehicleId"] for each in await pages(client, "/v1/vehicles", limit=limit, prefix="LIST")] == ["LIST-V"]


async def test_a_prefix_that_no_device_can_have_is_refused(client: httpx2.AsyncClient) -> None:
    for params, pointer in (({"prefix": "a b"}, "prefix"), ({"prefix": ""}, "prefix"), ({"cursor": "%"}, "cursor")):
        answer = await client.get("/v1/meters", params=params)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer), answer.text


async def test_answers_are_compressed_on_request(client: httpx2.AsyncClient) -> None:
    await ingest(client, [meter(f"GZ-{n}", 1) for n in range(40)])
    plain = await client.get("/v1/meters?prefix=GZ", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    packed = await client.get("/v1/meters?prefix=GZ", headers={"Accept-Encoding": "gzip"})
    assert (packed.headers["content-encoding"], packed.headers["vary"]) == ("gzip", "Accept-Encoding")
    assert int(packed.headers["content-length"]) < len(plain.content) / 3
    assert undated(packed) == undated(plain)
