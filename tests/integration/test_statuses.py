"""Statuses kept in a real Valkey and a real Redis: read through it, never older than acknowledged, and without it."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.statuses.lease import Away
from router.statuses.store import RedisStore
from shards.buckets import bucket_of
from shards.errors import InvalidArgument
from tests.conftest import LoopRunner
from tests.support.leases import Wired, World
from tests.support.ledger import execute, wipe
from tests.support.readings import ingest, meter, register, vehicle
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.stores import STORES, StoreServer, store_server
from tests.support.tenants import new_tenant

PATH = "/v1/vehicles/V/status"


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=STORES)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[StoreServer]:
    async with store_server(request.param) as made:
        yield made


@pytest.fixture(autouse=True)
async def _clean(cluster: TestCluster, store: StoreServer) -> None:
    await wipe(cluster.shards, cluster.catalog_dsn)
    async with store.client() as client:
        await client.flushall()


@asynccontextmanager
async def keeping(cluster: TestCluster, url: str, count: int = 1, **options: Any) -> AsyncIterator[Any]:
    """Routers that keep statuses there."""
    async with AsyncExitStack() as stack:
        options = {"runner": False, "redis_url": url, "redis_timeout_s": 5, **options}
        made = [await stack.enter_async_context(in_process(cluster, **options)) for _ in range(count)]
        yield made[0] if count == 1 else made


async def ask(client: httpx2.AsyncClient, path: str = PATH) -> tuple[str, dict[str, Any]]:
    """Where the answer came from, and what it says."""
    answer = await client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.headers.get("x-cache", ""), dict(answer.json())


async def until(client: httpx2.AsyncClient, name: str, value: float) -> None:
    """A metric says so."""
    async with asyncio.timeout(30):
        while f"\n{name} {value}" not in (await client.get("/metrics")).text:
            await asyncio.sleep(0.02)


async def test_a_status_is_kept_until_it_is_written(
    cluster: TestCluster, client: httpx2.AsyncClient, store: StoreServer
) -> None:
    async with keeping(cluster, store.url, 2) as (first, second):
        await ingest(first, [vehicle("V", 5, soc=55), meter("M", 5), register("R", 5)])
        for path in (PATH, "/v1/meters/M/status", "/v1/meters/R/status"):
            expected = await ask(client, path)
            assert expected[0] == ""
            assert [await ask(each, path) for each in (first, second)] == [("miss", expected[1]), ("hit", expected[1])]
        answers = [await first.get(PATH), await second.get(PATH)]
        assert answers[0].headers["x-as-of"] == answers[1].headers["x-as-of"]  # of when it was read
        assert answers[0].headers["content-type"] == "application/json"

        await ingest(second, [vehicle("V", 9, soc=59), meter("M", 7, voltage=231)])
        await ingest(first, [vehicle("V", 7, soc=57), register("M", 8)])
        for path in (PATH, "/v1/meters/M/status"):
            expected = await ask(client, path)
            assert [await ask(each, path) for each in (first, second)] == [("miss", expected[1]), ("hit", expected[1])]
        assert (await ask(first))[1]["soc"] == 59.0
        assert (await ask(first, "/v1/meters/M/status"))[1]["valueTimes"]


async def test_who_is_unknown_is_not_kept(cluster: TestCluster, store: StoreServer) -> None:
    async with keeping(cluster, store.url) as client:
        for _ in range(2):
            answer = await client.get(PATH)
            assert (answer.status_code, "x-cache" in answer.headers) == (404, False)
        await ingest(client, vehicle("V", 5))
        assert [(await ask(client))[0] for _ in range(2)] == ["miss", "hit"]


async def test_a_repeat_shows_what_nobody_acknowledged(
    cluster: TestCluster, client: httpx2.AsyncClient, store: StoreServer
) -> None:
    """Stored by a router that ended between its COMMIT and its answer; the device sends it again to another one."""
    async with keeping(cluster, store.url) as other:
        await ingest(other, vehicle("V", 5, soc=55))
        await ask(other)
        await ingest(client, vehicle("V", 9, soc=59))  # this one does not know of the store
        assert (await ask(other))[1]["soc"] == 55
        assert (await ingest(other, vehicle("V", 9, soc=59)))["duplicates"] == 1
        assert (await ask(other))[1]["soc"] == 59


async def test_a_fenced_bucket_is_answered_and_not_kept(cluster: TestCluster, store: StoreServer) -> None:
    bucket, dsn = bucket_of("V", cluster.buckets), cluster.shards[cluster.owner("V")]
    async with keeping(cluster, store.url) as client:
        await ingest(client, vehicle("V", 5))
        insert = "INSERT INTO bucket_move (move_id, runner, bucket, role, state, fenced_at) VALUES (1, 1, $1, 'source'"
        try:
            await execute(dsn, f"{insert}, 'fenced', clock_timestamp())", bucket)
            assert [(await ask(client))[0] for _ in range(2)] == ["miss", "miss"]
        finally:
            await execute(dsn, "DELETE FROM bucket_move")
        async with store.client() as looking:
            await looking.flushall()  # the lease
        assert [(await ask(client))[0] for _ in range(2)] == ["miss", "hit"]


async def test_without_it_shards_answer(cluster: TestCluster, store: StoreServer) -> None:
    """Killed: nothing fails. What it has when it is back is in the next test, where it keeps it."""
    name = store.program.rpartition("/")[2].partition("-")[0]
    async with store_server(name) as own, keeping(cluster, own.url) as client:
        await ingest(client, vehicle("V", 5, soc=55))
        assert [(await ask(client))[0] for _ in range(2)] == ["miss", "hit"]
        await own.kill()
        await ingest(client, vehicle("V", 9, soc=59))
        where, status = await ask(client)
        assert (where, status["soc"]) == ("bypass", 59)
        await until(client, "voltroute_status_cache_up", 0.0)
        await until(client, "voltroute_status_cache_owed", 1.0)
        await own.start()
        await until(client, "voltroute_status_cache_owed", 0.0)
        await until(client, "voltroute_status_cache_up", 1.0)
        assert (await ask(client))[1]["soc"] == 59


async def test_a_silent_one_is_left_alone(cluster: TestCluster, store: StoreServer) -> None:
    async with keeping(cluster, store.url, redis_timeout_s=0.1) as client:
        await ingest(client, vehicle("V", 5, soc=55))
        await ask(client)
        store.signal(signal.SIGSTOP)
        try:
            await ingest(client, vehicle("V", 9, soc=59))
            where, status = await ask(client)
            assert (where, status["soc"]) == ("bypass", 59)
        finally:
            store.signal(signal.SIGCONT)
        await until(client, "voltroute_status_cache_owed", 0.0)
        assert (await ask(client))[1]["soc"] == 59
        # What was asked for and not waited for is nobody else's answer.
        await ingest(client, [vehicle(f"V-{number}", number, soc=number) for number in range(20)])
        for _ in range(2):
            told = await asyncio.gather(*(ask(client, f"/v1/vehicles/V-{number}/status") for number in range(20)))
            assert [status["soc"] for _, status in told] == list(range(20))


async def test_a_full_one_keeps_nothing_more(cluster: TestCluster, store: StoreServer) -> None:
    async with keeping(cluster, store.url) as client, store.client() as looking:
        await ingest(client, vehicle("V", 5, soc=55))
        assert [(await ask(client))[0] for _ in range(2)] == ["miss", "hit"]
        await looking.config_set("maxmemory", "1")
        try:
            await ingest(client, vehicle("V", 9, soc=59))
            assert await looking.keys("*") == []  # deleting goes on
            where, status = await ask(client)
            assert (where, status["soc"]) == ("bypass", 59)
            await until(client, "voltroute_status_cache_up", 1.0)
        finally:
            await looking.config_set("maxmemory", "0")
        assert [(await ask(client))[0] for _ in range(2)] == ["miss", "hit"]


async def test_a_copy_that_takes_no_writes_is_no_store(cluster: TestCluster, store: StoreServer) -> None:
    """What it shows could never be deleted by us: it is not believed after a write."""
    async with keeping(cluster, store.url) as client, store.client() as looking:
        await ingest(client, vehicle("V", 5, soc=55))
        assert [(await ask(client))[0] for _ in range(2)] == ["miss", "hit"]
        await looking.config_set("replica-read-only", "yes")
        await looking.replicaof("127.0.0.1", "1")
        try:
            await ingest(client, vehicle("V", 9, soc=59))
            where, status = await ask(client)
            assert (where, status["soc"]) == ("bypass", 59)
            await until(client, "voltroute_status_cache_up", 0.0)  # somebody has to hear of it
        finally:
            await looking.replicaof("NO", "ONE")
        await until(client, "voltroute_status_cache_owed", 0.0)
        await until(client, "voltroute_status_cache_up", 1.0)
        assert (await ask(client))[1]["soc"] == 59


async def test_tenants_do_not_see_each_other(servers: list[str], store: StoreServer) -> None:
    async with new_cluster(servers, shards=2) as cluster:
        keys = [await new_tenant(cluster, name) for name in ("one", "two")]
        async with keeping(cluster, store.url, insecure=True) as client:
            async with asyncio.timeout(30):
                while (await client.get("/v1/vehicles", headers=keys[1].headers)).status_code != 200:
                    await asyncio.sleep(0.05)
            for soc, key in zip((51, 52), keys, strict=True):
                await ingest(client, vehicle("V", 5, soc=soc), headers=key.headers)
            for where in ("miss", "hit"):
                for soc, key in zip((51, 52), keys, strict=True):
                    answer = await client.get(PATH, headers=key.headers)
                    assert (answer.headers["x-cache"], answer.json()["soc"]) == (where, soc)


async def test_readers_and_writers_at_once(cluster: TestCluster, store: StoreServer) -> None:
    """Two routers, and a store that forgets: nobody is shown less than was acknowledged before he asked."""
    chance = random.Random(7)
    acknowledged = dict.fromkeys(("V-0", "V-1", "V-2"), -1)
    where: list[str] = []
    async with keeping(cluster, store.url, 2) as routers, store.client() as looking:

        async def write(device: str) -> None:
            for minute in range(60):
                await ingest(chance.choice(routers), vehicle(device, minute))
                acknowledged[device] = minute
            acknowledged.pop(device)

        async def read() -> None:
            while acknowledged:
                device = chance.choice(list(acknowledged))
                floor = acknowledged[device]
                if floor >= 0:
                    found, status = await ask(chance.choice(routers), f"/v1/vehicles/{device}/status")
                    where.append(found)
                    assert status["lastUpdated"] >= f"2026-05-01T00:{floor:02}:00Z"
                if chance.random() < 0.05:
                    await looking.flushall()
                await asyncio.sleep(0)

        await asyncio.gather(*(write(device) for device in list(acknowledged)), *(read() for _ in range(6)))
    assert set(where) == {"hit", "miss"}


@given(
    st.lists(
        st.tuples(st.sampled_from(("take", "fill", "forget")), st.sampled_from("ab"), st.sampled_from((b"?1", b"?2"))),
        max_size=20,
    )
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_model_is_what_servers_do(
    event_loop_runner: LoopRunner, store: StoreServer, steps: list[tuple[str, str, bytes]]
) -> None:
    async def compare() -> None:
        wired, real = Wired(World(random.Random(1), has_losses=False)), RedisStore(store.url, 5, 100, lambda _: None)
        try:
            await real.forget(["a", "b"])
            for what, key, lease in steps:
                if what == "take":
                    assert await wired.take(key, lease) == await real.take(key, lease)
                elif what == "fill":
                    for each in (wired, real):
                        await each.fill(key, lease, b"=" + lease)
                else:
                    for each in (wired, real):
                        await each.forget([key])
            async with store.client() as looking:
                assert {key.decode(): await looking.get(key) for key in await looking.keys("*")} == {
                    key: value for key, (value, _) in wired.world.kept.items()
                }
        finally:
            await real.close()

    event_loop_runner.run(compare())


async def test_values_and_leases_end(store: StoreServer) -> None:
    real = RedisStore(store.url, 5, 7, lambda _: None)
    try:
        assert await real.take("a", b"?1") is None
        async with store.client() as looking:
            assert 4_000 < await looking.pttl("a") <= 5_000
            await looking.pexpire("a", 2_000)  # as if 3 s had passed
            await real.fill("a", b"?1", b"=1")
            assert 3_000 < await looking.pttl("a") <= 4_000
            await looking.pexpire("a", 1)
        async with asyncio.timeout(10):
            while await real.take("a", b"?2") is not None:
                await asyncio.sleep(0.01)
    finally:
        await real.close()


async def test_secrets_are_not_logged(cluster: TestCluster, capfd: pytest.CaptureFixture[str]) -> None:
    async with store_server("valkey", "--requirepass", "right") as own:
        url = own.url.replace("redis://", "redis://:hunter2@")
        async with keeping(cluster, url) as client:
            await ingest(client, vehicle("V", 5))
            assert (await ask(client))[0] == "bypass"
    told = "".join(capfd.readouterr())
    assert "hunter2" not in told
    assert "redis_unavailable" in told


@pytest.mark.parametrize(
    "url",
    [
        "http://somewhere",
        "redis://:secret@h:notaport/0",
        "redis://h/0?foo=secret",
        "redis://h/0?retry=3",
        "redis://h/0?decode_responses=true",
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgument, match="VOLTROUTE_REDIS_URL") as caught:
        RedisStore(url, 1, 1, lambda _: None)
    assert "secret" not in str(caught.value)


async def test_nothing_that_it_does_is_an_error_of_the_request(cluster: TestCluster, store: StoreServer) -> None:
    async with keeping(cluster, store.url) as client:
        statuses = client.app.state.router.statuses

        async def broken(*_: object) -> None:
            raise AttributeError

        statuses._store._client.set = statuses._store._client.pipeline().execute = broken
        await ingest(client, vehicle("V", 5, soc=55))
        assert await ask(client) == ("bypass", (await ask(client))[1])


async def test_an_address_without_a_server_is_away() -> None:
    nowhere = RedisStore("redis://127.0.0.1:1/0", 1, 1, lambda _: None)
    with pytest.raises(Away):
        await nowhere.probe()
    await nowhere.close()
