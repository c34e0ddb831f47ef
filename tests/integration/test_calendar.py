"""Days and months of a zone over both changes of clocks: the fleet's series against sums by local date."""

from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import httpx2
import pytest

from tests.support.readings import ingest
from tests.support.servers import TestCluster

CHANGES = [
    ("Europe/Berlin", datetime(2026, 3, 29, 1, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2026, 10, 25, 1, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 3, 8, 7, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 11, 1, 6, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 4, 4, 15, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 10, 3, 15, 30, tzinfo=UTC)),
]
STEP = timedelta(minutes=30)


@pytest.mark.parametrize(("zone", "change"), CHANGES)
@pytest.mark.parametrize("interval", ["day", "week", "month"])
async def test_series_of_local_dates(
    cluster: TestCluster, client: httpx2.AsyncClient, zone: str, change: datetime, interval: str
) -> None:
    start, end = change - timedelta(days=3, hours=5), change + timedelta(days=3, hours=7)
    readings, sums, counts = [], defaultdict[date, float](float), defaultdict[date, int](int)
    moment, number, count = start, 0, 1000.0
    while (moment := moment + STEP) <= end:
        number += 1
        count += number / 100
        readings.append({"meterId": f"CAL-{change:%m}-{zone}".replace("/", ":"), "kwhConsumedAc": number / 100})
        if number % 2:  # one meter sends energies, another one its count
            readings[-1] = {"meterId": f"REG-{change:%m}-{zone}".replace("/", ":"), "registerKwh": count}
        readings[-1]["timestamp"] = moment.isoformat()
        day = (moment - timedelta(microseconds=1)).astimezone(ZoneInfo(zone)).date()
        if interval == "week":
            day -= timedelta(days=day.weekday())
        elif interval == "month":
            day = day.replace(day=1)
        counts[day] += 1
        if not number % 2:
            sums[day] += number / 100
        elif number > 1:
            sums[day] += number / 100 + (number - 1) / 100
    await ingest(client, readings)
    window = {"from": start.isoformat(), "to": end.isoformat()}
    answer = await client.get("/v1/analytics/fleet", params={**window, "interval": interval, "tz": zone})
    series = answer.json()["series"]
    assert [part["meterDataPoints"] for part in series] == list(counts.values())
    assert [part["totalEnergyConsumedAc"] for part in series] == pytest.approx(list(sums.values()))
    edges = [datetime.fromisoformat(part["from"]).astimezone(ZoneInfo(zone)) for part in series[1:]]
    assert all((edge.hour, edge.minute) == (0, 0) for edge in edges)


@pytest.mark.parametrize("name", ["Europe/Berln", "CEST", "", "Europe", "../etc/passwd"])
async def test_an_unknown_zone_is_named(client: httpx2.AsyncClient, name: str) -> None:
    answer = await client.get("/v1/analytics/fleet", params={"interval": "day", "tz": name})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "tz")
    assert f"{name!r} is no time zone" in answer.json()["detail"]
