"""Writing a batch of one kind to one shard: history and status in one statement, one round trip, one transaction."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache, lru_cache
from operator import itemgetter
from typing import Final, TypeAlias

import asyncpg

from shards.clock import deadline_in, remaining
from shards.kinds import VALUES_AT, Field, Kind, Row
from shards.postgres.connections import Connection
from shards.postgres.sql import for_kind, measured_at, quote_identifier
from shards.storage.repeats import Repeats

Key: TypeAlias = tuple[int, str, datetime]  # tenant, device id, timestamp


@dataclass(frozen=True, slots=True)
class Written:
    """Keys of the readings that were new (None: all were), and the stored values of the others, by key.

    `too_old`: keys of those that were not taken, because their time is archived, or about to be.
    """

    new: set[Key] | None
    stored: Mapping[Key, tuple[object, ...]] = field(default_factory=dict)
    too_old: frozenset[Key] = frozenset()


def together(parts: Iterable[tuple[Sequence[Row], Written]]) -> Written:
    """What became of the parts of a batch, each with its rows."""
    new: set[Key] = set()
    stored: dict[Key, tuple[object, ...]] = {}
    too_old: frozenset[Key] = frozenset()
    for rows, written in parts:
        new |= {row[1:VALUES_AT] for row in rows} if written.new is None else written.new
        stored |= written.stored
        too_old |= written.too_old
    return Written(new, stored, too_old)


_INPUT: Final = """
WITH input AS MATERIALIZED (
    SELECT * FROM unnest(
        $1::smallint[], $2::smallint[], $3::varchar[], $4::timestamptz[], {value_arrays}{newest_array}
    ) AS t (bucket, tenant_id, {id}, timestamp, {values}{newest})
), stored AS (
    INSERT INTO {history} (bucket, tenant_id, {id}, timestamp, {values})
    SELECT bucket, tenant_id, {id}, timestamp, {values} FROM input{skipping}
    RETURNING {returned}
), refreshed AS ("""
# What is new for sure costs no look for each key, and no insertion in two steps: a quarter of PostgreSQL's work on a
# large batch. A repeat is an error then, and nothing of the batch is stored. Counting is what makes history come first.
_ALL_NEW: Final = """
)
SELECT count(*) AS new_count FROM stored
"""
_SKIPPING: Final = """
    ON CONFLICT DO NOTHING"""
# It is aggregated only when something was a duplicate: the sub-selects of a CASE that is not taken never run.
_NEW: Final = """
), counted AS (
    SELECT count(*) AS new_count FROM stored
)
SELECT
    new_count,
    CASE WHEN new_count < cardinality($1) THEN (SELECT array_agg(tenant_id) FROM stored) END AS tenants,
    CASE WHEN new_count < cardinality($1) THEN (SELECT array_agg({id}) FROM stored) END AS ids,
    CASE WHEN new_count < cardinality($1) THEN (SELECT array_agg(timestamp) FROM stored) END AS timestamps
FROM counted
"""
_WHOLE: Final = """
    INSERT INTO {status} AS known (bucket, tenant_id, {id}, last_updated{current})
    SELECT bucket, tenant_id, {id}, timestamp{current} FROM input WHERE newest
    ON CONFLICT ({id}, tenant_id, bucket) DO UPDATE
    SET last_updated = excluded.last_updated, {new_values}
    WHERE excluded.last_updated > known.last_updated"""
# A status that keeps values has the time of each beside it. Only what was stored counts: a repeat with other values
# must not bring in what its first one lacked. Times never go back, and greatest() skips NULL.
_KEPT: Final = """
    INSERT INTO {status} AS known (bucket, tenant_id, {id}, last_updated{current}{times})
    {newest_of_each}
    ON CONFLICT ({id}, tenant_id, bucket) DO UPDATE
    SET last_updated = greatest(excluded.last_updated, known.last_updated){merged_values}
    WHERE {has_newer}"""
# Each device once in the batch.
_SINGLE: Final = "SELECT bucket, tenant_id, {id}, timestamp{current}{times_of_each} FROM stored"
# In the order in which every batch locks: that of the input (see _ordered), which grouping loses.
_SEVERAL: Final = """SELECT bucket, tenant_id, {id}, max(timestamp){last_of_each}{times_of_each} FROM stored
    GROUP BY bucket, tenant_id, {id} ORDER BY bucket DESC, tenant_id DESC, {id} DESC"""
# LATERAL: a look by key for each; a plan that reads whole leaves must not be to choose from.
_STORED: Final = """
SELECT h.*
FROM unnest($1::smallint[], $2::smallint[], $3::varchar[], $4::timestamptz[]) AS t (bucket, tenant, device, moment)
CROSS JOIN LATERAL (
    SELECT tenant_id, {id}, timestamp, {values} FROM {history}
    WHERE bucket = t.bucket AND {id} = t.device AND timestamp = t.moment AND tenant_id = t.tenant
    LIMIT 1
) AS h
"""
_VARIANTS_MAX: Final = 256  # of statements: devices of a fleet leave out the same fields
_NEWER: Final = "excluded.last_updated > known.last_updated"


@lru_cache(_VARIANTS_MAX)
def _statement(kind: Kind, left_out: tuple[int, ...], *, several: bool = False, all_new: bool = False) -> str:
    """The statement for batches in which nobody has these fields: arrays less to encode, to send and to unnest.

    A status still gets all values anew, but for those that it keeps: the register of the reading before is not this
    one's. `several`: some device has more than one reading in the batch; told only of kinds with kept fields.
    `all_new`: it raises UniqueViolationError when a reading is stored already.
    """
    counted = _ALL_NEW if all_new else _NEW
    present = replace(kind, fields=tuple(field for at, field in enumerate(kind.fields) if at not in left_out))
    if kind.kept:
        template = _INPUT + _KEPT.replace("{newest_of_each}", _SEVERAL if several else _SINGLE) + counted
        names = _kept_names(kind, present, several=several)
    else:
        template, names = (
            _INPUT + _WHOLE + counted,
            {"{newest}": ", newest", "{returned}": "tenant_id, {id}, timestamp"},
        )
        names["{newest_array}"] = f", ${VALUES_AT + 1 + len(present.fields)}::boolean[]"
        names["{new_values}"] = ", ".join(f"{name} = excluded.{name}" for name in _quoted(kind.in_status))
    names["{skipping}"] = "" if all_new else _SKIPPING
    names["{current}"] = "".join(f", {name}" for name in _quoted(present.in_status))
    for placeholder, text in names.items():
        template = template.replace(placeholder, text)
    return for_kind(template, present)


def refreshing(kind: Kind) -> str:
    """The upsert of statuses from `stored`, rows of history with several of a device, as every batch locks them."""
    text = _KEPT.replace("{newest_of_each}", _SEVERAL)
    names = _kept_names(kind, kind, several=True)
    names["{current}"] = "".join(f", {name}" for name in _quoted(kind.in_status))
    for placeholder, name in names.items():
        text = text.replace(placeholder, name)
    return for_kind(text, kind)


def _quoted(fields: Iterable[Field]) -> list[str]:
    return [quote_identifier(each.column) for each in fields]


def _kept_names(kind: Kind, present: Kind, *, several: bool) -> dict[str, str]:
    """What fills the statement of a kind whose status keeps the newest value of some fields."""
    plain = _quoted(each for each in kind.in_status if not each.kept)
    merged = [f"{name} = CASE WHEN {_NEWER} THEN excluded.{name} ELSE known.{name} END" for name in plain]
    newer = [_NEWER]
    for each in present.kept:
        name, time = quote_identifier(each.column), quote_identifier(each.time_column)
        measured = measured_at(each.column, each.time_column, "known")
        is_newer = f"excluded.{time} > {measured}"
        newer.append(is_newer)
        merged.append(f"{name} = CASE WHEN {is_newer} THEN excluded.{name} ELSE known.{name} END")
        merged.append(f"{time} = CASE WHEN {is_newer} THEN excluded.{time} ELSE nullif({measured}, '-infinity') END")
    last = "(array_agg({0} ORDER BY timestamp DESC){1})[1]"
    of_each = [
        last.format(name, f" FILTER (WHERE {name} IS NOT NULL)" if each.kept else "")
        for each, name in zip(present.in_status, _quoted(present.in_status), strict=True)
    ]
    time_of_each = (
        "max(timestamp) FILTER (WHERE {0} IS NOT NULL)" if several else "CASE WHEN {0} IS NOT NULL THEN timestamp END"
    )
    times = [quote_identifier(each.time_column) for each in present.kept]
    return {
        "{newest}": "",
        "{newest_array}": "",
        "{returned}": "bucket, tenant_id, {id}, timestamp, {values}",
        "{times}": "".join(f", {name}" for name in times),
        "{times_of_each}": "".join(f", {time_of_each.format(name)}" for name in _quoted(present.kept)),
        "{last_of_each}": "".join(f", {each}" for each in of_each),
        "{merged_values}": "".join(f", {each}" for each in merged),
        "{has_newer}": " OR ".join(newer),
    }


@cache
def _stored_statement(kind: Kind) -> str:
    return for_kind(_STORED, kind)


_by_key: Final = itemgetter(0, 1, 2, 3)


def _ordered(rows: Sequence[Row]) -> tuple[list[Row], list[bool], bool]:
    """Rows in the order in which every batch locks, which is its device's newest, and whether a key is there twice.

    By bucket, tenant, device and time, descending, so that the first row of a device is its newest. Of two with one key
    the one that arrived first comes first, and is the one that both history and status keep.
    """
    try:
        ordered = sorted(rows, reverse=True)  # whole rows: a third faster than by key
    except TypeError:  # a value that one row has and another with its key has not
        ordered = sorted(rows, key=_by_key, reverse=True)
    newest: list[bool] = []
    older: list[int] = []
    device, tenant = "", -1
    for row in ordered:
        if row[2] != device or row[1] != tenant:
            newest.append(True)
            device, tenant = row[2], row[1]
        else:
            older.append(len(newest))
            newest.append(False)
    twice = any(ordered[at][3] == ordered[at - 1][3] for at in older)
    if twice:
        ordered = sorted(rows, key=_by_key, reverse=True)  # stable: the values do not decide which one is first
    return ordered, newest, twice


async def write(connection: Connection, kind: Kind, rows: Sequence[Row], repeats: Repeats, timeout_s: float) -> Written:
    """Store `rows` (at least one) and return which were new; on return they are committed.

    Raises what the driver raises: nothing of the batch is stored then. `repeats`: of this shard and kind.
    """
    deadline = deadline_in(timeout_s)
    ordered, written = await _write(connection, kind, rows, repeats, deadline)
    if written.new is None:
        return written
    return Written(written.new, await stored(connection, kind, ordered, remaining(deadline)))


async def write_within(connection: Connection, kind: Kind, rows: Sequence[Row], timeout_s: float) -> Written:
    """The same inside a caller's transaction, in one statement that no repeat makes fail; `stored` is not looked up."""
    return (await _write(connection, kind, rows, None, deadline_in(timeout_s)))[1]


async def _write(
    connection: Connection, kind: Kind, rows: Sequence[Row], repeats: Repeats | None, deadline: float
) -> tuple[Sequence[Row], Written]:
    """The rows as they were sent, and which were new. `repeats`: None when one must not make the statement fail."""
    ordered, newest, twice = _ordered(rows)
    several = bool(kind.kept) and not all(newest)
    columns: list[Sequence[object]] = [*zip(*ordered, strict=True)]
    left_out = [at for at in kind.optional if columns[VALUES_AT + at].count(None) == len(rows)]
    if len(left_out) == len(kind.fields):  # a reading of nothing: only that it was there
        del left_out[0]
    for at in reversed(left_out):
        del columns[VALUES_AT + at]
    if not kind.kept:
        columns.append(newest)
    if not twice and repeats is not None and not repeats.expected:
        try:
            sql = _statement(kind, tuple(left_out), several=several, all_new=True)
            await connection.fetch(sql, *columns, timeout=remaining(deadline))
        except asyncpg.UniqueViolationError:
            repeats.met()
        else:
            return ordered, Written(None)
    sql = _statement(kind, tuple(left_out), several=several)
    result = (await connection.fetch(sql, *columns, timeout=remaining(deadline)))[0]
    all_new = result["new_count"] == len(rows)
    if repeats is not None:
        (repeats.missed if all_new else repeats.met)()
    if all_new:
        return ordered, Written(None)
    new = set(zip(*(result[name] or () for name in ("tenants", "ids", "timestamps")), strict=True))
    return ordered, Written(new)


async def stored(
    connection: Connection, kind: Kind, rows: Sequence[Row], timeout_s: float
) -> Mapping[Key, tuple[object, ...]]:
    """What is stored under the keys of a batch: after its COMMIT, so that it holds whoever came first.

    Empty when PostgreSQL refuses to say, or takes too long: the batch is committed, and only counts of its repeats
    depend on this.
    """
    columns = zip(*map(_by_key, rows), strict=True)
    try:
        records = await connection.fetch(_stored_statement(kind), *columns, timeout=timeout_s)
    except (asyncpg.PostgresError, TimeoutError):
        return {}
    return {(record[0], record[1], record[2]): tuple(record)[3:] for record in records}
