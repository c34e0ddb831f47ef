"""Who may hold what: PostgreSQL itself refuses foreign buckets, and writers can do no more than write."""

import asyncio

import asyncpg
import mmh3
import pytest

from shards.catalog.database import Catalog
from shards.clock import deadline_in
from tests.support.ledger import execute, fetch, stored
from tests.support.maps import give, owners
from tests.support.readings import at, ingest, meter, vehicle
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster

RAW = (
    "INSERT INTO meter_telemetry_history (timestamp, kwh_consumed_ac, voltage, bucket, meter_id)"
    " VALUES ('2026-05-01T00:00Z', 1, 230, $1, 'RAW')"
)


async def test_every_row_is_where_hash_and_map_say(cluster: TestCluster, client: object) -> None:
    readings = [meter(f"M-{n}", n) for n in range(300)] + [vehicle(f"V-{n}", n) for n in range(300)]
    await ingest(client, readings)  # type: ignore[arg-type]
    owner = await owners(cluster)
    rows = await stored(cluster.shards)
    assert len(rows) == 600
    assert len({shard for shard, _, _ in rows}) == 4
    for shard, device, _ in rows:
        assert shard == owner[mmh3.hash(device, 0, signed=False) % cluster.buckets]
    for name, dsn in cluster.shards.items():
        for table in ("meter_telemetry_history", "vehicle_current_status"):
            buckets = {r["bucket"] for r in await fetch(dsn, f"SELECT DISTINCT bucket FROM {table}")}
            assert all(owner[bucket] == name for bucket in buckets)


async def test_postgresql_refuses_a_foreign_bucket(cluster: TestCluster) -> None:
    owner = await owners(cluster)
    for name, dsn in cluster.shards.items():
        foreign = next(bucket for bucket, who in enumerate(owner) if who != name)
        with pytest.raises(asyncpg.CheckViolationError, match="no partition of relation"):
            await execute(dsn, RAW, foreign)


async def test_the_writer_only_inserts(cluster: TestCluster) -> None:
    catalog = Catalog(cluster.catalog_dsn)
    shard = (await catalog.shards(deadline_in(5)))[0]
    await catalog.close()
    forbidden = [
        "UPDATE meter_telemetry_history SET voltage = 0",
        "DELETE FROM meter_telemetry_history",
        "TRUNCATE meter_telemetry_history",
        "DELETE FROM meter_current_status",
        "CREATE TABLE mine (a int)",
        "DROP TABLE meter_telemetry_history",
        "SELECT ingested_at FROM meter_telemetry_history",
        "SELECT attach_bucket(1::smallint, '2026-01-01', '{}')",
        "UPDATE owned_bucket SET bucket = 9",
        (
            "INSERT INTO meter_telemetry_history (timestamp, ingested_at, kwh_consumed_ac, voltage, bucket, meter_id)"
            " VALUES (now(), now(), 1, 1, 0, 'X')"
        ),
    ]
    for statement in forbidden:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await execute(shard.writer_dsn, statement)
    for statement in (*forbidden, RAW.replace("$1", "0"), "SELECT ensure_leaves(0::smallint, '{2026-11-01}')"):
        if not statement.startswith("SELECT ingested_at"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await execute(shard.reader_dsn, statement)
    with pytest.raises(asyncpg.DatetimeFieldOverflowError):
        await execute(shard.writer_dsn, "SELECT ensure_leaves(0::smallint, '{2999-01-01}')")


async def test_no_login_without_a_password(cluster: TestCluster) -> None:
    for dsn in cluster.shards.values():
        user_free = dsn.replace(dsn.split("//")[1].split("@")[0], "postgres:wrong")
        with pytest.raises(asyncpg.InvalidPasswordError):
            await execute(user_free, "SELECT 1")


async def test_a_stale_router_is_refused_and_routes_anew(servers: list[str]) -> None:
    """Even a router that never polls finds the new owner: the shard refuses, and it asks the catalog."""
    async with new_cluster(servers, shards=3, buckets=8) as cluster, in_process(cluster, map_poll_s=3600) as client:
        device = cluster.devices_of("s1", 1)[0]
        bucket = mmh3.hash(device, 0, signed=False) % 8
        await ingest(client, meter(device, 1))
        stays = [reading for name in ("s2", "s3") for reading in map(meter, cluster.devices_of(name, 20, "STAY"))]
        router = client.app.state.router  # type: ignore[attr-defined]
        before = router.cluster.map.epoch
        router.cluster.catalog.listen = None  # a router that hears no NOTIFY
        await give(cluster, bucket, "s1", "s2")
        answer = await ingest(client, [meter(device, 2), *stays])
        assert (answer["accepted"], answer["rejected"]) == (41, 0)
        assert router.cluster.map.epoch > before
        assert [s for s, d, _ in await stored(cluster.shards) if d == device] == ["s2"]
        status = await client.get(f"/v1/meters/{device}/status")
        assert status.json()["lastUpdated"] == at(2).replace("+00:00", "Z")


async def test_a_stale_fan_out_is_never_silently_short(servers: list[str]) -> None:
    async with new_cluster(servers, shards=3, buckets=8) as cluster, in_process(cluster, map_poll_s=3600) as client:
        await ingest(client, [meter(f"M-{n}", 1, kwh=1) for n in range(100)])
        device = cluster.devices_of("s1", 1)[0]
        bucket = mmh3.hash(device, 0, signed=False) % 8
        await give(cluster, bucket, "s1", "s3")
        kept = sum(1 for n in range(100) if mmh3.hash(f"M-{n}", 0, signed=False) % 8 != bucket)
        params = {"from": at(0), "to": at(2)}
        answer = (await client.get("/v1/analytics/fleet", params=params)).json()
        assert (answer["totalEnergyConsumedAc"], answer["isPartial"]) == (kept, False)


async def test_a_map_that_no_shard_honours_is_an_error_not_a_sum(servers: list[str]) -> None:
    async with new_cluster(servers, shards=3, buckets=8) as cluster, in_process(cluster) as client:
        device = cluster.devices_of("s1", 1)[0]
        bucket = mmh3.hash(device, 0, signed=False) % 8
        await execute(cluster.shards["s1"], "DELETE FROM owned_bucket WHERE bucket = $1", bucket)
        response = await client.get("/v1/analytics/fleet")
        assert response.status_code == 503
        assert response.json()["shards"] == {"total": 3, "ok": 2, "missing": ["s1"]}
        partial = (await client.get("/v1/analytics/fleet?partial=allow")).json()
        assert (partial["isPartial"], partial["shards"]["missing"]) == (True, ["s1"])
        await execute(cluster.shards["s1"], f"DROP TABLE meter_telemetry_history_b{bucket:04d} CASCADE")
        neighbour = next(d for d in cluster.devices_of("s1", 50) if mmh3.hash(d, 0, signed=False) % 8 != bucket)
        refused, stored_beside = await asyncio.gather(
            client.post("/v1/ingest", json=meter(device, 1), timeout=20),
            client.post("/v1/ingest", json=meter(neighbour, 1), timeout=20),
        )
        assert (refused.status_code, stored_beside.status_code) == (503, 200)
        assert int(refused.headers["retry-after"]) >= 1


@pytest.mark.parametrize("back", [0, 3])
async def test_a_router_follows_a_catalog_that_was_restored(servers: list[str], back: int) -> None:
    """Its epochs are counted again: the map of a restored catalog is another one by its contents, not by a number."""
    async with new_cluster(servers, shards=2, buckets=4) as cluster, in_process(cluster, runner=False) as client:
        device = cluster.devices_of("s1", 1)[0]
        bucket = mmh3.hash(device, 0, signed=False) % 4
        await ingest(client, meter(device))
        known = (await client.get("/readyz")).json()["epoch"]
        await execute(cluster.catalog_dsn, "ALTER TABLE bucket_map DISABLE TRIGGER bucket_map_epoch")
        await execute(cluster.catalog_dsn, "UPDATE cluster SET epoch = $1", known - back)
        await give(cluster, bucket, "s1", "s2")
        await ingest(client, meter(device, 1))
        assert (await client.get("/readyz")).json()["epoch"] == known - back
        assert [shard for shard, _, _ in await stored(cluster.shards)] == ["s2"]
