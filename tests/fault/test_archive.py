"""Months leave and come back while stores fail, and whoever does it is killed: nothing is lost, a rerun converges."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio

from shards.operations import archive as operation
from shards.operations.archive import Wanted
from tests.support.archiving import BOTH, catalog_at, leave, left, restore, restored, use
from tests.support.ledger import execute
from tests.support.months import DEVICES, LEFT, PERIOD, packed, states, sums, total
from tests.support.object_store import MODES, faulty_s3
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tiering import answers

pytestmark = pytest.mark.timeout(400)  # some fifteen processes, one after the other; a store that is tried again
LEAVING = (
    "inside seal",
    "after seal",
    "after export",
    "after upload",
    "after verify",
    "inside take",
    "after take",
    "after detach",
    "after drop",
)
RETURNING = ("inside restore", "after part", "inside return", "after return")


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=8) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def client(cluster: TestCluster) -> AsyncIterator[httpx2.AsyncClient]:
    async with in_process(cluster, runner=False) as made:
        yield made


async def killed(cluster: TestCluster, place: str, how: str) -> None:
    """It ends at the place, which it must reach."""
    arguments = ("-m", "tests.support.archive_killed", cluster.catalog_dsn, place, how)
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments)
    assert await process.wait() == -signal.SIGKILL, place


async def test_killed_at_every_place(client: httpx2.AsyncClient, cluster: TestCluster, tmp_path: Path) -> None:
    """Each place meets another month; sums over whole hours are what they were all the time."""
    await use(cluster, f"file://{tmp_path}/archive")
    of_hours, of_all = await packed(client, cluster)
    for place in LEAVING:
        await killed(cluster, place, "leave")
        assert await sums(client) == of_hours, place
    await left(cluster)
    assert (await total(cluster, LEFT), await states(cluster)) == (0, {"dropped"})
    for place in RETURNING:
        await killed(cluster, place, "restore")
        assert await sums(client) == of_hours, place
    await restored(cluster)
    assert await states(cluster) == {"restored"}
    assert await answers(client, PERIOD, DEVICES) == of_all
    await execute(cluster.catalog_dsn, "UPDATE archived_month SET restored_until = now()")
    await left(cluster, BOTH)
    assert (await total(cluster, LEFT), await states(cluster)) == (0, {"expired"})
    assert list((tmp_path / "archive").rglob("*.parquet")) == []
    assert await sums(client) == of_hours


async def test_a_store_that_fails(
    client: httpx2.AsyncClient, cluster: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is dropped that was not read back whole; nothing is restored that is not what it was."""
    with faulty_s3(monkeypatch) as (url, proxy):
        await use(cluster, url)
        of_hours, of_all = await packed(client, cluster)
        there = await total(cluster, LEFT)
        for mode in MODES:
            proxy.mode, proxy.seen = mode, 0
            try:
                failed = await leave(cluster)
            except Exception as error:  # noqa: BLE001 - what the first look at the store says
                failed = {mode: str(error)}
            assert failed, mode
            assert proxy.seen, mode
            assert await total(cluster, LEFT) == there, mode
            assert await answers(client, PERIOD, DEVICES) == of_all, mode
            assert not any("a-secret-of-tests" in why for why in failed.values())
        proxy.mode = None
        await left(cluster)
        assert (await total(cluster, LEFT), await states(cluster)) == (0, {"dropped"})
        for mode in ("short", "flipped", "cut"):
            proxy.mode, proxy.seen = mode, 0
            assert (await restore(cluster)).failed
            assert proxy.seen
            assert await total(cluster, LEFT) == 0
            async with catalog_at(cluster.catalog_dsn) as catalog:
                checked = await operation.verify(catalog, Wanted(), lambda _entry, _why: None)
            assert (checked.months, bool(checked.failed)) == (0, True)
            assert await sums(client) == of_hours
        proxy.mode = None
        await restored(cluster)
        assert await answers(client, PERIOD, DEVICES) == of_all
