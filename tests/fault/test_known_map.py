"""A router that starts while the catalog is away: from what it knew last, if the shards confirm it."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from shards.cluster import cached
from shards.errors import MachineError, Refused
from tests.support.ledger import fetch
from tests.support.readings import ingest, meter
from tests.support.replicated import replicated
from tests.support.routers import in_process
from tests.support.servers import TestCluster

SETTINGS = {"runner": False, "failover_hold_s": 0, "ingest_timeout_s": 3, "query_timeout_s": 3}
GONE = "postgresql://nobody:nothing@127.0.0.1:1/catalog"
LIMIT_S = 60


async def saved(cluster: TestCluster, file: Path, **more: object) -> cached.Known:
    """What a router knows after it ran for a moment."""
    async with in_process(cluster, **SETTINGS, **more, cache_file=str(file), map_poll_s=0.1) as client:
        await ingest(client, [meter(f"M-{number}") for number in range(8)])
        async with asyncio.timeout(LIMIT_S):
            while not file.exists():
                await asyncio.sleep(0.05)
    known = cached.load(file)
    assert known is not None
    return known


def without_catalog(cluster: TestCluster) -> TestCluster:
    return TestCluster(GONE, cluster.shards, cluster.buckets)


async def test_a_router_starts_without_the_catalog(cluster: TestCluster, tmp_path: Path) -> None:
    file = tmp_path / "known"
    known = await saved(cluster, file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert {record.name for record in known.shards} == set(cluster.shards)
    async with in_process(without_catalog(cluster), **SETTINGS, cache_file=str(file)) as client:
        answer = await client.post("/v1/ingest", json=[meter(f"M-{number}", 1) for number in range(8)])
        assert (answer.status_code, answer.json()["accepted"]) == (200, 8)
        history = (await client.get("/v1/meters/M-1/history")).json()
        assert len(history["items"]) == 2
        assert (await client.get("/readyz")).status_code == 200
    async with in_process(without_catalog(cluster), **SETTINGS) as client:
        assert (await client.post("/v1/ingest", json=meter("M-1", 2))).status_code == 503


async def test_known_keys_are_asked_for(cluster: TestCluster, tmp_path: Path) -> None:
    """A cluster with keys stays closed to everybody else, without its catalog too."""
    file = tmp_path / "known"
    known = await saved(cluster, file)
    cached.save(file, replace(known, keyring=replace(known.keyring, closed=True)))
    async with in_process(without_catalog(cluster), **SETTINGS, cache_file=str(file)) as client:
        assert (await client.post("/v1/ingest", json=meter("M-1", 3))).status_code == 401


async def test_an_older_map_is_refused(cluster: TestCluster, tmp_path: Path) -> None:
    """What a shard does not own any more, the map gives it: nothing of it is believed."""
    file = tmp_path / "known"
    known = await saved(cluster, file)
    one, other = sorted(cluster.shards)[:2]
    owners = tuple(one if owner == other else owner for owner in known.shard_map.owners)
    older = replace(known, shard_map=replace(known.shard_map, owners=owners))
    cached.save(file, older)
    async with in_process(without_catalog(cluster), **SETTINGS, cache_file=str(file)) as client:
        assert (await client.post("/v1/ingest", json=meter("M-1", 4))).status_code == 503
    with pytest.raises(Refused, match=f"it is older than {one} says: bucket"):
        cached.check(older, {one: frozenset(known.shard_map.by_shard[one])})
    with pytest.raises(Refused, match="no shard confirms it"):
        cached.check(known, {})


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "known"
    assert cached.load(file) is None
    file.write_text("{}")
    file.chmod(0o644)
    with pytest.raises(MachineError, match="this account alone"):
        cached.load(file)
    file.chmod(0o600)
    with pytest.raises(MachineError, match="holds no cluster"):
        cached.load(file)
    for text in (b"\xff\xfe", b"[" * 100_000):
        file.write_bytes(text)
        with pytest.raises(MachineError, match="holds no cluster"):
            cached.load(file)
    with pytest.raises(MachineError, match="this account alone"):
        cached.load(tmp_path)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(MachineError, match="this account alone"):
        cached.load(tmp_path / "fifo")
    link = tmp_path / "link"
    link.symlink_to(file)
    with pytest.raises(MachineError, match="cannot read"):
        cached.load(link)


@pytest.mark.timeout(240)
async def test_an_old_primary_of_the_catalog_is_not_believed(tmp_path: Path) -> None:
    """The catalog's new primary is gone, and the old one back: a router that knew better starts from its file."""
    file = tmp_path / "known"
    async with replicated() as (servers, cluster):
        await saved(cluster, file)
        file.unlink()
        await asyncio.to_thread(servers.first.kill)
        await servers.promote()
        known = await saved(cluster, file)
        assert known.timeline == 2
        await asyncio.to_thread(servers.first.start)
        old = TestCluster(servers.first.dsn("catalog"), cluster.shards, cluster.buckets)
        assert await fetch(old.catalog_dsn, "SELECT 1")
        async with in_process(old, **SETTINGS, cache_file=str(file)) as client:
            answer = await client.post("/v1/ingest", json=meter("M-1", 5))
            assert answer.status_code == 200
            body = (await client.get("/v1/shards")).json()
            assert body["epoch"] == known.shard_map.epoch
