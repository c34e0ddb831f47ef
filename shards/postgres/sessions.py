"""Single connections outside the pools, with a limit on everything: the one place that opens them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from shards.postgres.connections import DURABLE, PROMISES, Connection
from shards.postgres.driver import translated
from shards.postgres.hosts import Hosts
from shards.postgres.lineage import Lineage, Role
from shards.shard import ShardRecord

CONNECT_TIMEOUT_S: Final = 5.0
MOVER: Final = "voltroute mover"  # how a move tells its own sessions from others'; the runner's generation follows


@dataclass(frozen=True)
class SessionLimits:
    """How long a statement may run, wait for a lock, and a transaction stand idle, in seconds."""

    statement_timeout_s: float = 600.0
    lock_timeout_s: float = 5.0
    idle_in_transaction_s: float = 60.0


# A runner that hangs inside the fence holds up writers: the server ends its transaction by itself.
FENCING: Final = SessionLimits(statement_timeout_s=10.0, lock_timeout_s=0.15, idle_in_transaction_s=3.0)
BRIEF: Final = SessionLimits(statement_timeout_s=30.0)


@asynccontextmanager
async def open_session(
    name: str,
    dsn: str,
    limits: SessionLimits | None = None,
    application_name: str = "voltroute",
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    *,
    lineage: Lineage | None = None,
    role: Role = Role.PRIMARY,
) -> AsyncIterator[Connection]:
    """A connection to the database called `name`; what the driver raises inside comes out as a ShardError.

    `lineage`: what is known of its primary. Of several hosts the newest primary is taken.
    """
    limits = limits or SessionLimits()
    with translated(name):
        settings = {
            **PROMISES,
            "row_security": "off",  # the owner sees all rows; any other login is refused instead of seeing some
            "application_name": application_name,
            "jit": "off",
            "statement_timeout": _ms(limits.statement_timeout_s),
            "lock_timeout": _ms(limits.lock_timeout_s),
            "idle_in_transaction_session_timeout": _ms(limits.idle_in_transaction_s),
            "tcp_keepalives_idle": "5",
            "tcp_keepalives_interval": "2",
            "tcp_keepalives_count": "3",
        }
        hosts = Hosts(name, dsn, lineage, role)
        connection = await hosts.connect(connect_timeout_s, settings, limits.statement_timeout_s + 5)
        try:
            await connection.execute(DURABLE)  # what a move has carried must be on disk before the other side drops it
            yield connection
        finally:
            connection.terminate()


@asynccontextmanager
async def owner_session(
    shard: ShardRecord, limits: SessionLimits | None = None, application_name: str = "voltroute"
) -> AsyncIterator[Connection]:
    """A connection as the shard's owner."""
    lineage = Lineage(shard.system, shard.timeline)
    async with open_session(shard.name, shard.owner_dsn, limits, application_name, lineage=lineage) as connection:
        yield connection


def _ms(seconds: float) -> str:
    return str(int(seconds * 1000))
