"""Tenants: the same IDs are other devices, and no way leads to another one's rows."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import asyncpg
import httpx2
import pytest

from router.ingest.decode import decode
from router.ingest.routing import route
from shards.buckets import BucketRange
from shards.catalog.shard_map import ShardMap
from shards.catalog.tenants import publish
from shards.clock import deadline_in
from shards.errors import ForeignTenant, NoMap, Refused
from shards.kinds import METER
from shards.moves.placement import PlannedMove
from shards.operations import tenants
from shards.operations.drain import drain
from shards.operations.plan import plan_now
from shards.operations.rebalance import Pace, start
from shards.operations.shards import remove_shard
from shards.postgres.options import PoolLimits, PoolOptions
from shards.postgres.pools import ShardPool
from shards.storage import read
from shards.storage.rows import Reader
from tests.integration.test_identity import records
from tests.integration.test_keys import until
from tests.support.commands import run_command
from tests.support.ledger import fetch
from tests.support.readings import at, meter, register, undated, vehicle
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.shapes import METER_SHAPE
from tests.support.tenants import Made, catalog_of, new_key, new_tenant
from tests.support.tiering import tend

WINDOW = {"from": at(-1), "to": at(60)}
ROOTS = tuple(
    f"{kind}_{root}"
    for kind in ("meter", "vehicle")
    for root in ("telemetry_history", "telemetry_late", "telemetry_packed", "current_status")
)


@pytest.fixture
async def cluster(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=8) as made:
        yield made


async def everything(client: httpx2.AsyncClient, key: Made) -> dict[str, Any]:
    """Whatever a tenant can read, by where it was read."""
    found = {}
    for path in (
        "/v1/meters",
        "/v1/vehicles",
        "/v1/meters/M/status",
        "/v1/meters/R/history",
        "/v1/meters/M/history",
        "/v1/vehicles/V/history",
        "/v1/pairings",
        "/v1/defaults/meters",
        "/v1/meters/M",
        "/v1/analytics/performance/V",
        "/v1/analytics/fleet?interval=30m",
        "/v1/analytics/activity?since=2026-01-01T00:00:00Z",
    ):
        window = WINDOW if "analytics" in path and "activity" not in path else {}
        url = httpx2.URL(path)
        answer = await client.get(url.copy_merge_params(window), headers=key.headers)
        body = undated(answer)
        found[path] = (
            answer.status_code,
            body.get("items") if answer.is_success and "items" in body else body.get("detail", body),
        )
    return found


async def test_the_same_ids_in_two_tenants_are_other_devices_everywhere(cluster: TestCluster) -> None:
    mine, theirs = await new_tenant(cluster, "mine"), await new_tenant(cluster, "theirs", "s2", "s3", buckets=3)
    nobody = await new_key(cluster)
    async with in_process(cluster) as client:
        await until(client, 200, headers=nobody.headers)
        before = await everything(client, nobody)
        for key, kwh, count in ((mine, 0.5, 3), (theirs, 5.0, 2)):
            readings = [meter("M", minute, kwh) for minute in range(count)]
            readings += [vehicle("V", minute, kwh * 0.9) for minute in range(count)]
            readings += [register("R", minute, 100 + minute * kwh) for minute in range(count)]
            answer = await client.post("/v1/ingest", json=readings, headers=key.headers)
            assert answer.json()["accepted"] == 3 * count
            again = await client.post("/v1/ingest", json=readings, headers=key.headers)
            assert again.json()["duplicates"] == 3 * count
            pairing = {"vehicleId": "V", "meterId": "M", "validFrom": at(-1)}
            put = await client.put("/v1/pairings", json=pairing, headers=key.headers)
            assert put.status_code == 201
            setting = {"intervalS": 60 * count}
            assert (await client.put("/v1/meters/M", json=setting, headers=key.headers)).status_code == 201
            assert (await client.put("/v1/defaults/meters", json=setting, headers=key.headers)).status_code == 200
        for key, kwh, count in ((mine, 0.5, 3), (theirs, 5.0, 2)):
            found = await everything(client, key)
            assert [row["meterId"] for row in found["/v1/meters"][1]] == ["M", "R"]
            assert len(found["/v1/meters/M/history"][1]) == count
            assert [row["kwhConsumedAc"] for row in found["/v1/meters/R/history"][1]] == [kwh] * (count - 1) + [0]
            assert found["/v1/meters/M/status"][1]["kwhConsumedAc"] == kwh
            assert found["/v1/meters/M"][1]["intervalS"] == found["/v1/defaults/meters"][1]["intervalS"] == 60 * count
            performance = found["/v1/analytics/performance/V"][1]
            assert performance["totalEnergyConsumedAc"] == pytest.approx(kwh * count)
            assert performance["efficiencyRatio"] == pytest.approx(0.9)
            fleet = found["/v1/analytics/fleet?interval=30m"][1]
            assert fleet["totalEnergyConsumedAc"] == pytest.approx(kwh * count + kwh * (count - 1))
            assert fleet["dataPoints"] == count
            assert fleet["paired"]["pairings"] == 1
            assert len(found["/v1/analytics/activity?since=2026-01-01T00:00:00Z"][1]) == 3 * count
        assert await everything(client, nobody) == before


async def test_a_conflict_is_one_within_a_tenant_alone(cluster: TestCluster) -> None:
    mine, theirs = await new_tenant(cluster, "mine"), await new_tenant(cluster, "theirs")
    async with in_process(cluster) as client:
        await until(client, 200, headers=theirs.headers)
        for key, kwh in ((mine, 1.0), (theirs, 2.0)):
            answer = await client.post("/v1/ingest", json=meter("M", 0, kwh), headers=key.headers)
            assert answer.json()["accepted"] == 1
        conflict = await client.post("/v1/ingest", json=meter("M", 0, 2.0), headers=mine.headers)
        assert conflict.json()["conflicts"] == 1
        known = await client.post("/v1/ingest", json=meter("M", 0, 2.0), headers=theirs.headers)
        assert known.json()["duplicates"] == 1
    env = {"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn}
    words = ("correct", "meter", "M", at(0), "--set", "kwhConsumedAc=9")
    assert "there is no reading of meter M" in (await run_command(*words, env=env)).err
    assert (await run_command(*words, "--tenant", "mine", env=env)).code == 0
    rows = await fetch(
        cluster.shards[cluster.owner("M")], "SELECT tenant_id, kwh_consumed_ac FROM meter_current_status"
    )
    assert sorted(map(tuple, rows)) == [(1, 9.0), (2, 2.0)]


async def test_a_reader_sees_one_tenant_whatever_it_asks(cluster: TestCluster) -> None:
    mine, theirs = await new_tenant(cluster, "mine"), await new_tenant(cluster, "theirs")
    async with in_process(cluster) as client:
        await until(client, 200, headers=theirs.headers)
        for minute in (0, 1):
            for key in (mine, theirs):
                now = {"timestamp": datetime.now(UTC).isoformat()}
                four = [meter("M", minute), vehicle("V", minute), {**meter("M"), **now}, {**vehicle("V"), **now}]
                assert (await client.post("/v1/ingest", json=four, headers=key.headers)).json()["accepted"] == 4
            await tend(cluster)  # the first ones are packed, the second ones late
    found = await records(cluster)
    seen: dict[str, set[int]] = {}
    for name, dsn in cluster.shards.items():
        assert found[name].old_reader_dsn is None
        connection = await asyncpg.connect(found[name].reader_dsn)
        try:
            for root in ROOTS:
                for setting, visible in ((None, set()), ("", set()), ("7", set()), ("1", {1}), ("2", {2})):
                    if setting is not None:
                        await connection.execute("SELECT set_config('voltroute.tenant', $1, false)", setting)
                    rows = {row[0] for row in await connection.fetch(f"SELECT tenant_id FROM {root}")}
                    assert rows <= visible, (root, setting)
                    seen.setdefault(root, set()).update(rows)
                    out = await connection.fetch(f"SELECT tenant_id FROM {root} WHERE tenant_id <> 1 OR true")
                    assert {row[0] for row in out} <= visible
                await connection.execute("RESET voltroute.tenant")
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(f"DELETE FROM {root}")
            leaves = await fetch(dsn, "SELECT leaf_oid::regclass::text FROM leaf UNION SELECT name FROM bucket_table")
            for (leaf,) in leaves:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.fetch(f"SELECT * FROM {leaf}")
            with pytest.raises(asyncpg.PostgresError):
                await connection.execute("SET row_security = off; SELECT * FROM meter_current_status")
            statistics = "SELECT count(*) FROM pg_stats WHERE tablename LIKE '%telemetry%'"
            assert await connection.fetchval(statistics) == 0
        finally:
            await connection.close()
    assert seen == {root: {1, 2} for root in ROOTS}


async def test_a_session_of_another_tenant_is_an_error_not_an_answer(cluster: TestCluster) -> None:
    record = (await records(cluster))["s1"]
    pool = ShardPool("s1", record.reader_dsn, PoolLimits(min_size=1, max_size=1), PoolOptions())
    try:
        async with pool.connection(deadline_in(5), tenant=3) as connection:
            assert (await read.status(Reader(connection, 3), METER, 0, "M")).rows == []
            with pytest.raises(ForeignTenant, match="session of tenant 3 was asked for tenant 4"):
                await read.status(Reader(connection, 4), METER, 0, "M")
        async with pool.connection(deadline_in(5), tenant=4) as connection:
            assert (await read.status(Reader(connection, 4), METER, 0, "M")).rows == []
    finally:
        await pool.close()


async def test_a_pinned_tenant_stays_where_it_may_be(cluster: TestCluster) -> None:
    env = {"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn}
    done = await run_command("tenant", "create", "big", "--pin", "s2", "--pin", "s3", "--buckets", "5", env=env)
    assert done.code == 0, done.err
    assert "its buckets: 8-12 on s2, s3" in done.out
    second = await run_command("tenant", "create", "other", "--pin", "s3", "--buckets", "2", "--json", env=env)
    assert second.json["buckets"] == [13, 14]
    key = await new_key(cluster, "big")
    async with in_process(cluster) as client, catalog_of(cluster) as catalog:
        await until(client, 200, headers=key.headers)
        many = [meter(f"M-{number}") for number in range(60)]
        assert (await client.post("/v1/ingest", json=many, headers=key.headers)).json()["accepted"] == 60
        held = {
            name: await fetch(dsn, "SELECT DISTINCT bucket FROM meter_current_status ORDER BY 1")
            for name, dsn in cluster.shards.items()
        }
        assert [row[0] for row in held["s1"]] == []
        assert sorted(row[0] for name in ("s2", "s3") for row in held[name]) == [8, 9, 10, 11, 12]
        fleet = (await client.get("/v1/analytics/fleet", params=WINDOW, headers=key.headers)).json()
        assert (fleet["meters"], fleet["shards"]["total"]) == (60, 2)
        assert (await run_command("check", env=env)).code == 0
        with pytest.raises(Refused, match="pinned to s3, and none of them may be given buckets"):
            await drain(catalog, "s3", Pace())
        moves = (await plan_now(catalog, "bytes", 0.0, {"s1": 50.0})).plan.moves
        assert moves
        assert all(move.bucket < 8 for move in moves if move.target == "s1")
        with pytest.raises(Refused, match="to which tenant big, other is pinned"):
            await catalog_remove(catalog)


async def catalog_remove(catalog: Any) -> None:
    """As if everything had been moved off s3, but its tenants' pins."""
    async with catalog.membership(deadline_in(5)) as connection:
        await connection.execute(
            "UPDATE bucket_map SET shard_id = (SELECT shard_id FROM shard WHERE name = 's2') "
            "WHERE shard_id = (SELECT shard_id FROM shard WHERE name = 's3')"
        )
    await remove_shard(catalog, "s3")


async def test_a_pinned_tenant_whose_making_was_interrupted_is_finished(cluster: TestCluster) -> None:
    async with catalog_of(cluster) as catalog:
        async with catalog.membership(deadline_in(5)) as connection:
            await connection.execute(
                "INSERT INTO tenant (name, first_bucket, bucket_count, shards, ready) "
                "VALUES ('big', 8, 4, '{s1}', false)"
            )
        with pytest.raises(Refused, match="are not made yet: repeat"):
            await new_key(cluster, "big")
        for pins, buckets, rate in ((("s2",), 4, None), (("s1",), 8, None), (("s1",), 4, 5.0)):
            with pytest.raises(Refused, match="was begun with --pin s1 --buckets 4: repeat it like that"):
                await tenants.create_tenant(catalog, "big", rate, pins, buckets, None)
        # Its buckets come before those of the next one, and have no owner yet: a map with a gap could not be used.
        with pytest.raises(Refused, match="tenant big is being made"):
            await tenants.create_tenant(catalog, "next", None, ("s2",), 4, None)
        with pytest.raises(asyncpg.UniqueViolationError, match="tenant_unready"):
            await fetch(
                cluster.catalog_dsn,
                "INSERT INTO tenant (name, first_bucket, bucket_count, shards, ready) "
                "VALUES ('n', 12, 4, '{s1}', false)",
            )
        assert (await catalog.shard_map(deadline_in(5)) or ShardMap(0, ())).bucket_count == 8
        made = await tenants.create_tenant(catalog, "big", None, ("s1",), 4, None)
        assert made.ready
        shard_map = await catalog.shard_map(deadline_in(5))
        assert shard_map is not None
        assert (shard_map.owners[8:], shard_map.shared.count) == (("s1",) * 4, 8)
        body = b'{"meterId":"M","kwhConsumedAc":1,"voltage":1,"timestamp":"2026-05-01T00:00:00Z"}'
        decoded = decode(body, METER_SHAPE, ndjson=False, readings_max=1)
        bounds = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
        ((shard, _),) = route(decoded, shard_map, made.tenant_id, *bounds)[0]
        assert shard == "s1"


async def test_what_would_break_the_map_is_refused(cluster: TestCluster) -> None:
    async with catalog_of(cluster) as catalog:
        made = await tenants.create_tenant(catalog, "big", None, ("s1",), 4, None)
        move = [PlannedMove(9, "s1", "s2")]
        with pytest.raises(Refused, match="bucket 9 is pinned to s1, not to s2"):
            await start(catalog, move, "by hand", Pace())
        with pytest.raises(Refused, match="one of gone is not a shard any more"):
            async with catalog.membership(deadline_in(5)) as connection:
                await publish(connection, replace(made, pinned=BucketRange(12, 2)), ["gone", "gone"])
        await fetch(cluster.catalog_dsn, "UPDATE shard SET state = 'draining' WHERE name = 's2'")
        with pytest.raises(Refused, match="s2 is draining"):
            await tenants.create_tenant(catalog, "other", None, ("s2",), 4, None)
        # As a catalog may be after a restore: whoever asks is told, and routers go on with the map that they have.
        await fetch(cluster.catalog_dsn, "DELETE FROM bucket_map WHERE bucket = 9")
        with pytest.raises(NoMap, match="cannot be used: no shard owns the buckets"):
            await catalog.shard_map(deadline_in(5))
        await fetch(cluster.catalog_dsn, "DELETE FROM bucket_map")
        with pytest.raises(Refused, match="the cluster's own buckets are not given out yet"):
            await tenants.create_tenant(catalog, "third", None, ("s1",), 4, None)


async def test_a_tenant_that_sends_much_makes_others_wait_for_one_of_its_requests(cluster: TestCluster) -> None:
    """Not for all of them: tenants take turns at the catalog, and at the shards."""
    many, one = await new_tenant(cluster, "many"), await new_tenant(cluster, "one")
    for locked, path, server in (
        ("pairing", "/v1/pairings", cluster.catalog_dsn),
        ("meter_current_status", "/v1/meters", cluster.shards["s1"]),
    ):
        order: list[str] = []

        async def ask(client: httpx2.AsyncClient, path: str, key: Made, name: str, order: list[str]) -> None:
            assert (await client.get(path, headers=key.headers)).status_code == 200
            order.append(name)

        async with in_process(cluster, runner=False, pool_max=4) as client:
            connection = await asyncpg.connect(server)
            try:
                cluster_of = client.app.state.router.cluster  # type: ignore[attr-defined]
                pool = cluster_of.catalog.pool if locked == "pairing" else cluster_of.shards["s1"].reader
                async with asyncio.TaskGroup() as asking, connection.transaction():
                    await connection.execute(f"LOCK TABLE {locked}")
                    for number in range(30):
                        asking.create_task(ask(client, path, many, f"many {number}", order))
                    async with asyncio.timeout(10):
                        while sum(map(len, pool._turns._waiting.values())) < 20:
                            await asyncio.sleep(0.01)
                        asking.create_task(ask(client, path, one, "one", order))
                        while len(pool._turns._waiting) < 2:
                            await asyncio.sleep(0.01)
            finally:
                await connection.close()
        assert len(order) == 31
        assert order.index("one") < 12, order


async def test_overlapping_ranges_are_refused_by_the_catalog_too(cluster: TestCluster) -> None:
    insert = "INSERT INTO tenant (name, first_bucket, bucket_count, shards) VALUES ($1, $2, 4, '{s1}')"
    await fetch(cluster.catalog_dsn, insert, "one", 8)
    with pytest.raises(asyncpg.ExclusionViolationError, match="own_buckets"):
        await fetch(cluster.catalog_dsn, insert, "two", 11)
