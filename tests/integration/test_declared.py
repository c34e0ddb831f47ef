"""Kinds and fields that are declared while routers run: what is accepted is read back, whatever a reading has."""

import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import httpx2
import pytest
import pytest_asyncio

from shards.catalog import kinds as catalogued
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import ClusterError, Refused
from shards.kinds import BUILT_IN, METER, VEHICLE, Field, Side, Type
from shards.operations import check, kinds, shards
from shards.readymade import EXTENSIONS
from tests.support.commands import run_command
from tests.support.declared import CHARGER
from tests.support.declaring import QUICK, learnt, make, silently
from tests.support.ledger import execute, fetch
from tests.support.readings import at, ingest, meter, vehicle
from tests.support.routers import in_process
from tests.support.servers import TestCluster, drop_database, new_cluster, new_database

_numbers = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def small(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=4) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def router(small: TestCluster) -> AsyncIterator[httpx2.AsyncClient]:
    async with in_process(small, **QUICK) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def catalog(small: TestCluster) -> AsyncIterator[Catalog]:
    made = Catalog(small.catalog_dsn)
    yield made
    await made.close()


async def whole(catalog: Catalog) -> None:
    assert [each for each in await check.check(catalog) if not each.ok] == []


async def test_the_built_in_ones_are_declared_as_the_seed_has_them(catalog: Catalog) -> None:
    known = (await catalogued.known(catalog, deadline_in(10))).keeping(BUILT_IN)
    assert known.by_name["meter"] is METER
    assert known.by_name["vehicle"] is VEHICLE


async def test_a_kind_with_a_field_of_each_type(catalog: Catalog, router: httpx2.AsyncClient) -> None:
    assert (await router.post("/v1/ingest/charger", json={})).status_code == 404
    await make(catalog, router, CHARGER)
    first = {"chargerId": "C-1", "timestamp": at(1), "kwh": 0.5, "powerKw": 11, "plugged": True, "state": "charging"}
    second = {"chargerId": "C-1", "timestamp": at(2), "kwh": 0.25, "phases": 3, "state": "idle"}
    assert (await ingest(router, [first, second], "/v1/ingest/charger"))["accepted"] == 2
    assert (await ingest(router, [first, meter("M", 1), vehicle("V", 1)]))["accepted"] == 2
    conflict = {**second, "phases": 2}
    assert (await ingest(router, conflict, "/v1/ingest/charger"))["conflicts"] == 1
    shown = (await router.get("/v1/chargers/C-1/status")).json()
    assert {name: shown[name] for name in ("kwh", "powerKw", "phases", "plugged", "state", "voltage")} == {
        "kwh": 0.25,
        "powerKw": 11.0,
        "phases": 3,
        "plugged": True,
        "state": "idle",
        "voltage": None,
    }
    assert set(shown["valueTimes"]) == {"powerKw", "plugged"}
    assert [item["chargerId"] for item in (await router.get("/v1/chargers")).json()["items"]] == ["C-1"]
    recent = (await router.get("/v1/analytics/activity", params={"since": at(0)})).json()["items"]
    assert [(item["kind"], item["powerKw"]) for item in recent if item["deviceId"] == "C-1"] == [
        ("charger", None),
        ("charger", 11.0),
    ]
    put = await router.put("/v1/chargers/C-1", json={"powerMaxKw": 50, "label": "at the gate"})
    assert (put.status_code, put.json()["label"]) == (201, "at the gate")
    assert (await router.get("/v1/defaults/chargers")).json() == {"intervalS": None, "powerMaxKw": None}
    paths = (await router.get("/openapi.json")).json()["paths"]
    assert {"/v1/ingest/charger", "/v1/chargers/{id}/status", "/v1/chargers/{id}/history"} <= paths.keys()
    await whole(catalog)


async def test_a_field_is_added_retired_and_taken_again(catalog: Catalog, router: httpx2.AsyncClient) -> None:
    extra = EXTENSIONS["vehicle"]["driving"]
    odometer = {**vehicle("V-9", 1), "odometerKm": 1_000.5}
    refused = await router.post("/v1/ingest/vehicle", json=odometer)
    (error,) = refused.json()["errors"]
    assert (error["code"], error["pointer"]) == ("unknown_field", "/odometerKm")
    assert "voltroute field add vehicle odometerKm" in error["detail"]
    await kinds.add(catalog, "vehicle", extra, silently)
    await learnt(router, lambda by_name: len(by_name["vehicle"].fields) == 5)
    assert (await ingest(router, [odometer, vehicle("V-9", 3)], "/v1/ingest/vehicle"))["accepted"] == 2
    late = {**vehicle("V-9", 2), "odometerKm": 1_001.0, "outsideTemp": -3}
    assert (await ingest(router, late, "/v1/ingest/vehicle"))["accepted"] == 1
    shown = (await router.get("/v1/vehicles/V-9/status")).json()
    assert (shown["odometerKm"], shown["outsideTemp"], shown["lastUpdated"]) == (1_001.0, -3.0, "2026-05-01T00:03:00Z")
    assert shown["valueTimes"] == {"odometerKm": "2026-05-01T00:02:00Z", "outsideTemp": "2026-05-01T00:02:00Z"}
    await kinds.retire(catalog, "vehicle", "odometerKm")
    await learnt(router, lambda by_name: bool(by_name["vehicle"].retired))
    (error,) = (await router.post("/v1/ingest/vehicle", json={**odometer, "timestamp": at(5)})).json()["errors"]
    assert (error["code"], error["pointer"]) == ("retired_field", "/odometerKm")
    assert "odometerKm" not in (await router.get("/v1/vehicles/V-9/status")).json()
    history = (await router.get("/v1/vehicles/V-9/history")).json()["items"]
    assert [item["odometerKm"] for item in history] == [None, 1_001.0, 1_000.5]
    await kinds.add(catalog, "vehicle", extra[:1], silently)
    await learnt(router, lambda by_name: not by_name["vehicle"].retired)
    assert (await ingest(router, {**odometer, "timestamp": at(5)}, "/v1/ingest/vehicle"))["accepted"] == 1
    assert (await router.get("/v1/vehicles/V-9/status")).json()["odometerKm"] == 1_000.5
    assert (await router.get("/v1/analytics/performance/V-9", params={"from": at(0), "to": at(9)})).status_code == 200
    await whole(catalog)


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (replace(VEHICLE.fields[0], type=Type.INT), "with the type float8, and that never changes"),
        (replace(VEHICLE.fields[0], column="other"), "with the column soc"),
        (replace(VEHICLE.fields[0], name="other", column="other", required=True), "cannot be required"),
        (replace(METER.fields[2], name="meterId"), "is the ID of kind meter"),
    ],
)
async def test_a_field_that_would_be_another_is_refused(catalog: Catalog, field: Field, reason: str) -> None:
    before = await catalogued.declared(catalog, deadline_in(10))
    with pytest.raises((Refused, ValueError), match=reason):
        await kinds.add(catalog, "vehicle", [field], silently)
    after = await catalogued.declared(catalog, deadline_in(10))
    assert [len(each.whole.stored) for each in after] == [len(each.whole.stored) for each in before]
    assert [each.whole.name for each in after if each.is_open] == []


async def test_what_is_not_to_be_retired(catalog: Catalog) -> None:
    for name, reason in (("soc", "built-in"), ("nothing", "has no field")):
        with pytest.raises(Refused, match=reason):
            await kinds.retire(catalog, "vehicle", name)
    with pytest.raises(Refused, match="there is no kind"):
        await kinds.retire(catalog, "boat", "soc")
    with pytest.raises(Refused, match="is there already"):
        await kinds.create(catalog, METER, silently)


async def test_a_shard_that_is_away_is_waited_for(servers: list[str]) -> None:
    """No router hears of a kind that a shard does not have; what was begun is finished by hand."""
    async with new_cluster(servers, shards=3, buckets=4) as own, in_process(own, runner=False) as client:
        catalog = Catalog(own.catalog_dsn)
        dsn = own.shards["s2"]
        change = "UPDATE shard SET owner_dsn = $1 WHERE name = 's2'"
        await execute(own.catalog_dsn, change, dsn.replace("/t", "/nobody_"))
        with pytest.raises(ClusterError, match=r"not on every shard yet: s2: .* `voltroute kind resume`"):
            await kinds.create(catalog, CHARGER, silently)
        with pytest.raises(Refused, match="begun with another declaration"):
            await kinds.create(catalog, replace(CHARGER, description="another"), silently)
        assert (await client.post("/v1/ingest/charger", json={})).status_code == 404
        await execute(own.catalog_dsn, change, dsn)
        told = {each.name: each.found for each in await check.check(catalog) if not each.ok}
        assert told == {"no change of kinds is left half done": "not so: charger"}
        page = await run_command("status", env={"VOLTROUTE_CATALOG_DSN": own.catalog_dsn})
        assert "! charger: declared, and not on every shard yet: `voltroute kind resume`" in page.out
        assert await kinds.resume(catalog, silently) == ["meter", "vehicle", "charger"]
        await whole(catalog)
        await learnt(client, lambda by_name: "charger" in by_name)
        await catalog.close()


async def test_what_a_shard_lost_is_told_and_made_again(servers: list[str]) -> None:
    async with new_cluster(servers, shards=3, buckets=4) as own:
        catalog = Catalog(own.catalog_dsn)
        await kinds.add(catalog, "meter", EXTENSIONS["meter"]["grid"], silently)
        await execute(own.shards["s3"], "ALTER TABLE meter_telemetry_history DROP COLUMN power_kw")
        (lacking,) = [each for each in await check.check(catalog) if not each.ok]
        assert (lacking.found, lacking.remedy) == (
            "not so: meter.power_kw of its history is missing on s3",
            "voltroute kind resume",
        )
        await kinds.resume(catalog, silently)
        await whole(catalog)
        rights = "SELECT has_column_privilege(polroles[1], 'meter_telemetry_history', 'power_kw', 'INSERT') AS may"
        rights += " FROM pg_policy WHERE polname = 'written' AND polrelid = 'meter_telemetry_history'::regclass"
        assert [row["may"] for row in await fetch(own.shards["s3"], rights)] == [True]
        await catalog.close()


async def test_a_column_that_is_there_already_and_is_another_is_not_taken(servers: list[str]) -> None:
    async with new_cluster(servers, shards=3, buckets=4) as own:
        catalog = Catalog(own.catalog_dsn)
        await execute(own.shards["s2"], "ALTER TABLE meter_telemetry_history ADD COLUMN power_kw text")
        with pytest.raises(ClusterError, match=r"s2: what is there is not what is declared: meter.power_kw .* is text"):
            await kinds.add(catalog, "meter", EXTENSIONS["meter"]["grid"], silently)
        await execute(own.shards["s2"], "ALTER TABLE meter_telemetry_history DROP COLUMN power_kw")
        await kinds.resume(catalog, silently)
        await whole(catalog)
        await catalog.close()


async def test_roles_decide_what_counts_in_the_fleets_efficiency(servers: list[str]) -> None:
    """A declared kind on the AC side is added to the meters; one on no side counts nowhere."""
    grid = replace(CHARGER, name="feeder", id_name="feederId", id_column="feeder_id", side=Side.AC, path="", plural="")
    async with (
        new_cluster(servers, shards=3, buckets=4) as own,
        in_process(own, runner=False, map_poll_s=0.05) as client,
    ):
        catalog = Catalog(own.catalog_dsn)
        await make(catalog, client, CHARGER)
        await make(catalog, client, grid)
        told = {"timestamp": at(1), "state": "idle"}
        await ingest(client, [{**told, "feederId": f"F-{n}", "kwh": 2.0} for n in range(5)])
        await ingest(client, [{**told, "chargerId": f"C-{n}", "kwh": 7.0} for n in range(5)])
        await ingest(client, [meter("M", 1, kwh=10.0), vehicle("V", 1, kwh=18.0)])
        window = {"from": at(0), "to": at(60), "interval": "1h"}
        fleet = (await client.get("/v1/analytics/fleet", params=window)).json()
        assert (fleet["totalEnergyConsumedAc"], fleet["meterDataPoints"], fleet["meters"]) == (20.0, 6, 6)
        assert (fleet["totalEnergyDeliveredDc"], fleet["efficiencyRatio"]) == (18.0, 0.9)
        assert [each["totalEnergyConsumedAc"] for each in fleet["series"]] == [20.0]
        await catalog.close()


async def test_each_tenant_sees_its_own_devices_of_a_declared_kind(servers: list[str]) -> None:
    """The database itself sees to it: the login that reads finds nothing while no tenant is named."""
    async with (
        new_cluster(servers, shards=3, buckets=4) as own,
        in_process(own, runner=False, map_poll_s=0.05) as client,
    ):
        catalog = Catalog(own.catalog_dsn)
        await make(catalog, client, CHARGER)
        await ingest(client, {"chargerId": "C-1", "timestamp": at(1), "kwh": 1, "state": "idle"})
        for dsn in await fetch(own.catalog_dsn, "SELECT query_dsn, writer_dsn FROM shard"):
            assert await fetch(dsn["query_dsn"], "SELECT FROM charger_telemetry_history") == []
            assert await fetch(dsn["query_dsn"], "SELECT FROM charger_current_status") == []
            for statement in ("UPDATE charger_telemetry_history SET kwh = 0", "DELETE FROM charger_current_status"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await execute(dsn["writer_dsn"], statement)
        await catalog.close()


async def test_unknown_fields_may_be_left_out_and_are_counted(small: TestCluster) -> None:
    async with in_process(small, runner=False, unknown_fields="ignore") as client:
        odd = [{**meter("M-ODD", minute), "firmware": "1.2", "rssi": -70} for minute in (1, 2)]
        assert (await ingest(client, odd, "/v1/ingest/meter"))["accepted"] == 2
        assert (await ingest(client, [{**odd[0], "timestamp": at(3)}, vehicle("V-ODD", 1)]))["accepted"] == 2
        metrics = (await client.get("/metrics")).text
        assert 'voltroute_ingest_ignored_values_total{kind="meter"} 4.0' in metrics
        assert 'voltroute_ingest_ignored_values_total{kind="mixed"} 2.0' in metrics


async def test_a_shard_that_is_added_has_every_kind(servers: list[str]) -> None:
    async with new_cluster(servers, shards=3, buckets=4) as own:
        catalog = Catalog(own.catalog_dsn)
        await kinds.create(catalog, CHARGER, silently)
        await kinds.add(catalog, "meter", EXTENSIONS["meter"]["grid"], silently)
        fourth = await new_database(servers[3], f"fourth_{next(_numbers)}")
        await shards.add_shard(catalog, "s4", fourth, 1.0)
        await whole(catalog)
        assert await fetch(fourth, "SELECT charger_id FROM charger_current_status") == []
        await catalog.close()
        await drop_database(servers[3], fourth.rpartition("/")[2])


async def test_a_value_that_a_status_keeps_is_corrected_in_it(small: TestCluster, catalog: Catalog) -> None:
    async with in_process(small, **QUICK) as client:
        with contextlib.suppress(Refused):  # a test before this one made it
            await kinds.create(catalog, CHARGER, silently)
        await learnt(client, lambda by_name: "charger" in by_name)
        base = {"chargerId": "C-FIX", "kwh": 1, "state": "idle"}
        sent = [{**base, "timestamp": at(1), "powerKw": 5}, {**base, "timestamp": at(2), "powerKw": 99}]
        await ingest(client, [*sent, {**base, "timestamp": at(3)}], "/v1/ingest/charger")
        env = {"VOLTROUTE_CATALOG_DSN": small.catalog_dsn}
        done = await run_command(
            "correct", "charger", "C-FIX", at(2), "--set", "powerKw=6", "--set", "state=charging", env=env
        )
        assert (done.code, done.out) == (
            0,
            "kwh: 1 -> 1\npowerKw: 99 -> 6\nstate: idle -> charging\n",
        ), done.err
        shown = (await client.get("/v1/chargers/C-FIX/status")).json()
        assert (shown["powerKw"], shown["state"], shown["lastUpdated"]) == (6.0, "idle", "2026-05-01T00:03:00Z")
        wrong = await run_command("correct", "charger", "C-FIX", at(2), "--set", "state=flying", env=env)
        assert (wrong.code, "must be one of" in wrong.err or "Invalid enum" in wrong.err) == (2, True)
        assert (await run_command("correct", "boat", "B", at(2), "--set", "a=1", env=env)).code == 3
