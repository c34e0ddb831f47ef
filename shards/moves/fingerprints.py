"""Comparing a bucket's rows on two shards: whole rows by hour ; differences.py goes on row by row."""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Final, TypeAlias

from shards.errors import MoveError
from shards.postgres.connections import Connection
from shards.postgres.sql import quote_identifier
from shards.storage.roots import StoredKind

Fingerprints: TypeAlias = Mapping[object, tuple[int, int, object]]  # hour -> count, xor and sum of the rows' hashes
Tables: TypeAlias = Mapping[str, str]  # root of history -> table
Kinds: TypeAlias = Sequence[StoredKind]

# The hash of a record may differ between major versions; then the text of the row is hashed.
SAME_MAJOR: Final = "hash_record_extended({row}, 0)"
ANY_MAJOR: Final = "('x' || substr(md5(({row})::text), 1, 16))::bit(64)::bigint"
_HISTORY: Final = """
SELECT date_trunc('hour', timestamp) AS at, count(*) AS rows, bit_xor({hash}) AS xor, sum({hash}::numeric) AS total
FROM {table} AS h WHERE {where} GROUP BY 1
"""
_BETWEEN: Final = "ingested_at >= $1 AND ingested_at < $2"
# Statuses of devices with readings ingested since $1: each change of a status comes with a new reading.
CHANGED: Final = "{id} IN (SELECT {id} FROM {history} WHERE ingested_at >= $1)"
_STATUS: Final = """
SELECT 0 AS at, count(*) AS rows, coalesce(bit_xor({hash}), 0) AS xor, sum({hash}::numeric) AS total
FROM {table} AS h WHERE bucket = $2 AND {where}
"""
_DAYS: Final = """
SELECT day, count(*) AS rows, bit_xor({hash}) AS xor, sum({hash}::numeric) AS total FROM {table} AS h GROUP BY 1
"""


class Different(MoveError):
    """One side's rows are not the other's: no cutover, and nothing is dropped."""


def hash_of(one: Connection, other: Connection) -> str:
    """The SQL expression that hashes a `{row}` of a kind alike on both."""
    same = one.get_server_version().major == other.get_server_version().major
    return SAME_MAJOR if same else ANY_MAJOR


async def history(
    connection: Connection,
    tables: Tables,
    kind: StoredKind,
    hashed: str,
    window: tuple[datetime, datetime] | None = None,
) -> Fingerprints:
    """Fingerprints of a bucket's history; `window`: only rows with start <= ingested_at < end."""
    table = quote_identifier(tables[kind.history])
    sql = _HISTORY.format(table=table, hash=hashed.format(row=kind.row), where=_BETWEEN if window else "true")
    records = await connection.fetch(sql, *(window or ()))
    return {record["at"]: (record["rows"], record["xor"], record["total"]) for record in records}


async def compare_history(
    one: Connection, other: Connection, tables: tuple[Tables, Tables], kinds: Kinds, window: tuple[datetime, datetime]
) -> int:
    """Number of rows ingested in `window` that are the same on both. Different when they are not the same rows."""
    hashed, total = hash_of(one, other), 0
    for kind in kinds:
        theirs = await history(one, tables[0], kind, hashed, window)
        ours = await history(other, tables[1], kind, hashed, window)
        _check(f"{kind} readings", theirs, ours)
        total += sum(rows for rows, _, _ in theirs.values())
    return total


async def compare_changed_status(
    one: Connection, other: Connection, tables: tuple[Tables, Tables], kinds: Kinds, changed: tuple[int, datetime]
) -> None:
    """Different when statuses of devices of a bucket with readings ingested since a time are not the same rows."""
    hashed, (bucket, since) = hash_of(one, other), changed
    for kind in kinds:
        found: list[Fingerprints] = []
        for connection, own in zip((one, other), tables, strict=True):
            where = CHANGED.format(id=quote_identifier(kind.id_column), history=quote_identifier(own[kind.history]))
            sql = _STATUS.format(
                table=quote_identifier(kind.status), hash=hashed.format(row=kind.status_row), where=where
            )
            record = (await connection.fetch(sql, since, bucket))[0]
            found.append({"status": (record["rows"], record["xor"], record["total"])})
        _check(f"{kind} statuses", *found)


async def compare_rollups(one: Connection, other: Connection, rollups: Kinds, bucket: int) -> None:
    """Different when a bucket's rows of rollups are not the same."""
    hashed = hash_of(one, other)
    for kind in rollups:
        sql = _STATUS.format(
            table=quote_identifier(kind.status), hash=hashed.format(row=kind.status_row), where="$1::text IS NULL"
        )
        found: list[Fingerprints] = []
        for connection in (one, other):
            record = (await connection.fetch(sql, None, bucket))[0]
            found.append({"sums": (record["rows"], record["xor"], record["total"])})
        _check(kind.name, *found)


def _check(what: str, one: Fingerprints, other: Fingerprints) -> None:
    if one == other:
        return
    first = min((at for at in {*one, *other} if one.get(at) != other.get(at)), key=str)
    count = [side.get(first, (0,))[0] for side in (one, other)]
    where = f", hour {first:%Y-%m-%dT%H}" if isinstance(first, datetime) else ""
    message = f"verification failed: {what} differ{where}: {count[0]} on the one side, {count[1]} on the other"
    raise Different(message)


async def differing_days(
    one: Connection, other: Connection, tables: tuple[Tables, Tables], packed: Kinds
) -> list[tuple[StoredKind, date]]:
    """(kind, day) of packed days that are not the same rows on both sides. By text: not every type has a hash."""
    found: list[tuple[StoredKind, date]] = []
    for kind in packed:
        sides: list[dict[date, object]] = []
        for connection, own in zip((one, other), tables, strict=True):
            sql = _DAYS.format(table=quote_identifier(own[kind.history]), hash=ANY_MAJOR.format(row=kind.row))
            sides.append({record["day"]: tuple(record) for record in await connection.fetch(sql)})
        days = sorted({*sides[0], *sides[1]})
        found += [(kind, day) for day in days if sides[0].get(day) != sides[1].get(day)]
    return found


async def differing_hours(
    giver: Connection, taker: Connection, tables: tuple[Tables, Tables], kinds: Kinds
) -> list[tuple[StoredKind, datetime]]:
    """(kind, hour) in which the giver has rows that are not the taker's, by content, whatever any clock said."""
    hashed, found = hash_of(giver, taker), []
    for kind in kinds:
        # The giver first: what is carried meanwhile can only make the sides more alike.
        theirs = await history(giver, tables[0], kind, hashed)
        ours = await history(taker, tables[1], kind, hashed)
        found += [(kind, at) for at, seen in theirs.items() if ours.get(at) != seen and isinstance(at, datetime)]
    return sorted(found, key=lambda each: (each[0].name, each[1]))
