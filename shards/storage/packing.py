"""Packed readings: a row for a device and UTC day, its columns as planes of bytes. SQL text; a shard does the work.

A value becomes a whole number by the least power of ten that loses nothing, and only its difference to the one before
is kept: zigzag, the low byte of all in one plane, the second in another, the rest (rarely any) in an array. PostgreSQL
then compresses each plane. A column that this would change (no short decimals, values missing between others, text) is
kept as it is. What comes out is what went in, bit by bit; packing a row that was unpacked gives the same row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shards.kinds import Type
from shards.postgres.sql import quote_identifier

DECIMALS: Final = (0, 1, 2, 3, 4, 6)  # of these, the least that fits all values of a day
_FINEST: Final = max(DECIMALS)
SPAN_MAX: Final = 2**45  # of a day's values, as whole numbers: what the planes and the array hold of a difference
WHOLE_MAX: Final = 9e9  # times 10**6 it is still a whole number that float8 holds exactly
_DAY_US: Final = 86_400_000_000
MARKED: Final = 60  # one of so many readings of a day has its time written down
# A value as float8, which its own type gives back.
_AS_FLOAT: Final = {
    Type.FLOAT8: "{0}",
    Type.FLOAT4: "{0}::text::float8",
    Type.INT: "{0}::float8",
    Type.BOOL: "{0}::int::float8",
}
_FROM_FLOAT: Final = {
    Type.FLOAT8: "{0}",
    Type.FLOAT4: "{0}::float4",
    Type.INT: "{0}::int4",
    Type.BOOL: "{0}::int::bool",
}
# What two values are compared by: also 0.0 and -0.0 differ.
_BITS: Final = {Type.FLOAT8: "float8send({0})", Type.FLOAT4: "float4send({0})"}


@dataclass(frozen=True)
class Column:
    """A column of values, as history has it."""

    name: str
    type: Type

    def of(self, part: str) -> str:
        """The column of a packed row that holds one part of it."""
        return quote_identifier(f"{self.name}${part}")

    @property
    def quoted(self) -> str:
        return quote_identifier(self.name)

    @property
    def parts(self) -> tuple[str, ...]:
        """The columns of a packed row that hold it."""
        own = ("base", "scale", "low", "high", "rest", "raw") if self.type is not Type.TEXT else ("raw",)
        return tuple(self.of(part) for part in own)


@dataclass(frozen=True)
class Shape:
    """What is packed of a kind."""

    id_column: str
    columns: tuple[Column, ...]

    @property
    def key(self) -> str:
        return quote_identifier(self.id_column)

    @property
    def values(self) -> str:
        """The columns of values, in their order."""
        return "".join(f", {each.quoted}" for each in self.columns)

    @property
    def reading(self) -> str:
        """The columns of a reading: its key, then its values."""
        return f"{self.key}, tenant_id, bucket, timestamp{self.values}"

    @property
    def bits(self) -> str:
        """A reading as it is compared."""
        values = (_BITS.get(each.type, "{0}").format(each.quoted) for each in self.columns)
        return ", ".join([self.key, "tenant_id", "bucket", "timestamp", *values])

    @property
    def listed(self) -> str:
        """The columns of a packed row, in the order in which `packed_rows` gives them."""
        own = ("day", "bucket", "tenant_id", self.key, "n", "unit", "t_base", "t_step", "marks", "t_0", "t_1", "t_2")
        return ", ".join([*own, *(part for each in self.columns for part in each.parts)])


def _low(delta: str) -> str:
    return f"(((({delta}) + 32768) & 65535) - 32768)"


def _plane(delta: str, byte: int) -> str:
    zigzag = f"(({_low(delta)} << 1) # ({_low(delta)} >> 63))"
    return f"string_agg(substr(int8send({zigzag}), {8 - byte}, 1), ''::bytea)"


def _planes(delta: str) -> tuple[str, str, str]:
    """Both planes and the array of a column's differences; NULL where all of it is zero."""
    return (
        f"CASE WHEN bool_or({delta} <> 0) THEN {_plane(delta, 0)} END",
        f"CASE WHEN bool_or({delta} NOT BETWEEN -128 AND 127) THEN {_plane(delta, 1)} END",
        f"CASE WHEN bool_or({delta} NOT BETWEEN -32768 AND 32767) THEN array_agg((({delta} + 32768) >> 16)::int4) END",
    )


def _numeric(shape: Shape) -> list[tuple[int, Column]]:
    return [(at, each) for at, each in enumerate(shape.columns) if each.type is not Type.TEXT]


def _whole(at: int, column: Column) -> str:
    """The value in millionths (NULL: too large), and whether that says all of it."""
    value = _AS_FLOAT[column.type].format(column.quoted)
    back = _FROM_FLOAT[column.type].format(f"(round({value} * 1e6::float8) / 1e6::float8)")
    exact = f"{back} = {column.quoted}"
    if column.type in {Type.FLOAT8, Type.FLOAT4}:
        exact += f" AND ({column.quoted} <> 0 OR {column.quoted}::text = '0')"
    return (
        f", CASE WHEN abs({value}) <= {WHOLE_MAX:.0f} THEN round({value} * 1e6::float8)::int8 END AS _w{at}"
        f", coalesce(abs({value}) <= {WHOLE_MAX:.0f} AND {exact}, {column.quoted} IS NULL) AS _e{at}"
    )


def _judged(at: int, column: Column) -> str:
    """Over a device and day: the power of ten to divide by, and whether the column can be packed."""
    steps = " ".join(
        f"WHEN bool_and(_w{at} % {10 ** (_FINEST - scale)} = 0) OVER d THEN {scale}" for scale in DECIMALS[:-1]
    )
    return (
        f", (CASE {steps} ELSE {_FINEST} END)::int2 AS _s{at}"
        f", bool_and(_e{at}) OVER d AND count({column.quoted}) OVER d = count(*) OVER d AS _p{at}"
        f", max(_w{at}) OVER d - min(_w{at}) OVER d AS _r{at}"
    )


def _scaled(at: int) -> str:
    divisor = f"(ARRAY[1000000, 100000, 10000, 1000, 100, 10, 1])[_s{at} + 1]"
    return f", _w{at} / {divisor} AS _v{at}, _p{at} AND _r{at} / {divisor} < {SPAN_MAX} AS _k{at}"


def _parts(at: int, column: Column) -> list[str]:
    raw = f"array_agg({column.quoted})"
    if column.type is Type.TEXT:
        return [f"CASE WHEN count({column.quoted}) > 0 THEN {raw} END"]
    packs = f"bool_and(_k{at})"
    planes = _planes(f"_d{at}")
    first = f"CASE WHEN {packs} THEN (array_agg(_v{at}))[1] END"
    scale = f"CASE WHEN {packs} THEN min(_s{at}) END"
    return [first, scale, *planes, f"CASE WHEN NOT {packs} AND count({column.quoted}) > 0 THEN {raw} END"]


def packed_rows(shape: Shape, source: str, where: str = "true") -> str:
    """A query of the packed rows of `source` (a table or sub-select with history's columns), as `Shape.listed`.

    Its session must not aggregate by hashing (`SET LOCAL enable_hashagg = off`): the planes are in the order of the
    windows.
    """
    key, numeric = shape.key, _numeric(shape)
    whole = "".join(_whole(at, each) for at, each in numeric)
    judged = "".join(_judged(at, each) for at, each in numeric)
    scaled = "".join(_scaled(at) for at, _ in numeric)
    # Zero where the column is kept as it is: aggregates are computed whatever becomes of them.
    deltas = "".join(
        f", CASE WHEN _k{at} THEN coalesce(_v{at} - lag(_v{at}) OVER w, 0) ELSE 0 END AS _d{at}" for at, _ in numeric
    )
    parts = [part for at, each in enumerate(shape.columns) for part in _parts(at, each)]
    listed = ", ".join([*_planes("_dt"), *parts])
    local = "timestamp AT TIME ZONE 'UTC'"
    return f"""
SELECT _day, bucket, tenant_id, {key}, count(*)::int4, min(_unit)::int4, min(_at), min(_step),
    array_agg(_at) FILTER (WHERE _number % {MARKED} = 0), {listed}
FROM (
    SELECT *, row_number() OVER w - 1 AS _number, coalesce(_at - lag(_at) OVER w - _step, 0) AS _dt{deltas}
    FROM (
        SELECT *, _us / _unit AS _at,
            CASE WHEN _n > 1 THEN round((_last - _first)::float8 / (_n - 1) / 1e6::float8)::int8 ELSE 0 END
                * (1000000 / _unit) AS _step{scaled}
        FROM (
            SELECT *, count(*) OVER d AS _n, min(_us) OVER d AS _first, max(_us) OVER d AS _last,
                (CASE WHEN bool_and(_us % 1000000 = 0) OVER d THEN 1000000
                    WHEN bool_and(_us % 1000 = 0) OVER d THEN 1000 ELSE 1 END)::int8 AS _unit{judged}
            FROM (
                SELECT {key}, tenant_id, bucket, ({local})::date AS _day,
                    round(date_part('epoch', {local} - date_trunc('day', {local})) * 1e6::float8)::int8 AS _us
                    {shape.values}{whole}
                FROM {source} AS source WHERE {where}
            ) AS reading
            WINDOW d AS (PARTITION BY {key}, tenant_id, bucket, _day)
        ) AS judged
    ) AS scaled
    WINDOW w AS (PARTITION BY {key}, tenant_id, bucket, _day ORDER BY _at)
) AS delta
GROUP BY {key}, tenant_id, bucket, _day"""


def _difference(name: str) -> str:
    both = f"(coalesce(get_byte({name}a, i), 0) + coalesce(get_byte({name}b, i) * 256, 0))"
    return f"(({both} >> 1) # -({both} & 1))"


def _sum(name: str) -> str:
    return f"(sum({name}d) OVER o + coalesce(65536 * sum({name}c[i + 1]) OVER o, 0))"


def readings(shape: Shape, rows: str, wanted: Sequence[Column] | None = None) -> str:
    """A query of the readings in packed `rows` (a table or sub-select): key columns, timestamp, the `wanted` values.

    As a sub-select its rows have: the device's ID, tenant_id, bucket, timestamp, then the values. Only what is wanted
    is decompressed, once for each row.
    """
    columns = shape.columns if wanted is None else wanted
    flat = ["substring(t_0 FROM 1) AS ta", "substring(t_1 FROM 1) AS tb", "t_2 AS tc"]
    steps, values = [f"{_difference('t')} AS td", "tc"], []
    for at, each in enumerate(columns):
        name = f"v{at}"
        flat.append(f"{each.of('raw')} AS {name}r")
        steps.append(f"{name}r")
        if each.type is Type.TEXT:
            values.append(f"{name}r[i + 1] AS {each.quoted}")
            continue
        flat += [f"substring({each.of('low')} FROM 1) AS {name}a", f"substring({each.of('high')} FROM 1) AS {name}b"]
        flat += [f"{each.of('rest')} AS {name}c", f"{each.of('base')} AS {name}n"]
        flat.append(f"(ARRAY[1, 10, 100, 1000, 10000, 100000, 1000000])[{each.of('scale')} + 1]::float8 AS {name}s")
        steps += [f"{_difference(name)} AS {name}d", f"{name}c"]
        number = _FROM_FLOAT[each.type].format(f"((f.{name}n + {_sum(name)})::float8 / f.{name}s)")
        values.append(f"coalesce({name}r[i + 1], {number}) AS {each.quoted}")
    since = f"(p.day - date '1970-01-01') * {_DAY_US} + p.unit * (p.t_base + i::int8 * p.t_step + {_sum('t')})"
    listed = ", ".join([f"to_timestamp(({since})::float8 / 1e6::float8) AS timestamp", *values])
    return f"""
SELECT p.{shape.key}, p.tenant_id, p.bucket, u.*
FROM (SELECT * FROM {rows} AS packed OFFSET 0) AS p
CROSS JOIN LATERAL (SELECT {", ".join(flat)} OFFSET 0) AS f
CROSS JOIN LATERAL (
    SELECT {listed}
    FROM (SELECT i, {", ".join(steps)} FROM generate_series(0, p.n - 1) AS i) AS e
    WINDOW o AS (ORDER BY i ROWS UNBOUNDED PRECEDING)
) AS u"""


def times(shape: Shape, parts: str) -> str:
    """A query of the times in parts of packed days: `parts` (a sub-select) has their rows, and `part`, from 0.

    A part is the readings from one mark to the next. Its rows have: the device's ID, tenant_id, bucket, timestamp.
    """
    first = f"p.part * {MARKED}"
    flat = f"substring(t_0 FROM {first} + 1 FOR {MARKED}) AS ta, substring(t_1 FROM {first} + 1 FOR {MARKED}) AS tb"
    since = (
        f"(p.day - date '1970-01-01') * {_DAY_US} + p.unit * (p.marks[p.part + 1] + i::int8 * p.t_step + {_sum('t')})"
    )
    return f"""
SELECT p.{shape.key}, p.tenant_id, p.bucket, u.timestamp
FROM (SELECT * FROM {parts} AS parts OFFSET 0) AS p
CROSS JOIN LATERAL (SELECT {flat}, t_2[{first} + 1:{first} + {MARKED}] AS tc OFFSET 0) AS f
CROSS JOIN LATERAL (
    SELECT to_timestamp(({since})::float8 / 1e6::float8) AS timestamp
    FROM (
        SELECT i, CASE WHEN i > 0 THEN {_difference("t")} ELSE 0 END AS td,
            CASE WHEN i > 0 THEN tc ELSE NULL END AS tc
        FROM generate_series(0, least({MARKED}, p.n - {first}) - 1) AS i
    ) AS e
    WINDOW o AS (ORDER BY i ROWS UNBOUNDED PRECEDING)
) AS u"""


def part_of(row: str, moment: str) -> str:
    """The part of a packed day `row` that would hold a time (SQL): after the last mark that is not later; -1: none."""
    at = (
        f"floor(date_part('epoch', ({moment}) AT TIME ZONE 'UTC' - {row}.day::timestamp) * 1e6::float8 + 0.5)::int8"
        f" / {row}.unit"
    )
    return f"(SELECT count(*)::int4 - 1 FROM unnest({row}.marks) AS mark WHERE mark <= {at})"


def differing(shape: Shape, source: str, packed: str) -> str:
    """A query of how many rows of two sub-selects of readings are not the other's; both have a reading's columns."""
    one, other = (f"SELECT {shape.bits} FROM {each} AS side" for each in (source, packed))
    return f"""
SELECT (SELECT count(*) FROM ({one} EXCEPT ALL {other}) AS a)
    + (SELECT count(*) FROM ({other} EXCEPT ALL {one}) AS b)"""
