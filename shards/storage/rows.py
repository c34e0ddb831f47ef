"""What a statement on one shard gives: rows, and which of the asked buckets the shard owned in its snapshot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

from shards.errors import ForeignTenant
from shards.postgres.connections import Connection, cut
from shards.postgres.transactions import transaction

Record: TypeAlias = dict[str, Any]  # a row: column name -> value

# Planning a query over all leaves takes longer than running it (activity: 1.9 ms, and 0.6 ms with a generic plan). The
# sums over a window are the exception: how to read depends on how much of the history the window covers.
SESSION: Final = {"plan_cache_mode": "force_generic_plan"}
_PLAN_ANEW: Final = "SET LOCAL plan_cache_mode = force_custom_plan"
# What the session serves comes back with every answer: rows of another tenant than the caller's would be noticed.
_SERVED: Final = "current_setting('voltroute.tenant', true) AS served"
# As texts: they stand in every row, are read in the first, and the driver makes a text in a tenth of an array's time.
COVERED: Final = (
    "(SELECT string_agg(bucket::text, ',') FROM readable_bucket WHERE bucket = ANY($1::smallint[])) AS covered, "
    + _SERVED
)
COVERED_ONE: Final = "o.bucket::text AS covered, " + _SERVED  # of `readable_bucket AS o`, for one bucket


@dataclass(frozen=True)
class Reader:
    """A connection to a shard that serves one tenant."""

    connection: Connection
    tenant: int


@dataclass(frozen=True)
class Rows:
    """Rows of a query, the buckets it was asked for, and those of them that the shard owned.

    `packed_until`: before it the tiers that the statement looked at may lack readings; None when they cannot.
    `archived_until`: there are no rows before it, because readings are archived. `singly`: too much of it would have
    been read one by one, and was not: the readings themselves are to be asked.
    """

    asked: frozenset[int]
    covered: frozenset[int]
    rows: list[Record]
    packed_until: datetime | None = None
    archived_until: datetime | None = None
    singly: bool = False


async def fetch_rows(
    reader: Reader, sql: str, key: str, buckets: int | Sequence[int], *arguments: object, anew: bool = False
) -> Rows:
    """Run a statement whose rows hold `covered` and `served` beside the item; the last parameter is the tenant.

    An item without `key` is only the outer join's. `anew`: planned for these arguments instead of once for all.
    ForeignTenant when the session did not serve the reader's tenant.
    """
    connection = reader.connection
    asked = frozenset([buckets] if isinstance(buckets, int) else buckets)
    given = (buckets, *arguments, reader.tenant)
    if anew:
        async with transaction(connection, readonly=True):
            await connection.execute(_PLAN_ANEW)
            records = await connection.fetch(sql, *given)
    else:
        records = await connection.fetch(sql, *given)
    if records and records[0]["served"] != str(reader.tenant):
        cut(connection)
        raise ForeignTenant(f"a session of tenant {records[0]['served']} was asked for tenant {reader.tenant}")
    told = records[0]["covered"] if records else None
    covered = frozenset(map(int, told.split(","))) if told else frozenset[int]()
    rows = [dict(record) for record in records if record[key] is not None]
    for row in rows:
        del row["covered"], row["served"]
        row.pop("packed_until", None)
        row.pop("archived_until", None)
        row.pop("singly", None)
    first: Mapping[str, Any] = dict(records[0]) if records else {}
    until = first.get("packed_until"), first.get("archived_until")
    return Rows(asked, covered, rows, *until, singly=bool(first.get("singly")))
