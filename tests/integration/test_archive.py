"""Months that leave their shards: what is told of them, what is refused, and that all of it comes back."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest_asyncio

from shards.kinds import Field
from shards.operations import kinds
from tests.integration.test_keys import until as until_status
from tests.support.archiving import ARCHIVED, DROPPED, catalog_at, left, restored, use
from tests.support.declared import CHARGER
from tests.support.declaring import silently
from tests.support.ledger import execute
from tests.support.months import DAY, DEVICES, LEFT, PERIOD, packed, states, sums, total
from tests.support.readings import at, ingest, register, vehicle
from tests.support.rolling import roll
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tenants import Made, new_tenant
from tests.support.tiering import answers, as_if_made, tend


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(servers: list[str], tmp_path: Path) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=8) as made:
        await use(made, f"file://{tmp_path}/archive")
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def client(cluster: TestCluster) -> AsyncIterator[httpx2.AsyncClient]:
    async with in_process(cluster, runner=False) as made:
        yield made


async def test_months_leave_and_come_back(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    of_hours, of_all = await packed(client, cluster)
    await left(cluster)
    assert await total(cluster, LEFT) == 0
    assert await states(cluster) == {"dropped"}
    assert await sums(client) == of_hours

    for path, params in (
        ("/v1/vehicles/V-0/history", {"from": "2026-06-30T23:58:00Z"}),
        ("/v1/analytics/fleet", {"from": "2026-05-10T00:00:01Z", "to": "2026-05-11T00:00:00Z"}),
        ("/v1/analytics/performance/V-1", {"from": "2026-05-10T00:00:01Z", "to": "2026-05-10T01:00:00Z"}),
        ("/v1/analytics/activity", {"since": "2026-05-10T00:00:00Z", "limit": "1000"}),
        ("/v1/export/vehicles", {}),
    ):
        refused = await client.get(path, params=params)
        assert (refused.status_code, refused.json()["type"]) == (409, "/problems/archived"), refused.text
        assert "voltroute archive restore" in refused.json()["detail"]
    most: dict[str, str] = {"limit": "1000"}
    last = (await client.get("/v1/vehicles/V-1/history", params=most)).json()
    assert (last["next"], last["archivedUntil"]) == (None, "2026-07-01T00:00:00Z")
    assert last["items"][-1]["timestamp"] == "2026-07-01T00:00:00Z"
    first = (await client.get("/v1/vehicles/V-1/history", params={"limit": 3})).json()
    assert (first["next"] is None, first["archivedUntil"]) == (False, None)
    since = {"from": "2026-06-30T23:59:59.999999Z", **most}
    assert len((await client.get("/v1/vehicles/V-1/history", params=since)).json()["items"]) == len(last["items"])

    await restored(cluster)
    assert await answers(client, PERIOD, DEVICES) == of_all
    assert await sums(client) == of_hours
    await left(cluster)
    assert await states(cluster) == {"restored"}
    await execute(cluster.catalog_dsn, "UPDATE archived_month SET restored_until = now()")
    await left(cluster)
    assert await total(cluster, LEFT) == 0
    assert await sums(client) == of_hours
    assert await states(cluster) == {"dropped"}


async def test_what_comes_too_late_is_refused(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """Whole requests, parts of them; before the archive, within it, and behind it."""
    of_hours, _ = await packed(client, cluster)
    late = [vehicle("V-0", 5 * DAY + 0.5), vehicle("V-9", 40 * DAY + 0.5)]
    assert (await ingest(client, late))["accepted"] == 2  # sealed with them
    await left(cluster)
    for body in (vehicle("V-0", 6 * DAY), [vehicle("V-7", -DAY), vehicle("V-1", 40 * DAY)]):
        refused = await client.post("/v1/ingest/vehicle", json=body)
        assert refused.status_code == 422, refused.text
        assert [each["code"] for each in refused.json()["errors"]] == ["too_old"] * (
            len(body) if isinstance(body, list) else 1
        )
    now = {**vehicle("V-0"), "timestamp": datetime.now(UTC).isoformat()}
    told = await ingest(
        client, [vehicle("V-0", 7 * DAY), now, vehicle("V-0", 62 * DAY + 0.5), vehicle("V-0", 62 * DAY + 0.5)]
    )
    assert (told["accepted"], told["duplicates"], told["rejected"]) == (2, 1, 1)
    assert [(each["index"], each["code"]) for each in told["errors"]] == [(0, "too_old")]
    await restored(cluster)
    again = await client.post("/v1/ingest/vehicle", json=vehicle("V-0", 6 * DAY))
    assert (again.status_code, again.json()["errors"][0]["code"]) == (422, "too_old")
    day = {"from": "2026-05-06T00:00:00Z", "to": "2026-05-07T00:00:00Z", "limit": "1000"}
    items = (await client.get("/v1/vehicles/V-0/history", params=day)).json()["items"]
    assert "2026-05-06T00:00:30Z" in [each["timestamp"] for each in items]
    assert of_hours != await sums(client)


async def test_months_are_dropped_for_good(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    of_hours, _ = await packed(client, cluster)
    await left(cluster, policies=DROPPED)
    assert await total(cluster, LEFT) == 0
    assert await sums(client) == of_hours
    assert await states(cluster) == {"expired"}
    refused = await client.get("/v1/vehicles/V-0/history", params={"from": "2026-06-30T00:00:00Z"})
    assert refused.json()["type"] == "/problems/archived"


async def test_registers_at_the_edge(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """Of what a count's archived predecessor was, rollups tell: also the first one's energy is known."""
    await as_if_made(cluster, date(2026, 5, 1), "week")
    counted = [register("R-0", minute, 100 + minute / 64) for minute in range(30 * DAY + 60, 63 * DAY, 180)]
    await ingest(client, [*counted, register("R-1", 61 * DAY + 90, 5), register("R-1", 62 * DAY, 9)])
    await roll(cluster)
    periods = [
        {"from": "2026-07-01T06:00:00Z", "to": "2026-07-02T00:00:00Z"},
        {"from": "2026-07-01T00:00:00Z", "to": "2026-07-02T12:00:00Z"},
        {"from": "2026-06-30T23:00:00Z", "to": "2026-07-02T12:00:00Z"},
    ]

    async def told(period: dict[str, str]) -> Any:
        answer = await client.get("/v1/analytics/fleet", params=period)
        return answer.json()["totalEnergyConsumedAc"] if answer.status_code == 200 else answer.json()["type"]

    history = {**periods[0], "limit": "2"}
    first = (await client.get("/v1/meters/R-0/history", params=history)).json()["items"]
    before = [await told(period) for period in periods]
    assert all(isinstance(each, float) for each in before)
    await tend(cluster)
    assert [await told(period) for period in periods] == before
    await left(cluster)
    assert [await told(period) for period in periods] == before
    again = (await client.get("/v1/meters/R-0/history", params=history)).json()["items"]
    assert [each["kwhConsumedAc"] for each in again] == [each["kwhConsumedAc"] for each in first]
    page = (await client.get("/v1/meters/R-0/history", params={"limit": "1000"})).json()
    assert (page["items"][-1]["timestamp"], page["archivedUntil"]) == ("2026-07-01T01:00:00Z", "2026-07-01T00:00:00Z")
    energies = [each["kwhConsumedAc"] for each in page["items"]]
    assert set(energies) == {180 / 64}
    for dsn in cluster.shards.values():  # as of a release before: rollups say that it counted, and not what
        await execute(dsn, "UPDATE meter_telemetry_daily SET counts = NULL")
    assert [await told(period) for period in periods] == [before[0], "/problems/archived", "/problems/archived"]
    page = (await client.get("/v1/meters/R-0/history", params={"limit": "1000"})).json()
    energies = [each["kwhConsumedAc"] for each in page["items"]]
    assert (energies[-1], set(energies[:-1])) == (None, {180 / 64})
    only = {"from": "2026-07-01T00:30:00Z", "to": "2026-07-01T01:00:00Z"}
    (one,) = (await client.get("/v1/meters/R-0/history", params=only)).json()["items"]
    assert one["kwhConsumedAc"] is None
    await restored(cluster)
    assert [await told(period) for period in periods] == before


async def test_a_declared_kind_and_tenants(servers: list[str], tmp_path: Path) -> None:
    """Fields of each type, missing ones, the same IDs in two tenants; a field that is added while they are away."""
    async with new_cluster(servers, shards=2, buckets=4) as made:
        await as_if_made(made, date(2026, 5, 1), "month")
        await use(made, f"file://{tmp_path}/archive")
        async with catalog_at(made.catalog_dsn) as catalog:
            await kinds.create(catalog, CHARGER, silently)
        keys = [await new_tenant(made, name) for name in ("one", "two")]
        policies = {**ARCHIVED, "charger": replace(ARCHIVED["meter"], kind="charger")}
        hot = {"charger": policies["charger"]}
        async with in_process(made, runner=False) as client:
            for each, key in enumerate(keys):
                await until_status(client, 200, headers=key.headers)
                sent = [charge(f"C-{n}", minute, each) for n in range(3) for minute in range(0, 40 * DAY, 701)]
                told = (await client.post("/v1/ingest/charger", json=sent, headers=key.headers)).json()
                assert told["accepted"] == len(sent), told
            before = [await lines(client, key) for key in keys]
            assert before[0] != before[1]
            await tend(made, policies=hot)
            await left(made, policies)
            gone = await client.get("/v1/export/chargers", headers=keys[0].headers)
            assert gone.status_code == 409, gone.text
            async with catalog_at(made.catalog_dsn) as catalog:
                await kinds.add(catalog, "charger", [Field("note", "note", "a number", kept=True)], silently)
            await restored(made)
            assert [await lines(client, key) for key in keys] == before


def charge(device: str, minute: int, tenant: int) -> dict[str, Any]:
    values: dict[str, Any] = {"kwh": minute % 7 / 8 + tenant, "state": ("idle", "charging")[minute % 2]}
    if minute % 3:
        values |= {"powerKw": -0.1 * (minute % 11), "phases": minute % 3, "plugged": minute % 2 == 0}
    if minute % 5 == 0:
        values["voltage"] = 400.25 + tenant
    return {"chargerId": device, "timestamp": at(minute), **values}


async def lines(client: httpx2.AsyncClient, key: Made) -> list[str]:
    found = await client.get("/v1/export/chargers", headers=key.headers)
    assert found.status_code == 200, found.text
    return found.text.splitlines()
