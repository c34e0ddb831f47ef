"""Room for data, where that can be seen: only of servers on this machine."""

import shutil
from pathlib import Path

import asyncpg

from shards.postgres.pools import Connection


async def disk_free(connection: Connection) -> int | None:
    """Bytes free where the server's data lies; None when that is not this machine's to see."""
    try:
        folder = Path(await connection.fetchval("SHOW data_directory"))
        return shutil.disk_usage(folder).free
    except (asyncpg.InsufficientPrivilegeError, OSError):
        return None
