"""Fencing tokens: a runner that was replaced can neither take a move over nor write for it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import asyncpg
import pytest
import pytest_asyncio

from shards.catalog import lease
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import Refused
from shards.moves import decisions, rebalances
from shards.moves.phases import Move, Phase, Recorded, Role
from shards.moves.placement import PlannedMove
from shards.moves.record import Replaced, Token
from shards.operations import rebalance
from shards.operations.rebalance import Pace
from tests.support.moving import leftovers
from tests.support.servers import TestCluster


@pytest_asyncio.fixture
async def catalog(cluster: TestCluster) -> AsyncIterator[Catalog]:
    made = Catalog(cluster.catalog_dsn)
    yield made
    await made.close()


async def test_who_was_replaced_as_runner_can_write_no_more(cluster: TestCluster, catalog: Catalog) -> None:
    move = Move(7, 1, 0, "s1", "s2", Phase.CATCHUP)
    old, new = Token(move, Role.SOURCE, 3), Token(move, Role.SOURCE, 4)
    connection = await asyncpg.connect(cluster.shards["s1"])
    try:
        assert await old.take_over(connection) is None
        assert (await old.claim(connection, datetime.now(UTC))).state == "copying"
        assert (await new.claim(connection)).low_water is not None
        for attempt in (old.claim, old.take_over, old.read, old.hold):
            with pytest.raises(Replaced):
                await attempt(connection)
        with pytest.raises(Replaced):
            await old.change(connection, Recorded.COPYING, Recorded.FENCED)
        with pytest.raises(Replaced):
            await old.set_fenced(connection)
        with pytest.raises(Replaced):
            await old.forget(connection)
        with pytest.raises(Replaced):
            await old.set_low_water(connection, datetime.now(UTC))
        await new.change(connection, Recorded.COPYING, Recorded.ABORTED)
        with pytest.raises(Replaced):
            await new.change(connection, Recorded.COPYING, Recorded.FENCED)
        other = Token(Move(8, 1, 0, "s1", "s2", Phase.CATCHUP), Role.SOURCE, 9)
        with pytest.raises(Refused, match="still in another move"):
            await other.claim(connection)
        await new.forget(connection)
    finally:
        await connection.close()
    assert await leftovers(cluster) == []


async def test_a_lease_has_one_holder_until_it_runs_out_and_each_a_later_generation(catalog: Catalog) -> None:
    first = await lease.acquire(catalog, "a", 60, deadline_in(5))
    assert first is not None
    assert await lease.acquire(catalog, "b", 60, deadline_in(5)) is None
    assert await lease.renew(catalog, first, 0, deadline_in(5))  # runs out at once
    second = await lease.acquire(catalog, "b", 60, deadline_in(5))
    assert second is not None
    assert second > first
    assert not await lease.renew(catalog, first, 60, deadline_in(5))
    await lease.release(catalog, first, deadline_in(5))  # not his any more: changes nothing
    assert await lease.acquire(catalog, "c", 60, deadline_in(5)) is None
    await lease.release(catalog, second, deadline_in(5))
    assert await lease.acquire(catalog, "c", 60, deadline_in(5)) is not None
    seen = await lease.holder(catalog, deadline_in(5))
    assert (seen and seen.name, seen and seen.leads) == ("c", True)


async def test_what_a_replaced_runner_says_to_the_catalog_changes_nothing(catalog: Catalog) -> None:
    planned = [PlannedMove(0, "s1", "s2")]
    await rebalance.start(catalog, planned, "test", Pace())
    (move,) = await rebalances.open_moves(catalog, deadline_in(5))
    old, now = 1, deadline_in(5)
    held = await lease.holder(catalog, now)
    assert held is not None
    assert not await rebalances.enter(catalog, move, Phase.BACKFILL, old, now)
    cutting = replace(move, phase=Phase.CUTOVER)
    assert await rebalances.hand_over(catalog, cutting, ("s1", "s2"), Phase.CLEANUP, old, now) is None
    await decisions.hold(catalog, move.move_id, old, "by an old runner", now)
    await rebalances.failed(catalog, move.move_id, old, "by an old runner", now)
    assert await rebalances.open_moves(catalog, now) == [move]
    shard_map = await catalog.shard_map(now)
    assert shard_map is not None
    assert shard_map.owner(0) == "s1"
