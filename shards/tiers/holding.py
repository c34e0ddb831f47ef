"""Holding a bucket for a step of its lifecycle, and waiting for whoever holds something that the step needs."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from shards.postgres.connections import Connection

HOLD_ATTEMPTS: Final = 20
HOLD_PAUSE_S: Final = 0.05
LOCK_ATTEMPTS: Final = 30
_HOLD: Final = "SELECT pg_try_advisory_lock(hashtext('voltroute.lifecycle'), $1::integer)"
_LET_GO: Final = "SELECT pg_advisory_unlock(hashtext('voltroute.lifecycle'), $1::integer)"


@asynccontextmanager
async def held(connection: Connection, bucket: int) -> AsyncIterator[bool]:
    """No other step of the bucket, and no move's beginning, while it is held; False when somebody else keeps it.

    Rollups are kept by another duty, which has it for a moment.
    """
    is_ours = bool(await connection.fetchval(_HOLD, bucket))
    for _ in range(HOLD_ATTEMPTS):
        if is_ours:
            break
        await asyncio.sleep(HOLD_PAUSE_S)
        is_ours = bool(await connection.fetchval(_HOLD, bucket))
    try:
        yield is_ours
    finally:
        if is_ours and not connection.is_closed():
            await asyncio.shield(connection.execute(_LET_GO, bucket))


async def patiently(work: Callable[[], Awaitable[None]]) -> None:
    """Whoever holds a lock is waited for only a moment, so that writers do not queue behind; but some times."""
    for attempt in range(1, LOCK_ATTEMPTS + 1):
        try:
            return await work()
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            if attempt == LOCK_ATTEMPTS:
                raise
            await asyncio.sleep(random.uniform(0.05, 0.15))
    raise AssertionError  # the loop returns or raises
