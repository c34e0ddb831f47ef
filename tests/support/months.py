"""A cluster with two months of history and a little more, and what is asked of it."""

from datetime import date
from typing import Any

import httpx2

from tests.support.ledger import fetch
from tests.support.readings import ingest, meter, vehicle
from tests.support.rolling import roll
from tests.support.servers import TestCluster
from tests.support.tiering import answers, as_if_made, tend

DAY = 1440  # minutes; readings begin on 1 May 2026
WHOLE = {"from": "2026-05-01T00:00:00Z", "to": "2026-07-03T00:00:00Z"}
PERIOD = {"from": "2026-05-27T12:00:00Z", "to": "2026-06-04T00:00:30Z"}
DEVICES = {"meters": ["M-0", "M-1"], "vehicles": ["V-0", "V-1", "V-2"]}
LEDGER = "SELECT DISTINCT state FROM archived_month"
LEFT = "SELECT count(*) FROM vehicle_telemetry_packed WHERE day < '2026-07-01'"


def old_readings() -> list[dict[str, Any]]:
    """Sixty-three days: May, June, and a little of July; also at the very ends of months."""
    readings = [
        vehicle(f"V-{n}", minute + n / 60, kwh=minute % 7 / 10_000, temp=20 + minute % 5)
        for n in range(3)
        for minute in range(0, 63 * DAY, 97)
    ]
    readings += [meter(f"M-{n}", minute, kwh=minute % 9 / 8) for n in range(2) for minute in range(0, 63 * DAY, 101)]
    ends = [0, 31 * DAY - 1, 31 * DAY, 31 * DAY + 1, 61 * DAY, 61 * DAY + 1]
    return readings + [vehicle("V-1", minute) for minute in ends]


async def sums(client: httpx2.AsyncClient) -> dict[str, Any]:
    """Answers over whole hours."""
    asked: list[tuple[str, dict[str, str]]] = [
        ("/v1/analytics/fleet", WHOLE),
        ("/v1/analytics/fleet", {**WHOLE, "interval": "day"}),
        ("/v1/analytics/fleet", {"from": "2026-05-03T04:00:00Z", "to": "2026-06-02T17:00:00Z", "interval": "1h"}),
        ("/v1/usage", WHOLE),
        *((f"/v1/analytics/performance/V-{n}", WHOLE) for n in range(3)),
        ("/v1/analytics/performance/V-1", {"from": "2026-05-31T23:00:00Z", "to": "2026-06-01T01:00:00Z"}),
    ]
    found = {}
    for path, params in asked:
        answer = await client.get(path, params=params)
        assert answer.status_code == 200, answer.text
        told = answer.json()
        del told["tiers"], told["asOf"]
        for item in told.get("items", ()):
            item.pop("bytes")
        found[f"{path} {sorted(params.items())}"] = told
    return found


async def packed(client: httpx2.AsyncClient, cluster: TestCluster) -> tuple[dict[str, Any], Any]:
    """Give a cluster history, and pack it; answers over whole hours, and all of them."""
    await as_if_made(cluster, date(2026, 5, 1), "week")
    readings = sorted(old_readings(), key=lambda each: str(each["timestamp"]))
    for start in range(0, len(readings), 500):  # leaves are made as they come
        await ingest(client, readings[start : start + 500])
    body = {"meterId": "M-0", "vehicleId": "V-0", "validFrom": "2026-05-01T12:00:00Z"}
    assert (await client.put("/v1/pairings", json=body)).status_code in {200, 201}
    await roll(cluster)
    await tend(cluster)
    return await sums(client), await answers(client, PERIOD, DEVICES)


async def total(cluster: TestCluster, query: str) -> int:
    return sum([(await fetch(dsn, query))[0]["count"] for dsn in cluster.shards.values()])


async def states(cluster: TestCluster) -> set[str]:
    """Of the ledger."""
    return {row["state"] for row in await fetch(cluster.catalog_dsn, LEDGER)}


async def given(
    client: httpx2.AsyncClient, cluster: TestCluster, readings: list[dict[str, Any]], width: str = "week"
) -> None:
    await as_if_made(cluster, date(2026, 5, 1), width)
    for start in range(0, len(readings), 500):
        await ingest(client, readings[start : start + 500])
    await roll(cluster)
