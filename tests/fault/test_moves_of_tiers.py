"""Moves of buckets whose history is frozen, packed and late, under load, by runners that are killed at every step."""

import contextlib

import pytest

from shards.clock import deadline_in
from shards.moves import rebalances
from shards.moves.phases import Phase
from tests.support.crash_matrix import (
    BUCKETS,
    STEPS,
    STEPS_OF_ABORT,
    STEPS_OF_ROLLBACK,
    crash,
    move_on,
    steps_of,
)
from tests.support.ledger import execute, fetch
from tests.support.loaded import Loaded, loaded
from tests.support.moving import reached, running, start
from tests.support.servers import TestCluster, new_cluster
from tests.support.tiering import Interrupted, soon, tend, until

TIERS = """
SELECT (SELECT count(*) FROM tier WHERE bucket = 0 AND kind = 'meter' AND frozen_until > '1000-01-01') AS frozen,
    (SELECT count(*) FROM meter_telemetry_late WHERE bucket = 0) AS late,
    (SELECT count(*) FROM meter_telemetry_packed WHERE bucket = 0) AS days
"""
HOW = pytest.mark.parametrize("tier", ["frozen", "packed"])


async def age(cluster: TestCluster, under: Loaded, tier: str) -> None:
    """What was written so far is frozen and half packed, or packed; what comes from now on is late."""
    if tier == "packed":
        await tend(cluster)
    else:
        with contextlib.suppress(Interrupted):
            await tend(cluster, until("after pack"))
    await under.recorder.more(60)


async def is_exact(cluster: TestCluster, under: Loaded) -> None:
    """The bucket's tiers are where it is now, and its lifecycle goes on there; nothing is left elsewhere."""
    owner = await under.owner(0)
    (there,) = await fetch(cluster.shards[owner], TIERS)
    assert all(there.values()), dict(there)
    await under.whole()
    await under.recorder.more(20)
    await tend(cluster)
    await under.whole()


@HOW
@pytest.mark.parametrize("step", steps_of(STEPS))
async def test_a_runner_killed_at_any_step(
    servers: list[str], step: str, tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon(monkeypatch)
    async with new_cluster(servers, shards=3, buckets=BUCKETS) as cluster, loaded(cluster) as under:
        await age(cluster, under, tier)
        move = await under.next_move()
        await start(under.catalog, [move])
        async with crash(cluster.catalog_dsn, "kill", step):
            await under.one_writer()
            await tend(cluster)  # leaves a bucket in a move alone
        await move_on(under, move)
        await is_exact(cluster, under)
        assert set(under.recorder.statuses) == {200}


@HOW
@pytest.mark.parametrize("step", steps_of(STEPS_OF_ABORT))
async def test_a_runner_killed_while_giving_up(
    servers: list[str], step: str, tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon(monkeypatch)
    async with new_cluster(servers, shards=3, buckets=BUCKETS) as cluster, loaded(cluster) as under:
        await age(cluster, under, tier)
        move = await under.next_move()
        number = await start(under.catalog, [move])
        async with crash(cluster.catalog_dsn, "kill", "after entering catchup"):
            assert await rebalances.abort(under.catalog, number, "cancelled", deadline_in(5)) == 1
        async with crash(cluster.catalog_dsn, "kill", step):
            await move_on(under, move, state="cancelled")
        await is_exact(cluster, under)


@HOW
@pytest.mark.parametrize("step", steps_of(STEPS_OF_ROLLBACK))
async def test_a_runner_killed_while_rolling_back(
    servers: list[str], step: str, tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon(monkeypatch)
    async with new_cluster(servers, shards=3, buckets=BUCKETS) as cluster, loaded(cluster) as under:
        await age(cluster, under, tier)
        move = await under.next_move()
        await start(under.catalog, [move], keep_s=3600)
        async with running(under.catalog):
            await reached(under.catalog, Phase.CLEANUP)
        await under.recorder.more(20)
        await tend(cluster)
        assert await rebalances.roll_back(under.catalog, None, deadline_in(5)) == 1
        await execute(cluster.catalog_dsn, "UPDATE rebalance SET keep_s = 0")
        async with crash(cluster.catalog_dsn, "kill", step):
            await under.one_writer()
            await move_on(under, move, state="cancelled")
        await is_exact(cluster, under)
