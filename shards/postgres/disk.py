"""Room for data, where that can be seen: only of servers on this machine."""

import shutil
from pathlib import Path
from typing import Final

import asyncpg

from shards.postgres.connections import Connection

# pg_default and pg_global have no location: they lie in the data directory. The log of changes may lie elsewhere.
_PLACES: Final = """
SELECT current_setting('data_directory') AS place UNION SELECT current_setting('data_directory') || '/pg_wal'
UNION SELECT pg_tablespace_location(used.oid) FROM (
    SELECT dattablespace AS oid FROM pg_database WHERE datname = current_database()
    UNION SELECT reltablespace FROM pg_class WHERE reltablespace <> 0
) AS used WHERE pg_tablespace_location(used.oid) <> ''
"""


async def disk_free(connection: Connection) -> int | None:
    """Bytes free on the fullest disk that a database needs; None when those are not this machine's to see."""
    try:
        places = [Path(record["place"]) for record in await connection.fetch(_PLACES)]
        return min(shutil.disk_usage(place).free for place in places)
    except (asyncpg.InsufficientPrivilegeError, OSError):
        return None
