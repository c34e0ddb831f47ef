"""Single connections of a shard's owner, for moves and checks: outside the pools, with limits of their own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import asyncpg

from shards.catalog import ShardRecord
from shards.driver import translated
from shards.pools import Connection

MOVER: Final = "voltroute mover"  # the application_name by which a move tells its own transactions from writers'
CONNECT_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True)
class SessionLimits:
    """How long a statement may run, wait for a lock, and a transaction stand idle, in seconds."""

    statement_timeout_s: float = 600.0
    lock_timeout_s: float = 5.0
    idle_in_transaction_s: float = 60.0


# A runner that hangs inside the fence holds up writers: the server ends its transaction by itself.
FENCING: Final = SessionLimits(statement_timeout_s=10.0, lock_timeout_s=0.15, idle_in_transaction_s=3.0)


@asynccontextmanager
async def owner_session(shard: ShardRecord, limits: SessionLimits | None = None) -> AsyncIterator[Connection]:
    """A connection as the shard's owner; what the driver raises inside comes out as a ShardError."""
    limits = limits or SessionLimits()
    with translated(shard.name):
        connection = await asyncpg.connect(
            shard.owner_dsn,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=limits.statement_timeout_s + 5,
            server_settings={
                "application_name": MOVER,
                "timezone": "UTC",
                "datestyle": "ISO, YMD",
                "jit": "off",
                "statement_timeout": _ms(limits.statement_timeout_s),
                "lock_timeout": _ms(limits.lock_timeout_s),
                "idle_in_transaction_session_timeout": _ms(limits.idle_in_transaction_s),
            },
        )
        try:
            yield connection
        finally:
            connection.terminate()


def _ms(seconds: float) -> str:
    return str(int(seconds * 1000))
