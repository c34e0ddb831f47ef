"""What is wrong with one bucket, one login or one connection costs nobody else; and everybody can see the reason."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import asyncpg
import httpx2
import pytest
import pytest_asyncio
import structlog

from shards.buckets import bucket_of
from shards.clock import deadline_in
from shards.errors import Cause, ShardUnavailable
from shards.operations import doctor
from shards.postgres.options import PoolLimits, PoolOptions
from shards.postgres.pools import ShardPool
from shards.storage.partitions import month_of
from tests.integration.test_identity import records
from tests.support.ledger import execute, stored
from tests.support.readings import ingest, meter, vehicle
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster


@pytest_asyncio.fixture
async def own(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=2, buckets=8) as made:
        yield made


def now_of(device: str) -> dict[str, Any]:
    return {**meter(device), "timestamp": datetime.now(UTC).isoformat()}


def split(cluster: TestCluster, bucket: int) -> tuple[list[str], list[str]]:
    """Devices of s1 in a bucket, and in its other buckets."""
    devices = cluster.devices_of("s1", 40)
    mine = [device for device in devices if bucket_of(device, 8) == bucket]
    return mine, [device for device in devices if device not in mine]


async def post(client: httpx2.AsyncClient, readings: Any) -> httpx2.Response:
    return await client.post("/v1/ingest/meter", json=readings)


async def test_a_leaf_detached_by_hand_costs_its_bucket_only(own: TestCluster) -> None:
    mine, others = split(own, 0)
    leaf = f"meter_telemetry_history_b0000_{month_of(datetime.now(UTC)):%Y_%m}"
    await execute(own.shards["s1"], f"ALTER TABLE meter_telemetry_history_b0000 DETACH PARTITION {leaf}")
    leaf_of_vehicles = leaf.replace("meter", "vehicle")
    await execute(own.shards["s1"], f"ALTER TABLE vehicle_telemetry_history_b0000 DETACH PARTITION {leaf_of_vehicles}")
    with structlog.testing.capture_logs() as lines:
        async with in_process(own, runner=False) as client:
            for _ in range(3):
                bad = [now_of(mine[0]), {**vehicle(mine[0]), "timestamp": now_of(mine[0])["timestamp"]}]
                answers = await asyncio.gather(
                    *(post(client, now_of(device)) for device in others), client.post("/v1/ingest", json=bad)
                )
                assert [answer.status_code for answer in answers] == [200] * len(others) + [503]
            ready = (await client.get("/readyz")).json()["shards"]
    assert ready["s1"] == {
        "breaker": "closed",
        "writes": True,
        "reads": True,
    }  # a bucket that has no place says nothing of the shard
    assert [line for line in lines if line["event"] == "shard_unavailable"] == []
    async with in_process(own, runner=False) as client:
        mixed = await post(client, [now_of(device) for device in (*mine, *others)])
        assert mixed.status_code == 503
        assert (mixed.json()["accepted"], mixed.json()["unavailable"]) == (len(others), len(mine))
        assert int(mixed.headers["retry-after"]) >= 1
        found = {each.name: each for each in await doctor.examine(own.catalog_dsn)}
        assert not found["s1 partitions"].ok
        attach = (
            f"ALTER TABLE meter_telemetry_history_b0000 ATTACH PARTITION {leaf} FOR VALUES FROM ('{{}}') TO ('{{}}')"
        )
        month = month_of(datetime.now(UTC))
        following = datetime(month.year + month.month // 12, month.month % 12 + 1, 1, tzinfo=UTC)
        await execute(own.shards["s1"], attach.format(month, following))
        async with asyncio.timeout(30):
            while (await post(client, now_of(mine[0]))).status_code != 200:
                await asyncio.sleep(0.05)


async def test_a_locked_leaf_costs_its_bucket_only(own: TestCluster) -> None:
    mine, others = split(own, 2)
    locker = await asyncpg.connect(own.shards["s1"])
    async with in_process(own, runner=False) as client:
        async with locker.transaction():
            await locker.execute("LOCK TABLE meter_telemetry_history_b0002 IN ACCESS EXCLUSIVE MODE")
            refused = asyncio.create_task(post(client, now_of(mine[0])))
            for _ in range(3):
                answers = await asyncio.gather(*(post(client, now_of(device)) for device in others))
                assert {answer.status_code for answer in answers} == {200}
            assert (await refused).status_code == 503
        async with asyncio.timeout(30):
            while (await post(client, now_of(mine[0]))).status_code != 200:
                await asyncio.sleep(0.05)
    await locker.close()
    assert {device for _, device, _ in await stored(own.shards)} == {*others, mine[0]}


WAITING = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'voltroute writer' AND wait_event_type = 'Lock'
"""


async def test_behind_a_fence_that_takes_long_a_reading_waits(own: TestCluster) -> None:
    """On a machine that is busy a fence may take longer than a writer waits for a lock: that is no refusal."""
    mine, others = split(own, 2)
    mover = await asyncpg.connect(own.shards["s1"], server_settings={"application_name": "voltroute mover 99"})
    watcher = await asyncpg.connect(own.shards["s1"])
    async with in_process(own, runner=False) as client:
        async with mover.transaction():
            await mover.execute("LOCK TABLE meter_telemetry_history_b0002 IN SHARE ROW EXCLUSIVE MODE")
            posted = asyncio.create_task(post(client, now_of(mine[0])))
            async with asyncio.timeout(30):
                for wanted in (1, 0, 1):  # it waits, gives that up, and waits again
                    while await watcher.fetchval(WAITING) != wanted:
                        assert not posted.done(), (await posted).text
                        await asyncio.sleep(0.01)
            assert (await post(client, now_of(others[0]))).status_code == 200
        assert (await posted).status_code == 200
    await mover.close()
    await watcher.close()


async def test_a_pool_works_with_the_connections_that_there_are(own: TestCluster) -> None:
    writer = (await records(own))["s1"].writer_dsn
    role = writer.partition("://")[2].partition(":")[0]
    await execute(own.shards["s1"], f"ALTER ROLE {role} CONNECTION LIMIT 2")
    try:
        async with in_process(own, runner=False, pool_min=5, pool_max=20, batches_in_flight_max=8) as client:
            devices = own.devices_of("s1", 30)
            answers = await asyncio.gather(*(post(client, now_of(device)) for device in devices))
            assert {answer.status_code for answer in answers} == {200}
    finally:
        await execute(own.shards["s1"], f"ALTER ROLE {role} CONNECTION LIMIT -1")


async def test_the_reason_is_in_the_log_the_metrics_and_the_doctor_and_not_in_the_answer(own: TestCluster) -> None:
    writer = (await records(own))["s1"].writer_dsn
    role = writer.partition("://")[2].partition(":")[0]
    device = own.devices_of("s1", 1)[0]
    await execute(own.shards["s1"], f"ALTER ROLE {role} NOLOGIN")
    try:
        with structlog.testing.capture_logs() as lines:
            async with in_process(own, runner=False, pool_min=1) as client:
                answers = [await post(client, now_of(device)) for _ in range(4)]
                ready = (await client.get("/readyz")).json()
                metrics = (await client.get("/metrics")).text
                told = [line for line in lines if line["event"] == "shard_unavailable"]
        assert {answer.status_code for answer in answers} == {503}
        for answer in answers:
            assert role not in answer.text
            assert "not permitted to log in" not in answer.text
        assert [(line["shard"], line["cause"]) for line in told] == [("s1", "login_refused")]
        assert "not permitted to log in" in told[0]["detail"]
        assert (ready["shards"]["s1"]["writes"], ready["shards"]["s2"]["writes"]) == (False, True)
        unavailable = 'voltroute_shard_unavailable{cause="login_refused",login="writer",shard="s1"} 1.0'
        assert unavailable in metrics
        found = {each.name: each for each in await doctor.examine(own.catalog_dsn)}
        assert not found["s1 writer"].ok
        assert "voltroute init" in found["s1 writer"].remedy
    finally:
        await execute(own.shards["s1"], f"ALTER ROLE {role} LOGIN")


SLEEPY = """
CREATE FUNCTION sleepy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$;
CREATE TRIGGER sleepy BEFORE INSERT ON meter_telemetry_history FOR EACH STATEMENT EXECUTE FUNCTION sleepy();
"""


async def slow_storage(dsn: str, _role: str) -> None:
    await execute(dsn, SLEEPY)


async def no_right(dsn: str, role: str) -> None:
    await execute(dsn, f"REVOKE INSERT ON meter_current_status FROM {role}")


@pytest.mark.parametrize(("break_it", "cause"), [(slow_storage, "cancelled"), (no_right, "fault")])
async def test_writes_that_a_healthy_server_refuses_are_told_as_well(
    own: TestCluster, break_it: Callable[[str, str], Awaitable[None]], cause: str
) -> None:
    role = (await records(own))["s1"].writer_dsn.partition("://")[2].partition(":")[0]
    device = own.devices_of("s1", 1)[0]
    await break_it(own.shards["s1"], role)
    with structlog.testing.capture_logs() as lines:
        async with in_process(own, runner=False, pool_min=1, ingest_timeout_s=1) as client:
            figure = f'voltroute_shard_unavailable{{cause="{cause}",login="writer",shard="s1"}} 1.0'
            # On a busy machine the router may give up a moment before the server says why; then it is silent, once.
            async with asyncio.timeout(30):
                while figure not in (await client.get("/metrics")).text:
                    assert (await post(client, now_of(device))).status_code == 503
            ready = (await client.get("/readyz")).json()
    assert (ready["shards"]["s1"]["writes"], ready["shards"]["s2"]["writes"]) == (False, True)
    told = [line for line in lines if line["event"] == "shard_unavailable"]
    assert {(line["shard"], line["login"]) for line in told} == {("s1", "voltroute writer")}
    assert told[-1]["cause"] == cause


async def test_a_lock_on_a_root_is_told_as_the_shards(own: TestCluster) -> None:
    device = own.devices_of("s1", 1)[0]
    locker = await asyncpg.connect(own.shards["s1"])
    async with in_process(own, runner=False) as client:
        async with locker.transaction():
            await locker.execute("LOCK TABLE ONLY meter_telemetry_history IN ACCESS EXCLUSIVE MODE")
            assert (await post(client, now_of(device))).status_code == 503
            assert not (await client.get("/readyz")).json()["shards"]["s1"]["writes"]
        assert (await post(client, now_of(device))).status_code == 200
        assert (await client.get("/readyz")).json()["shards"]["s1"]["writes"]
    await locker.close()


async def test_readiness_ends_when_no_shard_takes_writes(own: TestCluster) -> None:
    roles = [record.writer_dsn.partition("://")[2].partition(":")[0] for record in (await records(own)).values()]
    assert len(set(roles)) == 1
    for dsn in own.shards.values():
        await execute(dsn, f"ALTER ROLE {roles[0]} NOLOGIN")
    try:
        async with in_process(own, runner=False) as client:
            devices = [own.devices_of(name, 1)[0] for name in own.shards]
            assert (await client.get("/readyz")).status_code == 200
            assert (await post(client, [now_of(device) for device in devices])).status_code == 503
            assert (await client.get("/readyz")).status_code == 503
    finally:
        for dsn in own.shards.values():
            await execute(dsn, f"ALTER ROLE {roles[0]} LOGIN")
    async with in_process(own, runner=False) as client:
        assert (await ingest(client, [now_of(device) for device in devices]))["accepted"] == 2


async def test_a_use_that_outlives_its_deadline_ends_and_counts() -> None:
    """A server that accepts and says nothing: the second unanswered call opens the breaker."""

    over = asyncio.Event()

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    limits = PoolLimits(min_size=1, connect_timeout_s=0.2, acquire_timeout_s=0.2)
    pool = ShardPool("s", f"postgresql://u:p@127.0.0.1:{port}/d", limits, PoolOptions())
    causes = []
    for _ in range(3):
        try:
            async with pool.connection(deadline_in(0.2)):
                raise AssertionError
        except ShardUnavailable as error:
            causes.append(error.cause)
    assert causes == [Cause.SILENT, Cause.SILENT, Cause.BREAKER_OPEN]
    await pool.close()
    over.set()
    server.close()
    await server.wait_closed()
