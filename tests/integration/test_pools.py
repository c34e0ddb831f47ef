"""Pools on a real server: connections kept at hand are reused, replaced when they die, and given up to who waits."""

import asyncio
import time

from shards.postgres.pools import Connection, PoolLimits, ShardPool
from tests.support.ledger import execute
from tests.support.processes import eventually
from tests.support.servers import TestCluster

PID = "SELECT pg_backend_pid()"


def new_pool(cluster: TestCluster, **limits: float) -> ShardPool:
    return ShardPool("s1", cluster.shards["s1"], PoolLimits(min_size=0, **limits))  # type: ignore[arg-type]


async def backend(pool: ShardPool) -> int:
    async with pool.connection(time.monotonic() + 10) as connection:
        return int(await connection.fetchval(PID))


async def test_a_connection_is_reused_and_counts_as_idle(cluster: TestCluster) -> None:
    pool = new_pool(cluster)
    assert await backend(pool) == await backend(pool)
    assert (pool.use().open, pool.use().idle) == (1, 1)
    await pool.close()
    assert pool.use().open == 0


async def test_a_kept_connection_that_died_is_replaced(cluster: TestCluster) -> None:
    pool = new_pool(cluster)
    first = await backend(pool)
    await execute(cluster.shards["s1"], "SELECT pg_terminate_backend($1, 5000)", first)
    await eventually(lambda: pool.use().open == 0)
    assert await backend(pool) != first
    await pool.close()


async def test_who_waits_gets_the_connection(cluster: TestCluster) -> None:
    pool = new_pool(cluster, max_size=1)
    holding, release = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with pool.connection(time.monotonic() + 10):
            holding.set()
            await release.wait()

    first = asyncio.create_task(hold())
    await holding.wait()
    waiting = [asyncio.create_task(backend(pool)) for _ in range(3)]
    await asyncio.sleep(0)
    release.set()
    await first
    assert len(set(await asyncio.gather(*waiting))) == 1
    await pool.close()


async def test_idle_connections_are_closed(cluster: TestCluster) -> None:
    pool = new_pool(cluster, idle_s=0.05)

    async def two(_connection: Connection) -> int:
        return await backend(pool)

    async with pool.connection(time.monotonic() + 10) as connection:
        await two(connection)
    assert pool.use().open == 2
    await eventually(lambda: pool.use().open == 0)
    assert await backend(pool) > 0
    await pool.close()
