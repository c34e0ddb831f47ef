"""One connection to a database: what its statements rest on, whose rows it reads, and how it is let go."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, TypeAlias

import asyncpg

if TYPE_CHECKING:
    Pooled: TypeAlias = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    Connection: TypeAlias = Pooled | asyncpg.Connection[asyncpg.Record]
    _Base: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Connection = Pooled = object
    _Base = asyncpg.Connection

# What our statements rest on, whatever the database, the role or the server sets.
PROMISES: Final[Mapping[str, str]] = {
    "timezone": "UTC",
    "datestyle": "ISO, YMD",
    "search_path": "public",
    "default_transaction_isolation": "read committed",
    "extra_float_digits": "1",
    "row_security": "on",
}
# An acknowledged reading is on disk. Only "off" breaks that: a stronger setting than "on" is an operator's choice.
DURABLE: Final = """
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'
"""
_SERVE: Final = "SELECT set_config('voltroute.tenant', $1, false)"


class Session(_Base):
    """A connection that knows its server's timeline (None: a replica's), and whose rows it lets one read."""

    timeline: int | None = None
    _tenant: int | None = None

    async def serve(self, tenant: int) -> None:
        """From here on the session reads rows of `tenant` alone."""
        if self._tenant != tenant:
            self._tenant = None  # unknown until the server has confirmed the new one
            await self.execute(_SERVE, str(tenant))
            self._tenant = tenant


def cut(connection: Connection) -> None:
    """Close a connection without a word to its server, unless it is closed already."""
    if is_open(connection):
        connection.terminate()


def is_open(connection: Connection) -> bool:
    """Whether nobody has closed it, as far as is known."""
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:  # asyncpg took it back when the server closed it
        return False
