"""Readings of all tiers as one: hot leaves, late readings, packed days. What holds what is decided in one snapshot.

A leaf whose days were published as packed may still be attached, and is left out by its identity; days that are packed
and not published yet are left out by their bucket's horizon. A statement that would have to read what is archived ends
in an error, from the same snapshot: what it found would be short.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Final

from shards.kinds import Kind
from shards.postgres.connections import Connection
from shards.postgres.sql import quote_identifier
from shards.storage.packing import Column, Shape, readings

HOT: Final = 1
LATE: Final = 2
PACKED: Final = 4
ROLLUPS: Final = 8
NAMES: Final = {HOT: "hot", LATE: "late", PACKED: "packed", ROLLUPS: "rollups"}
# What is published of a bucket's kind; NULL: nothing.
PACKED_UNTIL: Final = "(SELECT max(packed_until) FROM tier WHERE kind = {kind} AND bucket = ANY($1::smallint[]))"
PACKED_UNTIL_ONE: Final = "(SELECT packed_until FROM tier WHERE kind = {kind} AND bucket = $1)"
# The end of the newest archived time that begins up to {until}; NULL: none does.
ARCHIVED_UNTIL: Final = (
    "(SELECT max(upper(gone)) FROM tier AS ar, unnest(ar.archived) AS gone "
    "WHERE ar.kind = {kind} AND ar.bucket = ANY($1::smallint[]) AND lower(gone) <= {until})"
)
ARCHIVED_UNTIL_ONE: Final = ARCHIVED_UNTIL.replace("ANY($1::smallint[])", "$1")
_HORIZONS: Final = "SELECT bucket, frozen_until FROM tier WHERE kind = $1"
_ATTACHED: Final = "{row}.tableoid <> ALL(ARRAY(SELECT table_oid FROM packed_leaf))"


@dataclass(frozen=True)
class Place:
    """Which readings: conditions in SQL. `{row}` is what they are asked of, with bucket, device and tenant_id.

    `which` begins with the one on the bucket. `after` and `until`: times, or None for no limit. `guarded`: a statement
    that meets archived time ends in an error; else its caller looks after that.
    """

    which: str
    after: str | None = None
    until: str | None = None
    guarded: bool = True

    def of_row(self, row: str) -> str:
        """The condition on readings `row`."""
        return " AND ".join([self.which.replace("{row}", row), *self.when(row)])

    def when(self, row: str) -> list[str]:
        """What `of_row` says about the time."""
        after = [f"{row}.timestamp > {self.after}"] if self.after else []
        return after + ([f"{row}.timestamp <= {self.until}"] if self.until else [])

    def of_day(self, row: str) -> str:
        """The condition on packed days `row` that may hold some."""
        found = [self.which.replace("{row}", row)]
        found += [f"{row}.day >= ({self.after} AT TIME ZONE 'UTC')::date"] if self.after else []
        if self.until:
            # A day of which the period has an instant is unpacked only if its first reading is in it.
            last = f"({self.until} AT TIME ZONE 'UTC')::date"
            first = f"{row}.day::timestamp AT TIME ZONE 'UTC' + {row}.t_base * {row}.unit * interval '1 microsecond'"
            found.append(f"{row}.day <= {last} AND ({row}.day < {last} OR {first} <= {self.until})")
        return " AND ".join(found)

    def of_tier(self, row: str) -> str:
        """A condition on a bucket's row of `tier` that is never true: an error, where some of the place is archived."""
        bucket = self.which.partition(" AND ")[0].replace("{row}", row)
        after, until = (f"{each}::timestamptz" if each else "NULL" for each in (self.after, self.until))
        # CASE: in this order, whatever the planner takes for cheap.
        refused = f"refuse_archived({row}.kind, {row}.archived)"
        return f"{bucket} AND CASE WHEN is_archived({row}.archived, {after}, {until}) THEN {refused} END"


ONE: Final = "{row}.bucket = $1 AND {row}.{id} = $2 AND {row}.tenant_id = {tenant}"
SEVERAL: Final = "{row}.bucket = ANY($1::smallint[]) AND {row}.tenant_id = {tenant}"


@cache
def shape_of(kind: Kind) -> Shape:
    """What a kind's packed days hold."""
    return Shape(kind.id_column, tuple(Column(field.column, field.type) for field in kind.stored))


def names(found: int) -> list[str]:
    """The tiers in a sum of them."""
    return [name for tier, name in NAMES.items() if found & tier]


def columns_of(kind: Kind, wanted: Iterable[str | None]) -> tuple[Column, ...]:
    """Those of a kind's columns that are called so, each once."""
    asked = set(wanted)
    return tuple(column for column in shape_of(kind).columns if column.name in asked)


def days(kind: Kind, place: Place) -> str:
    """A sub-select of the published packed days of a place."""
    packed_root = quote_identifier(kind.packed)
    found = (
        f"SELECT pd.* FROM {packed_root} AS pd JOIN tier AS o ON o.bucket = pd.bucket "
        f"AND o.kind = '{kind.name}' AND pd.day < (o.packed_until AT TIME ZONE 'UTC')::date WHERE {place.of_day('pd')}"
    )
    if place.guarded:
        found += (
            f" UNION ALL SELECT (NULL::{packed_root}).* FROM tier AS ar WHERE ar.kind = '{kind.name}' "
            f"AND {place.of_tier('ar')}"
        )
    return f"({found})"


def hot(kind: Kind, place: Place, columns: Sequence[Column], more: str = "") -> str:
    """Readings in leaves that are not packed. `more`: of each row, beside its key and values."""
    where = f"{place.of_row('h')} AND {_ATTACHED.format(row='h')}"
    return _plain(kind.history, kind, columns, more, HOT) + where


def late(kind: Kind, place: Place, columns: Sequence[Column], more: str = "") -> str:
    """Readings that came when their time was frozen."""
    return _plain(kind.late, kind, columns, more, LATE) + place.of_row("h")


def packed(kind: Kind, place: Place, columns: Sequence[Column], more: str = "", rows: str | None = None) -> str:
    """Readings of packed days; of `rows` alone, a sub-select of days, where it is given."""
    found = readings(shape_of(kind), rows or days(kind, place), columns)
    when = " AND ".join(place.when("h")) or "true"
    listed = _listed(kind, columns, more)
    return f"SELECT {listed}, {PACKED} AS tier FROM ({found}) AS h WHERE {when}"


def newest_days(kind: Kind, place: Place, enough: str, counted: str = "pd.n") -> str:
    """The newest packed days of one device that hold `enough` readings (SQL), and one more: its newest may lie outside.

    `counted`: how many readings a day `pd` counts for.
    """
    return _first_days(kind, place, enough, counted, "pd.day DESC")


def oldest_days(kind: Kind, place: Place, enough: str) -> str:
    """The oldest ones, likewise."""
    return _first_days(kind, place, enough, "pd.n", "pd.day")


def _first_days(kind: Kind, place: Place, enough: str, counted: str, order: str) -> str:
    before = f"ORDER BY {order} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING"
    return f"""(
    SELECT * FROM (
        SELECT pd.*,
            coalesce(sum({counted}) OVER ({before}) - first_value({counted}) OVER (ORDER BY {order}), -1) AS before
        FROM {days(kind, place)} AS pd
    ) AS pd WHERE before < {enough}
)"""


def newest_days_of_all(kind: Kind, place: Place, enough: str) -> str:
    """The newest packed days of all devices that hold `enough` readings (SQL). The place has no `until`."""
    newer = "ORDER BY day DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING"
    return f"""(
    SELECT * FROM {days(kind, place)} AS pd WHERE day IN (
        SELECT day FROM (
            SELECT day, coalesce(sum(sum(n)) OVER ({newer}), 0) AS before FROM {days(kind, place)} AS e GROUP BY day
        ) AS f WHERE before < {enough}
    )
)"""


def source(kind: Kind, place: Place, columns: Sequence[Column]) -> str:
    """A sub-select of a place's readings of all tiers: bucket, tenant_id, device, timestamp, values, tier."""
    parts = (part(kind, place, columns) for part in (hot, late, packed))
    return "(" + " UNION ALL ".join(parts) + ")"


def _plain(root: str, kind: Kind, columns: Sequence[Column], more: str, tier: int) -> str:
    return f"SELECT {_listed(kind, columns, more)}, {tier} AS tier FROM {quote_identifier(root)} AS h WHERE "


def _listed(kind: Kind, columns: Sequence[Column], more: str) -> str:
    values = "".join(f", h.{column.quoted}" for column in columns)
    return f"h.bucket, h.tenant_id, h.{quote_identifier(kind.id_column)}, h.timestamp{more}{values}"


async def horizons(connection: Connection, kind: Kind, timeout_s: float) -> dict[int, datetime]:
    """Bucket -> up to when its readings of a kind are frozen."""
    records = await connection.fetch(_HORIZONS, kind.name, timeout=timeout_s)
    return {record["bucket"]: record["frozen_until"] for record in records}
