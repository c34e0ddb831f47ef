"""The mark up to which a shard's history is complete: nothing that was ingested before it is still to come."""

from datetime import datetime
from typing import Final

from shards.errors import ClusterError
from shards.postgres.connections import Connection
from shards.postgres.sessions import MOVER

# A transaction that began before the mark may still commit readings ingested before it: the mark is the oldest of
# these, and a little before, because a backend takes its transaction's time a moment before it shows it.
_LOW_WATER: Final = """
SELECT least(min(xact_start), clock_timestamp()) - interval '2 seconds' AS mark, clock_timestamp() AS clock,
    pg_has_role(current_user, 'pg_read_all_stats', 'usage') AS sees_all,
    (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()) AS prepared
FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend'
    AND NOT starts_with(application_name, $1) AND usename IS DISTINCT FROM $2 AND pid <> pg_backend_pid()
"""


async def low_water(connection: Connection, reader_login: str | None) -> tuple[datetime, datetime]:
    """The mark of the shard, and its clock. ClusterError when the mark cannot be known."""
    record = (await connection.fetch(_LOW_WATER, MOVER, reader_login))[0]
    if not record["sees_all"]:
        message = "its owner does not see what others do: GRANT pg_read_all_stats to it"
        raise ClusterError(message)
    if record["prepared"]:
        message = "a prepared transaction is open there: what it holds cannot be seen; commit it or roll it back"
        raise ClusterError(message)
    return record["mark"], record["clock"]
