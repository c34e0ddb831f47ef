"""Writing a batch of one kind to one shard: history and status in one statement, one round trip, one transaction."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final, TypeAlias

from shards.kinds import KINDS, Kind, Row
from shards.postgres.pools import Connection
from shards.postgres.sql import for_kind

# The (device id, timestamp) of the readings that were new; None when all were.
NewReadings: TypeAlias = set[tuple[str, datetime]] | None

# `stored` is aggregated only when something was a duplicate: the sub-selects of a CASE that is not taken never run.
_WRITE: Final = """
WITH input AS MATERIALIZED (
    SELECT * FROM unnest($1::smallint[], $2::varchar[], $3::timestamptz[], {value_arrays}, {newest_array})
    AS t (bucket, {id}, timestamp, {values}, newest)
), stored AS (
    INSERT INTO {history} (bucket, {id}, timestamp, {values})
    SELECT bucket, {id}, timestamp, {values} FROM input
    ON CONFLICT DO NOTHING
    RETURNING {id}, timestamp
), refreshed AS (
    INSERT INTO {status} AS known (bucket, {id}, last_updated, {values})
    SELECT bucket, {id}, timestamp, {values} FROM input WHERE newest
    ON CONFLICT ({id}, tenant_id, bucket) DO UPDATE
    SET last_updated = excluded.last_updated, {new_values}
    WHERE excluded.last_updated > known.last_updated
), counted AS (
    SELECT count(*) AS new_count FROM stored
)
SELECT
    new_count,
    CASE WHEN new_count < cardinality($1) THEN (SELECT array_agg({id}) FROM stored) END AS ids,
    CASE WHEN new_count < cardinality($1) THEN (SELECT array_agg(timestamp) FROM stored) END AS timestamps
FROM counted
"""
_WRITE_SQL: Final = {kind: for_kind(_WRITE, kind) for kind in KINDS}


def _ordered(rows: Sequence[Row]) -> tuple[list[Row], list[bool]]:
    """Rows in the order in which every batch locks (bucket, device, time), and which is its device's newest.

    Descending, so that of two readings with one key both history and status keep the same one.
    """
    ordered = sorted(rows, reverse=True)
    newest: list[bool] = []
    previous = ""
    for row in ordered:
        newest.append(row[1] != previous)
        previous = row[1]
    return ordered, newest


async def write(connection: Connection, kind: Kind, rows: Sequence[Row], timeout_s: float) -> NewReadings:
    """Store `rows` (at least one) and return which were new; on return they are committed.

    Raises what the driver raises: nothing of the batch is stored then.
    """
    ordered, newest = _ordered(rows)
    columns = [*zip(*ordered, strict=True), newest]
    result = (await connection.fetch(_WRITE_SQL[kind], *columns, timeout=timeout_s))[0]
    if result["new_count"] == len(rows):
        return None
    return set(zip(result["ids"] or (), result["timestamps"] or (), strict=True))
