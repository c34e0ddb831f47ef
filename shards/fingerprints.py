"""Comparing a bucket's rows on two shards: whole rows, by hour, not only their number."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final, TypeAlias

from shards.errors import ClusterError
from shards.kinds import KINDS, Kind
from shards.pools import Connection
from shards.sql import quote_identifier

Fingerprints: TypeAlias = Mapping[object, tuple[int, int, object]]  # hour -> count, xor and sum of the rows' hashes

# The hash of a record may differ between major versions; then the text of the row is hashed.
SAME_MAJOR: Final = "hash_record_extended(h, 0)"
ANY_MAJOR: Final = "('x' || substr(md5(h::text), 1, 16))::bit(64)::bigint"
_HISTORY: Final = """
SELECT date_trunc('hour', timestamp) AS at, count(*) AS rows, bit_xor({hash}) AS xor, sum({hash}::numeric) AS total
FROM {table} AS h WHERE ingested_at >= $1 AND ingested_at < $2 GROUP BY 1
"""
_STATUS: Final = """
SELECT 0 AS at, count(*) AS rows, coalesce(bit_xor({hash}), 0) AS xor, sum({hash}::numeric) AS total FROM {table} AS h
"""


class Different(ClusterError):
    """The target's rows are not the source's: no cutover."""


def bucket_table(root: str, bucket: int) -> str:
    """Name of the table that holds a bucket's rows of one root table."""
    return f"{root}_b{bucket:04d}"


def hash_of(source: Connection, target: Connection) -> str:
    """The SQL expression that hashes a row alike on both."""
    same = source.get_server_version().major == target.get_server_version().major
    return SAME_MAJOR if same else ANY_MAJOR


async def history(
    connection: Connection, kind: Kind, bucket: int, start: datetime, end: datetime, hashed: str
) -> Fingerprints:
    """Fingerprints of the rows with `start <= ingested_at < end`."""
    table = quote_identifier(bucket_table(kind.history, bucket))
    records = await connection.fetch(_HISTORY.format(table=table, hash=hashed), start, end)
    return {record["at"]: (record["rows"], record["xor"], record["total"]) for record in records}


async def status(connection: Connection, kind: Kind, bucket: int, hashed: str) -> Fingerprints:
    """Fingerprint of all statuses of a bucket."""
    table = quote_identifier(bucket_table(kind.status, bucket))
    record = (await connection.fetch(_STATUS.format(table=table, hash=hashed)))[0]
    return {"status": (record["rows"], record["xor"], record["total"])}


async def compare_history(source: Connection, target: Connection, bucket: int, start: datetime, end: datetime) -> int:
    """Number of rows that are the same on both. Different when they are not the same rows."""
    hashed, total = hash_of(source, target), 0
    for kind in KINDS:
        theirs = await history(source, kind, bucket, start, end, hashed)
        ours = await history(target, kind, bucket, start, end, hashed)
        _check(f"{kind} readings of bucket {bucket}", theirs, ours)
        total += sum(rows for rows, _, _ in theirs.values())
    return total


async def compare_status(source: Connection, target: Connection, bucket: int) -> None:
    """Different when the statuses are not the same rows."""
    hashed = hash_of(source, target)
    for kind in KINDS:
        theirs = await status(source, kind, bucket, hashed)
        _check(f"{kind} statuses of bucket {bucket}", theirs, await status(target, kind, bucket, hashed))


def _check(what: str, source: Fingerprints, target: Fingerprints) -> None:
    if source == target:
        return
    first = min((at for at in {*source, *target} if source.get(at) != target.get(at)), key=str)
    count = [side.get(first, (0,))[0] for side in (source, target)]
    where = f", hour {first:%Y-%m-%dT%H}" if isinstance(first, datetime) else ""
    message = f"verification failed: {what} differ{where}: {count[0]} on the source, {count[1]} on the target"
    raise Different(message)
