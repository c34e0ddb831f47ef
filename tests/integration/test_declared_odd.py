"""Declared kinds where things are not as they should be: restored catalogs, half-made kinds, two writers at once."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from shards.catalog import kinds as catalogued
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import ClusterError, Refused
from shards.kinds import Kind, Role, Side, Type
from shards.moves.carrier import Direction, carry_all_status, prepare_delta
from shards.moves.placement import PlannedMove
from shards.operations import check, kinds
from shards.operations.shape import bring
from shards.operations.shards import logins_of
from shards.postgres.sessions import owner_session
from shards.postgres.transactions import transaction
from shards.storage import write
from shards.storage.correction import correct
from shards.storage.repeats import Repeats
from shards.storage.roots import stored_kinds
from tests.support.declared import CHARGER
from tests.support.declaring import QUICK, learnt, make, silently
from tests.support.ledger import execute, fetch
from tests.support.moving import ended, running, start
from tests.support.readings import START, at, ingest, meter, vehicle
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster


@pytest_asyncio.fixture
async def cluster(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=8) as made:
        yield made


@pytest_asyncio.fixture
async def catalog(cluster: TestCluster) -> AsyncIterator[Catalog]:
    made = Catalog(cluster.catalog_dsn)
    yield made
    await made.close()


async def whole(catalog: Catalog) -> None:
    assert [each for each in await check.check(catalog) if not each.ok] == []


async def on_some(catalog: Catalog, kind: Kind, names: set[str]) -> None:
    """As a command leaves it that was killed: recorded, and on some shards."""
    async with catalog.membership(deadline_in(10)) as connection:
        await catalogued.insert(connection, kind)
    declared = [each for each in await catalogued.declared(catalog, deadline_in(10)) if each.is_open]
    info = await catalog.info(deadline_in(10))
    records = {each.name: each for each in await catalog.shards(deadline_in(10))}
    for name in names:
        async with owner_session(records[name]) as connection:
            await bring(connection, declared, logins_of(info.cluster_id, records), info)


@pytest.mark.parametrize("ready", [{"s1"}, {"s3"}])
async def test_a_bucket_moves_where_only_one_side_has_the_kind(
    cluster: TestCluster, catalog: Catalog, ready: set[str]
) -> None:
    """Afterwards it takes readings of every time, also those from before the cluster was made."""
    await on_some(catalog, CHARGER, ready)
    async with in_process(cluster, **QUICK) as client, running(catalog):
        await start(catalog, [PlannedMove(2, "s3", "s1")])
        assert await ended(catalog) == "done"
        await kinds.resume(catalog, silently)
        await learnt(client, lambda by_name: "charger" in by_name)
        for time in (at(0), "2019-01-01T00:00:00Z", "2026-11-01T00:00:00Z"):
            told = [{"chargerId": f"C-{n}", "timestamp": time, "kwh": 1, "state": "idle"} for n in range(40)]
            assert (await ingest(client, told, "/v1/ingest/charger"))["accepted"] == 40
    await whole(catalog)


async def test_a_catalog_that_forgot_a_kind_is_given_the_same_one_only(cluster: TestCluster, catalog: Catalog) -> None:
    await kinds.create(catalog, CHARGER, silently)
    await execute(cluster.catalog_dsn, "DELETE FROM kind_field WHERE kind_id = 3")
    await execute(cluster.catalog_dsn, "DELETE FROM kind WHERE kind_id = 3")
    told = [each.found for each in await check.check(catalog) if not each.ok]
    assert told == ["not so: charger on s1, charger on s2, charger on s3"]
    # The number that it had is given to another kind meanwhile.
    await execute(cluster.catalog_dsn, "ALTER TABLE kind ALTER COLUMN kind_id RESTART WITH 3")
    other = replace(CHARGER, name="pump", id_name="pumpId", id_column="pump_id", path="pump", plural="pumps")
    await kinds.create(catalog, other, silently)
    changed = replace(
        CHARGER, fields=(*CHARGER.fields[:3], replace(CHARGER.fields[3], type=Type.FLOAT8), *CHARGER.fields[4:])
    )
    with pytest.raises(ClusterError, match=r"charger.phases of its history is integer"):
        await kinds.create(catalog, changed, silently)
    await execute(cluster.catalog_dsn, "DELETE FROM kind_field WHERE kind_id = 4")
    await execute(cluster.catalog_dsn, "DELETE FROM kind WHERE kind_id = 4")
    await kinds.create(catalog, CHARGER, silently)
    await whole(catalog)


async def test_what_cannot_be_finished_stops_no_other_and_a_field_can_be_withdrawn(
    cluster: TestCluster, catalog: Catalog
) -> None:
    await execute(cluster.shards["s2"], "ALTER TABLE vehicle_telemetry_history ADD COLUMN depth text")
    depth = replace(CHARGER.fields[1], name="depth", column="depth", role=Role.NONE)
    with pytest.raises(ClusterError, match="vehicle is not on every shard yet: s2: what is there is not"):
        await kinds.add(catalog, "vehicle", [depth], silently)
    await on_some(catalog, CHARGER, set())
    with pytest.raises(ClusterError, match="vehicle is not on every shard yet"):
        await kinds.resume(catalog, silently)
    assert [each.whole.name for each in await catalogued.declared(catalog, deadline_in(10)) if each.is_open] == [
        "vehicle"
    ]
    await kinds.retire(catalog, "vehicle", "depth")
    await kinds.resume(catalog, silently)
    known = (await catalogued.known(catalog, deadline_in(10))).by_name
    assert ("charger" in known, len(known["vehicle"].stored)) == (True, 3)


async def test_what_would_refuse_readings_that_devices_send_is_not_added(catalog: Catalog) -> None:
    plain = replace(CHARGER, fields=tuple(replace(each, required=False) for each in CHARGER.fields))
    await kinds.create(catalog, plain, silently)
    count = replace(CHARGER.fields[0], name="registerKwh", column="register_kwh", role=Role.REGISTER, required=False)
    with pytest.raises(Refused, match="of which a reading must have one"):
        await kinds.add(catalog, "charger", [count], silently)


async def test_a_required_field_that_is_taken_again_is_kept(cluster: TestCluster, catalog: Catalog) -> None:
    async with in_process(cluster, **QUICK) as client:
        await make(catalog, client, CHARGER)
        base = {"chargerId": "C-1", "kwh": 1}
        await ingest(client, {**base, "timestamp": at(1), "state": "idle"}, "/v1/ingest/charger")
        state = CHARGER.fields[5]
        await kinds.retire(catalog, "charger", "state")
        await kinds.add(catalog, "charger", [replace(state, required=False, kept=True)], silently)
        await learnt(client, lambda by_name: not by_name["charger"].retired and len(by_name["charger"].fields) == 6)
        await ingest(client, {**base, "timestamp": at(2), "state": "charging"}, "/v1/ingest/charger")
        await ingest(client, {**base, "timestamp": at(3)}, "/v1/ingest/charger")
        shown = (await client.get("/v1/chargers/C-1/status")).json()
        assert (shown["state"], shown["lastUpdated"]) == ("charging", "2026-05-01T00:03:00Z")
    await whole(catalog)


async def test_a_kind_without_a_temperature_does_not_change_the_mean(cluster: TestCluster, catalog: Catalog) -> None:
    truck = replace(CHARGER, name="truck", id_name="truckId", id_column="truck_id", path="", plural="", side=Side.DC)
    async with in_process(cluster, **QUICK) as client:
        await make(catalog, client, truck)
        await ingest(client, [meter("M", 1, kwh=10), vehicle("V", 1, kwh=4, temp=30)])
        await ingest(client, [{"truckId": f"T-{n}", "timestamp": at(1), "kwh": 2, "state": "idle"} for n in range(2)])
        fleet = (await client.get("/v1/analytics/fleet", params={"from": at(0), "to": at(9)})).json()
        assert (fleet["avgBatteryTemp"], fleet["totalEnergyDeliveredDc"], fleet["vehicles"]) == (30.0, 8.0, 3)


async def test_statuses_are_merged_value_by_value(cluster: TestCluster, catalog: Catalog) -> None:
    """A copy that is older in one value and newer in another gives what is newer, and takes nothing back."""
    await kinds.create(catalog, CHARGER, silently)
    records = {each.name: each for each in await catalog.shards(deadline_in(10))}
    async with owner_session(records["s1"]) as giver, owner_session(records["s2"]) as taker:
        (kind,) = [each for each in await stored_kinds(giver) if each.name == "charger"]
        columns = "last_updated, power_kw, power_kw_at, voltage, voltage_at, kwh, bucket, charger_id"
        insert = f"INSERT INTO {kind.status} ({columns}) VALUES ($1, $2, $3, $4, $5, $6, 0, 'C')"
        minute = [START + timedelta(minutes=n) for n in range(20)]
        await giver.execute(insert, minute[10], 1.0, minute[5], 400.0, minute[9], 7.0)
        await taker.execute(insert, minute[10], 3.0, minute[7], 390.0, minute[8], 7.0)
        direction = Direction(0, giver, taker, {}, {}, (kind,))
        await prepare_delta(taker)
        async with transaction(taker):
            await carry_all_status(direction)
        row: Any = (await taker.fetch(f"SELECT {columns} FROM {kind.status}"))[0]
        assert tuple(row)[:6] == (minute[10], 3.0, minute[7], 400.0, minute[9], 7.0)


async def test_a_correction_beside_a_writer_leaves_the_newest_value(cluster: TestCluster, catalog: Catalog) -> None:
    await kinds.create(catalog, CHARGER, silently)
    dsn = cluster.shards["s1"]
    bucket = (await fetch(dsn, "SELECT min(bucket) AS bucket FROM owned_bucket"))[0]["bucket"]
    writer, operator = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    first, second = START, START + timedelta(minutes=1)

    def row(moment: Any, power: float) -> Any:
        return (bucket, 0, "C", moment, 1.0, power, None, None, None, "idle")

    await write.write(writer, CHARGER, [row(first, 1.0)], Repeats(), 10)
    begun = writer.transaction()
    await begun.start()
    await write.write(writer, CHARGER, [row(second, 2.0)], Repeats(), 10)
    correcting = asyncio.create_task(correct(operator, CHARGER, (bucket, 0, "C", first), {"power_kw": 9.0}, None))
    waits = "SELECT count(*) AS waiting FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND pid = $1"
    while not (await fetch(dsn, waits, operator.get_server_pid()))[0]["waiting"]:
        await asyncio.sleep(0.01)
    await begun.commit()
    await correcting
    (status,) = await fetch(dsn, "SELECT power_kw, power_kw_at FROM charger_current_status")
    assert (status["power_kw"], status["power_kw_at"]) == (2.0, second)
    await writer.close()
    await operator.close()
