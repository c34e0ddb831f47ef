"""Pools on a real server: connections kept at hand are reused, replaced when they die, and given up to who waits."""

import asyncio
import contextlib
import time
from pathlib import Path

import pytest

from shards.clock import deadline_in
from shards.errors import Cause, ShardUnavailable
from shards.postgres.connections import Connection
from shards.postgres.options import PoolLimits
from shards.postgres.pools import ShardPool
from shards.postgres.sessions import BRIEF, open_session
from shards.postgres.transactions import rolled_back, transaction
from tests.support.ledger import execute
from tests.support.processes import eventually
from tests.support.proxy import wire
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


async def test_a_server_that_says_nothing_is_silent_not_busy() -> None:
    """Even to those who wait behind the ones that wait for the first connection."""

    left: list[asyncio.StreamWriter] = []

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left.append(writer)
        await reader.read()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    pool = ShardPool(
        "s1", f"postgresql://u:p@{host}:{port}/d", PoolLimits(min_size=1, max_size=3, acquire_timeout_s=0.5)
    )

    async def use() -> Cause:
        with pytest.raises(ShardUnavailable) as failed:
            async with pool.connection(deadline_in(5)):
                pass
        return failed.value.cause

    try:
        assert set(await asyncio.gather(*(use() for _ in range(12)))) <= {Cause.SILENT, Cause.BREAKER_OPEN}
        assert pool.use().breaker.value == "open"
    finally:
        await pool.close()
        server.close()
        for writer in left:
            writer.close()
            await writer.wait_closed()


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


SHARDS = Path(__file__).parents[2] / "shards"
ENDLESS_S = 30  # what a caller would wait without the limit that a test is about, or longer


async def test_a_transaction_on_a_server_that_falls_silent_ends_with_its_deadline(cluster: TestCluster) -> None:
    """asyncpg waits for the answer to ROLLBACK, and a deadline cancels once."""
    async with wire(cluster.shards["s1"]) as line, asyncio.timeout(ENDLESS_S):
        pool = ShardPool("s1", line.dsn, PoolLimits(min_size=1))

        async def use() -> None:
            async with pool.connection(deadline_in(1)) as connection, transaction(connection):
                await connection.fetchval(PID)
                line.hold()
                await connection.fetchval(PID)

        with pytest.raises(ShardUnavailable) as raised:
            await use()
        assert raised.value.cause is Cause.SILENT
        assert (pool.use().idle, pool.use().failing) == (0, True)
        line.let_go()
        assert await backend(pool) > 0
        await pool.close()


async def test_a_cancelled_transaction_of_a_session_ends_though_its_server_is_silent(cluster: TestCluster) -> None:
    async with wire(cluster.shards["s1"]) as line, asyncio.timeout(ENDLESS_S):
        begun = asyncio.Event()

        async def work() -> None:
            async with open_session("s1", line.dsn, BRIEF) as session, transaction(session), rolled_back(session):
                line.hold()
                begun.set()
                await session.fetchval(PID)

        task = asyncio.create_task(work())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        line.let_go()


async def test_a_transaction_commits_or_not(cluster: TestCluster) -> None:
    async with open_session("s1", cluster.shards["s1"]) as session:
        await session.execute("CREATE TEMP TABLE t (a int)")
        async with transaction(session):
            await session.execute("INSERT INTO t VALUES (1)")
            with contextlib.suppress(ZeroDivisionError):
                async with transaction(session):
                    await session.execute("INSERT INTO t VALUES (2)")
                    raise ZeroDivisionError
        async with rolled_back(session):
            await session.execute("INSERT INTO t VALUES (3)")
        assert await session.fetchval("SELECT array_agg(a) FROM t") == [1]


def test_transactions_begin_in_one_place() -> None:
    places = {file.name for file in SHARDS.rglob("*.py") if "connection.transaction(" in file.read_text()}
    assert places == {"transactions.py"}
