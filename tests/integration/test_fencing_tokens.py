"""Fencing tokens: a runner that was replaced can neither take a move over nor write for it."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import asyncpg
import pytest
import pytest_asyncio

from shards import rebalances
from shards.bucket_moves import SOURCE, Replaced, Token
from shards.catalog import Catalog, deadline_in
from shards.errors import Refused
from shards.moves import Move, Phase
from tests.support.moving import leftovers
from tests.support.servers import TestCluster


@pytest_asyncio.fixture
async def catalog(cluster: TestCluster) -> AsyncIterator[Catalog]:
    made = Catalog(cluster.catalog_dsn)
    yield made
    await made.close()


async def test_who_was_replaced_as_runner_can_write_no_more(cluster: TestCluster, catalog: Catalog) -> None:
    move = Move(7, 1, 0, "s1", "s2", Phase.CATCHUP)
    old, new = Token(move, SOURCE, 3), Token(move, SOURCE, 4)
    connection = await asyncpg.connect(cluster.shards["s1"])
    try:
        assert await old.take_over(connection) is None
        assert (await old.claim(connection, datetime.now(UTC))).state == "copying"
        assert (await new.claim(connection)).low_water is not None
        for attempt in (old.claim, old.take_over, old.read, old.hold):
            with pytest.raises(Replaced):
                await attempt(connection)
        with pytest.raises(Replaced):
            await old.change(connection, "copying", "fenced")
        with pytest.raises(Replaced):
            await old.set_low_water(connection, datetime.now(UTC))
        await new.change(connection, "copying", "aborted")
        with pytest.raises(Replaced):
            await new.change(connection, "copying", "fenced")
        other = Token(Move(8, 1, 0, "s1", "s2", Phase.CATCHUP), SOURCE, 9)
        with pytest.raises(Refused, match="still in another move"):
            await other.claim(connection)
        await new.forget(connection)
    finally:
        await connection.close()
    assert await leftovers(cluster) == []


async def test_every_leadership_has_a_later_generation(catalog: Catalog) -> None:
    generations = [await rebalances.lead(catalog, name, deadline_in(5)) for name in ("a", "b", "a")]
    assert generations == sorted(set(generations))
    assert await rebalances.is_alive(catalog, generations[-1], deadline_in(5))
    assert not await rebalances.is_alive(catalog, generations[0], deadline_in(5))
