"""Rollups: sums of each device by the hour, and of each bucket and tenant by the minute. SQL that keeps them.

They hold exactly what was ingested before the bucket's mark (`tier.rolled_until`), and what is packed: readings are
only inserted, so that what comes later is added, and nothing is looked at twice. An hour, or a minute, holds the
readings after its beginning up to its end, as windows do: kWh belong to the interval that ends at a timestamp.
"""

from functools import cache
from typing import Final

from shards.kinds import Kind
from shards.postgres.sql import for_kind, quote_identifier
from shards.storage import parts
from shards.storage.packing import Column
from shards.storage.spans import FIELDS, ORIGIN
from shards.storage.tiers import PACKED, Place, columns_of, hot, late, packed

_INGESTED: Final = ", h.ingested_at"
_UNKNOWN: Final = ", NULL::timestamptz AS ingested_at"
SUMMED: Final = ("readings", "energies", "registers", "temperatures", "energy", "temperature")
_SUMS: Final = (
    "count(*) AS readings, count(energy) AS energies, count(register) AS registers, "
    "count(temperature) AS temperatures, "
    "coalesce(sum(energy), 0) AS energy, coalesce(sum(temperature), 0) AS temperature, max(kwh) AS most"
)
_ADDED: Final = ", ".join(f"{name} = k.{name} + excluded.{name}" for name in SUMMED)
_LISTED: Final = ", ".join([*SUMMED, "most"])
_NEW: Final = """
WITH new AS MATERIALIZED (
    SELECT h.bucket, h.tenant_id, h.{id} AS device, h.timestamp - interval '1 microsecond' AS before,
        {parts_energy} AS energy, {energy} AS kwh, {parts_temperature} AS temperature, {register} AS register
    FROM ({source}) AS h
)"""
_HOURS: Final = """
INSERT INTO {hourly} AS k (at, bucket, tenant_id, {id}, {listed}, minutes)
SELECT date_bin('1 hour', before, {origin}) AS at, bucket, tenant_id, device, {sums},
    bit_or(1::bigint << date_part('minute', before - date_bin('1 hour', before, {origin}))::integer)
FROM new GROUP BY 1, 2, 3, 4
ON CONFLICT ({id}, at, tenant_id, bucket) DO UPDATE
SET {added}, most = greatest(k.most, excluded.most), minutes = k.minutes | excluded.minutes"""
_MINUTES: Final = """
INSERT INTO {minutely} AS k (at, bucket, tenant_id, {listed})
SELECT date_bin('1 minute', before, {origin}) AS at, bucket, tenant_id, {sums} FROM new GROUP BY 1, 2, 3
ON CONFLICT (bucket, tenant_id, at) DO UPDATE SET {added}, most = greatest(k.most, excluded.most)"""
_STAGED_HOURS: Final = f"""
INSERT INTO {{hourly}} AS k (at, bucket, tenant_id, {{id}}, {_LISTED}, minutes, counts, counted_until)
SELECT at, bucket, tenant_id, {{id}}, {_LISTED}, minutes, counts, counted_until FROM {{table}} WHERE at >= $1
ON CONFLICT ({{id}}, at, tenant_id, bucket) DO UPDATE
SET {_ADDED}, most = greatest(k.most, excluded.most), minutes = k.minutes | excluded.minutes"""
_STAGED_MINUTES: Final = f"""
INSERT INTO {{minutely}} AS k (at, bucket, tenant_id, {_LISTED})
SELECT at, bucket, tenant_id, {_LISTED} FROM {{table}}
ON CONFLICT (bucket, tenant_id, at) DO UPDATE SET {_ADDED}, most = greatest(k.most, excluded.most)"""
_FORGET: Final = "DELETE FROM {table} WHERE bucket = $1 AND {at} >= $2"
_DAY_BEFORE: Final = "day < ($2::timestamptz AT TIME ZONE 'UTC')::date"
_DROP_OLD: Final = """
DELETE FROM {table}
WHERE ctid = ANY(ARRAY(SELECT ctid FROM {table} WHERE bucket = $1::smallint AND {which} LIMIT 20000))
"""
_FORGET_HOUR: Final = "DELETE FROM {hourly} WHERE bucket = $1 AND {id} = $2 AND at = $3 AND tenant_id = {tenant}"
_FORGET_MINUTE: Final = "DELETE FROM {minutely} WHERE bucket = $1 AND at = $2 AND tenant_id = {tenant}"
_AT: Final = "(d.day::timestamp AT TIME ZONE 'UTC') + (n - 1) * interval '1 hour'"
_OF_DAY: Final = f"""d.bucket, d.tenant_id, d.{{id}}, {_AT} AS at, u.readings,
        coalesce(u.energies, u.readings) AS energies, coalesce(u.registers, 0) AS registers,
        coalesce(u.temperatures, u.readings) AS temperatures, u.energy,
        coalesce(u.temperature, 0) AS temperature, u.most, u.minutes"""
_UNNESTED: Final = """CROSS JOIN LATERAL unnest(
        d.readings, d.energies, d.registers, d.temperatures, d.energy, d.temperature, d.most, d.minutes
    ) WITH ORDINALITY AS u (readings, energies, registers, temperatures, energy, temperature, most, minutes, n)"""
_UNFOLDED: Final = f"""
    SELECT k.bucket, k.tenant_id, k.{{id}}, k.at, {_LISTED}, k.minutes{{counts}}
    FROM {{hourly}} AS k WHERE {{of_row}} AND k.at >= {{first}} AND k.at < {{past}}
    UNION ALL
    SELECT {_OF_DAY}{{counts_of_day}} FROM {{daily}} AS d {_UNNESTED}{{unnested_counts}}
    WHERE {{of_day}} AND d.day >= ({{first}} AT TIME ZONE 'UTC')::date AND d.day <= ({{past}} AT TIME ZONE 'UTC')::date
        AND u.readings IS NOT NULL AND {_AT} >= {{first}} AND {_AT} < {{past}}"""
# What an hour counted, beside its sums: the fields of its span, when its newest count was, and whether it is folded.
_COUNTS: Final = "".join(f", (k.counts).{name}" for name in FIELDS) + ", k.counted_until AS until, false AS folded"
_COUNTS_OF_DAY: Final = (
    "".join(f", s.{name}" for name in FIELDS) + f", {_AT} + interval '1 hour' AS until, true AS folded"
)
_UNNESTED_COUNTS: Final = f"""
    LEFT JOIN LATERAL unnest(d.counts) WITH ORDINALITY AS s ({", ".join(FIELDS)}, at) ON s.at = u.n"""
# An archived hour stays in the parts in which it is: nobody could count it again.
_GONE: Final = f"""DELETE FROM {{hourly}} AS k WHERE k.bucket = $1::smallint AND k.at < $2
        AND NOT EXISTS (SELECT FROM tier AS t WHERE t.bucket = k.bucket AND t.kind = {{kind}} AND t.archived @> k.at)
    RETURNING k.bucket, k.tenant_id, k.{{id}}, k.at, {_LISTED}, k.minutes, k.counts"""
_STAGED: Final = f"""SELECT bucket, tenant_id, {{id}}, at, {_LISTED}, minutes, counts
    FROM {{table}} WHERE bucket = $1::smallint AND at < $2"""
# Every day of which an hour is to be folded is made anew, with the hours that it had. What registers counted is known
# if each hour came whole: else the day is counted again.
_FOLD: Final = f"""
WITH gone AS (
    {{gone}}
), touched AS MATERIALIZED (
    SELECT DISTINCT bucket, tenant_id, {{id}}, (at AT TIME ZONE 'UTC')::date AS day FROM gone
), known AS (
    SELECT {_OF_DAY}, d.counts[u.n] AS counts
    FROM touched AS t JOIN {{daily}} AS d
        ON d.bucket = t.bucket AND d.{{id}} = t.{{id}} AND d.day = t.day AND d.tenant_id = t.tenant_id
    {_UNNESTED} WHERE u.readings IS NOT NULL
), hour AS (
    SELECT bucket, tenant_id, {{id}}, (at AT TIME ZONE 'UTC')::date AS day,
        date_part('hour', at AT TIME ZONE 'UTC')::integer AS n, sum(readings)::integer AS readings,
        sum(energies)::integer AS energies, sum(registers)::integer AS registers,
        sum(temperatures)::integer AS temperatures, sum(energy) AS energy, sum(temperature) AS temperature,
        max(most) AS most, bit_or(minutes) AS minutes,
        (array_agg(counts) FILTER (WHERE registers > 0))[1] AS counts,
        coalesce(bool_and((counts).counted IS NOT DISTINCT FROM registers) FILTER (WHERE registers > 0), true)
            AND count(*) FILTER (WHERE registers > 0) < 2 AS is_whole
    FROM (SELECT * FROM gone UNION ALL SELECT * FROM known) AS h GROUP BY 1, 2, 3, 4, 5
)
INSERT INTO {{daily}} AS d (
    bucket, tenant_id, {{id}}, day, readings, energies, registers, temperatures, energy, temperature, most, minutes,
    counts
)
SELECT bucket, tenant_id, {{id}}, day, array_agg(readings ORDER BY n),
    CASE WHEN bool_or(energies <> readings) THEN array_agg(energies ORDER BY n) END,
    CASE WHEN bool_or(registers <> 0) THEN array_agg(registers ORDER BY n) END,
    CASE WHEN bool_or(temperatures <> readings) THEN array_agg(temperatures ORDER BY n) END,
    array_agg(energy ORDER BY n), CASE WHEN bool_or(temperature <> 0) THEN array_agg(temperature ORDER BY n) END,
    CASE WHEN count(most) > 0 THEN array_agg(most ORDER BY n) END, array_agg(minutes ORDER BY n),
    CASE WHEN bool_or(registers <> 0) AND bool_and(is_whole) THEN array_agg(counts ORDER BY n) END
FROM touched CROSS JOIN generate_series(0, 23) AS n LEFT JOIN hour USING (bucket, tenant_id, {{id}}, day, n)
GROUP BY 1, 2, 3, 4
ON CONFLICT ({{id}}, day, tenant_id, bucket) DO UPDATE
SET readings = excluded.readings, energies = excluded.energies, registers = excluded.registers,
    temperatures = excluded.temperatures, energy = excluded.energy, temperature = excluded.temperature,
    most = excluded.most, minutes = excluded.minutes, counts = excluded.counts"""
_DAYS: Final = """
SELECT day FROM (
    SELECT DISTINCT date_bin('1 day', timestamp - interval '1 microsecond', {origin}) AS day
    FROM ({unpacked}) AS h
    UNION
    SELECT (day - back)::timestamp AT TIME ZONE 'UTC' FROM {packed} CROSS JOIN (VALUES (0), (1)) AS b (back)
    WHERE bucket = $1
) AS d WHERE day >= $2 ORDER BY 1"""


def roles(kind: Kind) -> str:
    """Which columns are summed as what: rollups of others are none."""
    return f"{kind.energy or ''} {kind.register or ''} {kind.temperature or ''}"


def _filled(template: str, kind: Kind, source: str = "") -> str:
    names = {
        "{source}": source,
        "{parts_energy}": parts.energy(kind),
        "{parts_temperature}": parts.temperature(kind),
        "{sums}": _SUMS,
        "{added}": _ADDED,
        "{listed}": _LISTED,
        "{origin}": ORIGIN,
    }
    for placeholder, text in names.items():
        template = template.replace(placeholder, text)
    return for_kind(template, kind)


def _add(kind: Kind, source: str, *, hours: bool = True, minutes: bool = True) -> str:
    """Add the readings of `source` (a query with history's columns); gives how many, and how many of them count."""
    adding = [f", added_{at} AS ({each}\n)" for at, each in enumerate([_HOURS] * hours + [_MINUTES] * minutes)]
    return _filled(_NEW + "".join(adding) + "\nSELECT count(*), count(register) FROM new", kind, source)


def _columns(kind: Kind) -> tuple[Column, ...]:
    return columns_of(kind, (kind.energy, kind.register, kind.temperature))


def _unpacked(kind: Kind, place: Place) -> str:
    return " UNION ALL ".join(tier(kind, place, _columns(kind), _INGESTED) for tier in (hot, late))


def _counted(kind: Kind, place: Place, mark: str) -> str:
    """The readings of a place that rollups with this mark hold."""
    every = f"{_unpacked(kind, place)} UNION ALL {packed(kind, place, _columns(kind), _UNKNOWN)}"
    return f"SELECT * FROM ({every}) AS e WHERE e.tier = {PACKED} OR e.ingested_at < {mark}"


@cache
def roll(kind: Kind) -> str:
    """Add what was ingested in a bucket ($1) from $2 to before $3."""
    ingested = "{row}.bucket = $1::smallint AND {row}.ingested_at >= $2 AND {row}.ingested_at < $3"
    return _add(kind, _unpacked(kind, Place(ingested)))


@cache
def roll_instant(kind: Kind) -> str:
    """The same of one time ($4)."""
    ingested = "{row}.bucket = $1::smallint AND {row}.ingested_at >= $2 AND {row}.ingested_at < $3"
    return _add(kind, _unpacked(kind, Place(f"{ingested} AND {{row}}.timestamp = $4::timestamptz")))


@cache
def fill(kind: Kind) -> str:
    """Add what a bucket ($1) holds of a time after $3 up to $4, if it was ingested before $2, or is packed."""
    return _add(kind, _counted(kind, Place("{row}.bucket = $1::smallint", "$3", "$4", guarded=False), "$2"))


def add_rest(kind: Kind, table: str, which: str = "true") -> str:
    """Add the readings of a table that were ingested from the bucket's ($1) mark on, and those before are known."""
    source = f"SELECT * FROM {table} AS t WHERE bucket = $1::smallint AND ingested_at >= {_mark(kind)} AND {which}"
    return _add(kind, source)


def add_all(kind: Kind, table: str) -> str:
    """Add the readings of a table, which were counted nowhere."""
    return _add(kind, f"SELECT * FROM {table} AS t")


def _mark(kind: Kind) -> str:
    return f"(SELECT rolled_until FROM tier WHERE bucket = $1::smallint AND kind = '{kind.name}')"


def differing(kind: Kind, table: str) -> str:
    """How many hours of a bucket's ($1) devices behind $4 up to $5 are not the sums of a leaf's and of late readings.

    Of those that are counted; from $2 to an hour before $3, the leaf's bounds: the last one holds one of its neighbour.
    """
    which = "{row}.bucket = $1::smallint AND {row}.{id} > $4 AND {row}.{id} <= $5"
    late_ones = late(kind, Place(which, "$2", "$3"), _columns(kind), _INGESTED)
    columns = f"bucket, tenant_id, {{id}}, timestamp{''.join(f', {each.quoted}' for each in _columns(kind))}"
    of_leaf = f"SELECT {columns} FROM {table} AS h WHERE {which.replace('{row}', 'h')} AND ingested_at < {_mark(kind)}"
    rows = f"{of_leaf} UNION ALL SELECT {columns} FROM ({late_ones}) AS l WHERE ingested_at < {_mark(kind)}"
    made = _HOURS[_HOURS.index("SELECT") : _HOURS.index("ON CONFLICT")]
    there = f"SELECT at, bucket, tenant_id, {{id}}, {_LISTED}, minutes FROM {{hourly}} AS k WHERE {which}"
    within = "at >= $2 AND at < $3::timestamptz - interval '1 hour'"
    one, other = f"SELECT * FROM ({made}) AS made WHERE {within}", f"{there.replace('{row}', 'k')} AND {within}"
    counts = f"(SELECT count(*) FROM ({one} EXCEPT {other}) AS a) + (SELECT count(*) FROM ({other} EXCEPT {one}) AS b)"
    tier = f"bucket = $1::smallint AND kind = '{kind.name}' AND rolled_of = '{roles(kind)}'"
    return _filled(f"{_NEW} SELECT {counts} FROM tier WHERE {tier}", kind, rows)


def forget(kind: Kind) -> list[str]:
    """Remove the rollups of a bucket ($1) from a day on ($2): older readings may not be there to be added again."""
    tables = ((kind.hourly, "at"), (kind.minutely, "at"), (kind.daily, "day::timestamp AT TIME ZONE 'UTC'"))
    return [_FORGET.format(table=quote_identifier(name), at=at) for name, at in tables]


def drop_old(kind: Kind) -> list[str]:
    """Remove some rollups of a bucket ($1) from before a day ($2), where there are any."""
    tables = ((kind.hourly, "at < $2"), (kind.minutely, "at < $2"), (kind.daily, _DAY_BEFORE))
    return [_DROP_OLD.format(table=quote_identifier(name), which=which) for name, which in tables]


def hours(which: str, first: str, past: str, *, counts: bool = False) -> str:
    """The hours that begin from `first` to before `past` (SQL), where `which` of `{row}`: key, at, sums, most, minutes.

    A template of a kind. An hour may come in two parts: what it had when it was folded, and what came late. `counts`:
    also what registers counted, as FIELDS of a span, `until` and `folded`.
    """
    texts = {
        "{of_row}": which.replace("{row}", "k"),
        "{of_day}": which.replace("{row}", "d"),
        "{first}": f"{first}::timestamptz",
        "{past}": f"{past}::timestamptz",
        "{counts}": _COUNTS if counts else "",
        "{counts_of_day}": _COUNTS_OF_DAY if counts else "",
        "{unnested_counts}": _UNNESTED_COUNTS if counts else "",
    }
    template = _UNFOLDED
    for placeholder, text in texts.items():
        template = template.replace(placeholder, text)
    return template


@cache
def fold(kind: Kind) -> str:
    """Fold the hours of a bucket ($1) that begin before $2 into days."""
    return for_kind(_FOLD.replace("{gone}", _GONE), kind)


def staged(kind: Kind, hours: str, minutes: str) -> tuple[str, str, str]:
    """Take sums from two tables that are like rollups, of readings that were counted nowhere.

    Of a bucket ($1) hours that begin before $2 into days; those from $1 on as they are; all minutes.
    """
    fold_staged = _FOLD.replace("{gone}", _STAGED.replace("{table}", hours))
    added = _STAGED_HOURS.replace("{table}", hours), _STAGED_MINUTES.replace("{table}", minutes)
    first, second, third = (for_kind(each, kind) for each in (fold_staged, *added))
    return first, second, third


@cache
def days(kind: Kind) -> str:
    """The beginnings of the days, from one on ($2), in which a bucket ($1) may have readings."""
    unpacked = _unpacked(kind, Place("{row}.bucket = $1::smallint"))
    return for_kind(_DAYS.replace("{unpacked}", unpacked).replace("{origin}", ORIGIN), kind)


@cache
def anew(kind: Kind) -> tuple[tuple[str, str], tuple[str, str]]:
    """Statements that remove and make an hour of a device (bucket, device, hour) and a minute (bucket, minute) anew.

    Each takes the tenant last, and the making takes the mark before it.
    """
    hour = Place(
        "{row}.bucket = $1::smallint AND {row}.{id} = $2 AND {row}.tenant_id = {tenant}",
        "$3::timestamptz",
        "($3::timestamptz + interval '1 hour')",
        guarded=False,
    )
    minute = Place(
        "{row}.bucket = $1::smallint AND {row}.tenant_id = {tenant}",
        "$2::timestamptz",
        "($2::timestamptz + interval '1 minute')",
        guarded=False,
    )
    hours = _add(kind, _counted(kind, hour, "$4"), minutes=False)
    minutes = _add(kind, _counted(kind, minute, "$3"), hours=False)
    return (for_kind(_FORGET_HOUR, kind), hours), (for_kind(_FORGET_MINUTE, kind), minutes)
