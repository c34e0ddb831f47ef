"""Holding a bucket for a step of its lifecycle."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from shards.postgres.pools import Connection

HOLD_ATTEMPTS: Final = 20
HOLD_PAUSE_S: Final = 0.05
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
