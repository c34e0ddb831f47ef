"""Transactions that end, whatever the server does: the one place that begins them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
from asyncpg.transaction import Transaction

from shards.postgres.connections import Connection, cut

ROLLBACK_TIMEOUT_S: Final = 0.5


@asynccontextmanager
async def transaction(connection: Connection, *, readonly: bool = False) -> AsyncIterator[None]:
    """Commits on leaving, rolls back on any exception. A server that does not answer to that loses the connection.

    asyncpg's own waits for the ROLLBACK without a limit, after a caller's deadline too: a deadline cancels once.
    """
    begun = connection.transaction(readonly=readonly)
    await begun.start()
    try:
        yield
    except BaseException:
        await _roll_back(begun, connection)
        raise
    await begun.commit()


@asynccontextmanager
async def rolled_back(connection: Connection) -> AsyncIterator[None]:
    """A transaction that never commits."""
    begun = connection.transaction()
    await begun.start()
    try:
        yield
    finally:
        await _roll_back(begun, connection)


async def _roll_back(begun: Transaction, connection: Connection) -> None:
    try:
        async with asyncio.timeout(ROLLBACK_TIMEOUT_S):
            await begun.rollback()
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        cut(connection)  # the server rolls back when it finds that nobody is there
    except BaseException:
        cut(connection)
        raise
