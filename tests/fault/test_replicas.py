"""A real replica: what is read from it, when it is not, and that nobody is ever shown an earlier state again."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx2
import pytest

from shards.catalog.database import Catalog
from shards.errors import Refused
from shards.operations.check import check
from shards.operations.replicas import add_replica, remove_replica
from shards.shard import ReplicaRecord
from tests.support.ledger import execute, fetch
from tests.support.readings import ingest, meter
from tests.support.replicated import Pair, replicated, wake
from tests.support.routers import in_process
from tests.support.servers import TestCluster

LIMIT_S = 60
SETTINGS = {"runner": False, "ingest_timeout_s": 10, "query_timeout_s": 10}
HISTORY = "/v1/meters/M-1/history"


@asynccontextmanager
async def with_replicas(zone: str | None = None) -> AsyncIterator[tuple[Pair, TestCluster]]:
    """Two shards, each with a replica called r1 on the second server."""
    async with replicated() as (servers, _):
        first = {name: servers.first.dsn(name) for name in ("catalog", "s1", "s2")}
        catalog = Catalog(first["catalog"])
        for name in ("s1", "s2"):
            await execute(
                first["catalog"],
                "UPDATE shard SET owner_dsn = replace(owner_dsn, $2, $3), writer_dsn = replace(writer_dsn, $2, $3), "
                "query_dsn = replace(query_dsn, $2, $3), reader_dsn = replace(reader_dsn, $2, $3), "
                "monitor_dsn = replace(monitor_dsn, $2, $3) WHERE name = $1",
                name,
                f"{servers.first.host},{servers.second.host}",
                servers.first.host,
            )
            found = await add_replica(catalog, name, ReplicaRecord("r1", servers.second.host, zone))
            assert all(each.ok for each in found if each.name in {"replica", "system", "shard", "stream"})
        await catalog.close()
        yield servers, TestCluster(first["catalog"], {name: first[name] for name in ("s1", "s2")}, 4)


async def replicas_of(client: httpx2.AsyncClient) -> dict[str, Any]:
    body = (await client.get("/v1/shards")).json()
    return {each["name"]: each["replicas"][0] for each in body["items"] if each["replicas"]}


async def until(client: httpx2.AsyncClient, *, is_read: bool) -> Mapping[str, Any]:
    """Wait until both replicas are read from, or neither is."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            found = await replicas_of(client)
            if len(found) == 2 and all(each["isRead"] is is_read for each in found.values()):
                return found
            await asyncio.sleep(0.05)


async def reads(client: httpx2.AsyncClient) -> dict[str, float]:
    """How many answers there were of replicas, and of primaries."""
    found = {"replica": 0.0, "primary": 0.0}
    for line in (await client.get("/metrics")).text.splitlines():
        if line.startswith("voltroute_reads_total{"):
            found["primary" if 'replica=""' in line else "replica"] += float(line.rsplit(" ", 1)[1])
    return found


async def source(client: httpx2.AsyncClient, path: str = HISTORY, **options: Any) -> tuple[str, Any]:
    """Who gave the answer, and the answer."""
    before = await reads(client)
    answer = await client.get(path, **options)
    after = await reads(client)
    assert answer.status_code == 200, answer.text
    new = [name for name, count in after.items() if count > before[name]]
    assert len(new) == 1, new
    return new[0], answer


def other(client: httpx2.AsyncClient) -> httpx2.AsyncClient:
    """Another reader, by its address."""
    transport = httpx2.ASGITransport(app=client.app, client=("127.0.0.9", 1))  # type: ignore[attr-defined]
    return httpx2.AsyncClient(transport=transport, base_url="http://localhost")


async def replayed(servers: Pair) -> None:
    """Wait until the replica has all that the primary has written."""
    position = (await fetch(servers.first.dsn(), "SELECT pg_current_wal_lsn()::text"))[0][0]
    async with asyncio.timeout(LIMIT_S):
        while not (await fetch(servers.second.dsn(), "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", position))[
            0
        ][0]:
            await asyncio.sleep(0.02)


@pytest.mark.timeout(240)
async def test_history_is_read_from_a_replica_and_a_status_is_not() -> None:
    async with with_replicas() as (servers, cluster), in_process(cluster, **SETTINGS) as client:
        await ingest(client, [meter("M-1", minute) for minute in range(3)])
        await replayed(servers)
        found = await until(client, is_read=True)
        checker = Catalog(cluster.catalog_dsn)
        told = {each.name: (each.ok, each.found) for each in await check(checker)}
        assert {told[f"r1 is a replica of {name}"] for name in cluster.shards} == {(True, "it streams")}
        await checker.close()
        assert all(0 <= each["lagS"] < 10 and each["detail"] is None for each in found.values())
        for path in (HISTORY, "/v1/analytics/activity?since=2020-01-01T00:00:00Z", "/v1/analytics/fleet"):
            whose, answer = await source(client, path)
            assert whose == "replica", path
            assert datetime.fromisoformat(answer.json()["asOf"]) < datetime.now(UTC)
            assert answer.headers["x-as-of"][:19] == answer.json()["asOf"][:19]
        whose, answer = await source(client, "/v1/export/meters")
        assert whose == "replica"
        assert len(answer.text.splitlines()) == 3
        assert answer.headers["x-as-of"]
        for path in ("/v1/meters/M-1", "/v1/meters"):
            assert (await source(client, path))[0] == "primary", path
        catalog = Catalog(cluster.catalog_dsn)
        for name in cluster.shards:
            await remove_replica(catalog, name, "r1")
        await catalog.close()
        async with asyncio.timeout(LIMIT_S):
            while await replicas_of(client):
                await asyncio.sleep(0.05)
        assert (await source(client))[0] == "primary"


@pytest.mark.timeout(240)
async def test_a_replica_that_is_behind_is_not_read_until_it_has_caught_up() -> None:
    async with with_replicas() as (servers, cluster), in_process(cluster, **SETTINGS, replica_lag_max_s=1) as client:
        await ingest(client, meter("M-1"))
        await until(client, is_read=True)
        await execute(servers.second.dsn(), "SELECT pg_wal_replay_pause()")
        await ingest(client, meter("M-1", 1))
        found = await until(client, is_read=False)
        assert all("s behind, and 1 s are allowed" in each["detail"] for each in found.values())
        whose, answer = await source(client)
        assert (whose, len(answer.json()["items"])) == ("primary", 2)
        await execute(servers.second.dsn(), "SELECT pg_wal_replay_resume()")
        await until(client, is_read=True)
        whose, answer = await source(client)
        assert (whose, len(answer.json()["items"])) == ("replica", 2)


@pytest.mark.timeout(240)
async def test_a_reader_is_never_shown_an_earlier_state() -> None:
    """The replica hangs, the primary answers; then it is back, and still within the lag that is allowed."""
    async with (
        with_replicas() as (servers, cluster),
        in_process(cluster, **SETTINGS, replica_lag_max_s=600) as client,
        other(client) as stranger,
    ):
        await ingest(client, meter("M-1"))
        await replayed(servers)
        await until(client, is_read=True)
        await execute(servers.second.dsn(), "SELECT pg_wal_replay_pause()")
        # The walreceiver stays: a commit waits for it, not for the replay.
        await ingest(client, meter("M-1", 1))
        whose, answer = await source(client)
        assert (whose, len(answer.json()["items"])) == ("replica", 1)
        pids = await asyncio.to_thread(servers.second.pause)
        whose, answer = await source(client)  # it hangs while it is asked
        assert (whose, len(answer.json()["items"])) == ("primary", 2)
        wake(pids)
        await until(client, is_read=True)
        whose, answer = await source(stranger)
        assert (whose, len(answer.json()["items"])) == ("replica", 1)
        whose, answer = await source(client)
        assert (whose, len(answer.json()["items"])) == ("primary", 2)
        await execute(servers.second.dsn(), "SELECT pg_wal_replay_resume()")
        await replayed(servers)
        async with asyncio.timeout(LIMIT_S):
            while (await source(client))[0] != "replica":
                await asyncio.sleep(0.05)


@pytest.mark.timeout(240)
async def test_a_replica_that_was_away_begins_behind_what_readers_have_seen() -> None:
    """Nobody writes down what readers see while there is none: what it has when it is back may be older."""
    async with with_replicas() as (servers, cluster), in_process(cluster, **SETTINGS, replica_lag_max_s=600) as client:
        await ingest(client, meter("M-1"))
        await replayed(servers)
        await until(client, is_read=True)
        await execute(servers.second.dsn(), "SELECT pg_wal_replay_pause()")
        catalog = Catalog(cluster.catalog_dsn)
        for name in cluster.shards:
            await remove_replica(catalog, name, "r1")
        async with asyncio.timeout(LIMIT_S):
            while await replicas_of(client):
                await asyncio.sleep(0.05)
        await ingest(client, meter("M-1", 1))
        whose, answer = await source(client)
        assert (whose, len(answer.json()["items"])) == ("primary", 2)
        for name in cluster.shards:
            await add_replica(catalog, name, ReplicaRecord("r1", servers.second.host, "b"))
        await catalog.close()
        found = await until(client, is_read=False)
        while any("asked yet" in each["detail"] for each in found.values()):
            found = await until(client, is_read=False)
        whose, answer = await source(client)
        assert (whose, len(answer.json()["items"])) == ("primary", 2)
        await execute(servers.second.dsn(), "SELECT pg_wal_replay_resume()")
        await until(client, is_read=True)
        assert (await source(client))[0] == "replica"


@pytest.mark.timeout(240)
async def test_without_its_primary_a_shard_is_read_for_those_who_allow_it() -> None:
    async with with_replicas() as (servers, cluster):
        # The catalog is on the first server too: what is asked here is known already.
        settings = {**SETTINGS, "query_timeout_s": 2, "replica_lag_max_s": 1, "failover_hold_s": 0}
        async with in_process(cluster, **settings) as client:
            await ingest(client, meter("M-1"))
            await replayed(servers)
            await until(client, is_read=True)
            pids = await asyncio.to_thread(servers.first.pause)
            await until(client, is_read=False)
            answer = await client.get(HISTORY, params={"stale": "allow"})  # it hangs, and leaves time for the replica
            assert answer.status_code == 200
            wake(pids)
            await until(client, is_read=True)
            await asyncio.to_thread(servers.first.kill)
            await until(client, is_read=False)
            assert (await client.get(HISTORY)).status_code == 503
            answer = await client.get(HISTORY, params={"stale": "allow"})
            assert answer.status_code == 200
            assert len(answer.json()["items"]) == 1
            assert answer.json()["asOf"] is not None


@pytest.mark.timeout(240)
async def test_a_promoted_replica_is_not_read_as_one() -> None:
    async with with_replicas() as (servers, cluster), in_process(cluster, **SETTINGS) as client:
        await ingest(client, meter("M-1"))
        await until(client, is_read=True)
        await servers.promote()
        assert (await source(client))[0] == "primary"  # at once, whatever was heard of it last
        found = await until(client, is_read=False)
        assert {each["detail"] for each in found.values()} == {"it is a primary, not a replica"}
        checker = Catalog(cluster.catalog_dsn)
        told = {each.name: each for each in await check(checker)}
        assert told["r1 is a replica of s1"].found.startswith("is a primary")
        await checker.close()
        assert (await source(client))[0] == "primary"


@pytest.mark.timeout(240)
async def test_what_is_no_replica_of_a_shard_is_refused() -> None:
    async with with_replicas() as (servers, cluster), replicated(synchronous=False) as (strangers, _):
        catalog = Catalog(cluster.catalog_dsn)
        second, primary = servers.second.host, servers.first.host
        monitor = (await fetch(cluster.catalog_dsn, "SELECT monitor_dsn FROM shard WHERE name = 's1'"))[0][0]
        await like(strangers, monitor)
        for shard, name, address, why in (
            ("s1", "r1", second, "s1 has a replica r1 already"),
            ("s1", "r2", second, "by another name"),
            ("s1", "r2", primary, "is a primary"),
            ("s1", "r2", strangers.second.host, "and s1's is"),
            ("s1", "r2", "127.0.0.1:1", "cannot become a replica"),
            ("s3", "r1", second, "there is no shard s3"),
            ("s1", "R 2", second, "replica name"),
            ("s1", "r2", "", "is no address"),
        ):
            with pytest.raises(Exception, match=why):
                await add_replica(catalog, shard, ReplicaRecord(name, address))
        with pytest.raises(Refused, match="it has r1"):
            await remove_replica(catalog, "s1", "r9")
        await catalog.close()


async def like(strangers: Pair, monitor_dsn: str) -> None:
    """The other cluster's servers take the login of this one's shards."""
    parts = urlsplit(monitor_dsn)
    admin = await asyncpg.connect(strangers.first.dsn())
    await admin.execute(f"CREATE ROLE \"{parts.username}\" LOGIN PASSWORD '{parts.password}' IN ROLE pg_monitor")
    await admin.execute(f'GRANT CONNECT ON DATABASE s1 TO "{parts.username}"')
    await admin.close()
    admin = await asyncpg.connect(strangers.first.dsn("s1"))
    await admin.execute(f'GRANT SELECT ON shard_identity TO "{parts.username}"')
    await admin.close()
    await replayed(strangers)
