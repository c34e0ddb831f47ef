"""Sums over readings of one shard: of a device, of all devices, in intervals, within pairings.

Energies of intervals are summed here, and registers.py adds what registers counted. An energy above what the device's
rating allows is left out of `energy`, and told as `suspect` and `suspect_energy`. Energies are summed in whole
millionths of a watt-hour, temperatures in millionths of a degree: the same sum in whatever order, from whatever tier.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Final

from shards.kinds import Kind
from shards.postgres.sql import for_kind, quote_identifier
from shards.ratings import Ratings
from shards.storage import registers
from shards.storage.rows import COVERED, Reader, Rows, fetch_rows
from shards.storage.tiers import SEVERAL, Place, columns_of, hot, late, packed, source
from shards.window import Window

Entry = tuple[int, str, Window]  # bucket, device, when
WHOLE_MAX: Final = 1e9  # of a unit: its parts fit in 64 bits
_ONE: Final = "{row}.bucket = ($1::smallint[])[1] AND {row}.{id} = $2 AND {row}.tenant_id = {tenant}"

# {rated}, {implausible}: with nothing to tell devices apart, nothing is joined and nothing is judged.
_JUDGED: Final = {
    "{rated}": """LEFT JOIN jsonb_to_recordset({ratings}::jsonb -> 'devices')
        AS rating (device text, interval_s float8, power_max_kw float8) ON rating.device COLLATE "C" = h.{id}""",
    "{implausible}": """coalesce(h.{energy}
        > coalesce(rating.power_max_kw, ({ratings}::jsonb ->> 'power_max_kw')::float8)
        * coalesce(rating.interval_s, ({ratings}::jsonb ->> 'interval_s')::float8) / 3600 + {rounding}, false)""",
    "{per_minute}": "60 / coalesce(max(rating.interval_s), max(({ratings}::jsonb ->> 'interval_s')::float8))",
}
_PLAIN: Final = {"{rated}": "", "{implausible}": "false", "{per_minute}": "NULL::float8"}

_KWH: Final = "1e9"
_DEGREE: Final = "1e6"


def _total(column: str, unit: str, condition: str = "") -> str:
    """The sum of a column of whole parts, in its unit."""
    which = f" FILTER (WHERE {condition})" if condition else ""
    return f"(coalesce(sum({column}){which}, 0) / {unit})::float8"


def _sums() -> str:
    return f"""
    {_total("energy", _KWH, "NOT implausible")} AS energy,
    count(*) FILTER (WHERE implausible) AS suspect,
    {_total("energy", _KWH, "implausible")} AS suspect_energy,
    {_total("temperature", _DEGREE)} AS temperature,
    count(temperature) AS temperatures,
    coalesce(bit_or(tier), 0) AS tiers"""


_SUMS: Final = _sums()
_READING: Final = "{parts_energy} AS energy, {parts_temperature} AS temperature, {implausible} AS implausible, h.tier"

_DEVICE: Final = (
    "SELECT "
    + COVERED
    + """,
    count(*) AS readings,
    count(energy) AS intervals,
    count(register) AS registers,
    count(*) FILTER (WHERE paired) AS paired_readings,
    count(*) FILTER (WHERE paired AND implausible) AS paired_suspect,
    count(energy) FILTER (WHERE paired) AS paired_intervals,
    count(register) FILTER (WHERE paired) AS paired_registers,
    """
    + _total("energy", _KWH, "paired AND NOT implausible")
    + """ AS paired_energy,
    """
    + _total("energy", _KWH, "paired AND implausible")
    + """ AS paired_suspect_energy,
    count(DISTINCT date_bin($7::interval, timestamp - interval '1 microsecond', $3)) AS slots,"""
    + _SUMS
    + """
FROM (
    SELECT timestamp, {register} AS register, """
    + _READING
    + """, EXISTS (
        SELECT FROM unnest($5::timestamptz[], $6::timestamptz[]) AS w (starts, ends)
        WHERE timestamp > w.starts AND timestamp <= w.ends
    ) AS paired
    FROM {readings} AS h {rated}
) AS reading
"""
)

_FLEET: Final = (
    "SELECT "
    + COVERED
    + """,
    count(*) AS devices,
    coalesce(sum(readings), 0)::bigint AS readings,
    coalesce(sum(registers), 0)::bigint AS registers,
    count(*) FILTER (WHERE registers BETWEEN 1 AND readings - 1) AS mixed,
    sum(per_minute) AS per_minute,
    coalesce(sum(suspect), 0)::bigint AS suspect,
    """
    + _total("suspect_energy", _KWH)
    + """ AS suspect_energy,
    """
    + _total("energy", _KWH)
    + """ AS energy,
    """
    + _total("temperature", _DEGREE)
    + """ AS temperature,
    coalesce(sum(temperatures), 0)::bigint AS temperatures,
    coalesce(bit_or(tiers), 0) AS tiers
FROM (
    SELECT count(*) AS readings, count({register}) AS registers, {per_minute} AS per_minute,
        sum({parts_energy}) FILTER (WHERE NOT {implausible}) AS energy,
        count(*) FILTER (WHERE {implausible}) AS suspect,
        sum({parts_energy}) FILTER (WHERE {implausible}) AS suspect_energy,
        sum({parts_temperature}) AS temperature,
        count({temperature}) AS temperatures,
        bit_or(h.tier) AS tiers
    FROM {readings} AS h {rated}
    GROUP BY {id}
) AS device
"""
)

# An interval is (start, end], like the window: a reading at a boundary belongs to the interval that ends there.
_SERIES: Final = (
    "SELECT "
    + COVERED
    + """, s.*
FROM (SELECT) AS one
LEFT JOIN (
    SELECT width_bucket(timestamp - interval '1 microsecond', $4::timestamptz[]) AS bin, count(*) AS readings,"""
    + _SUMS
    + """
    FROM (
        SELECT timestamp, """
    + _READING
    + """
        FROM {readings} AS h {rated}
    ) AS reading
    GROUP BY 1
) AS s ON true
"""
)

# Packed days are unpacked device by device; how the others are found is the planner's to choose.
_PAIRED: Final = (
    """
WITH entry AS (
    SELECT * FROM unnest($4::smallint[], $5::varchar[], $6::timestamptz[], $7::timestamptz[])
        AS w (bucket, device, starts, ends)
    WHERE bucket = ANY($1::smallint[])
)
SELECT """
    + COVERED
    + """,
    count(*) AS readings,"""
    + _SUMS
    + """
FROM (
    SELECT """
    + _READING
    + """
    FROM {readings} AS h {rated}
) AS reading
"""
)


def _parts(column: str | None, unit: str, most: float | None) -> str:
    """A value in whole parts; as it is where the largest that is declared would not fit."""
    if column is None:
        return "NULL::bigint"
    if most is None or most > WHOLE_MAX:
        return f"h.{quote_identifier(column)} * {unit}::float8"
    return f"round(h.{quote_identifier(column)} * {unit}::float8)::bigint"


def _most(kind: Kind, column: str | None) -> float | None:
    """The largest magnitude that a field may have."""
    field = next((each for each in kind.fields if each.column == column), None)
    if field is None or field.minimum is None or field.maximum is None:
        return None
    return max(abs(field.minimum), abs(field.maximum))


def _readings(name: str, kind: Kind) -> str:
    """What a statement sums over, in all tiers."""
    columns = columns_of(kind, (kind.energy, kind.register, kind.temperature))
    if name == "device":
        return source(kind, Place(_ONE, "$3", "$4"), columns)
    if name != "paired":
        return source(kind, Place(SEVERAL, "$2", "$3"), columns)
    plain = Place("{row}.bucket = ANY($1::smallint[]) AND {row}.tenant_id = {tenant}", "$2", "$3")
    listed = ", ".join(["h.{id}", "h.timestamp", *(f"h.{each.quoted}" for each in columns), "h.tier"])
    on = "h.bucket = w.bucket AND h.{id} = w.device AND h.timestamp > w.starts AND h.timestamp <= w.ends"
    parts = [
        f"SELECT {listed} FROM entry AS w JOIN ({part(kind, plain, columns)}) AS h ON {on}" for part in (hot, late)
    ]
    own = Place(
        "{row}.bucket = w.bucket AND {row}.{id} = w.device AND {row}.tenant_id = {tenant}",
        "greatest(w.starts, $2::timestamptz)",
        "least(w.ends, $3::timestamptz)",
    )
    parts.append(f"SELECT {listed} FROM entry AS w CROSS JOIN LATERAL ({packed(kind, own, columns)}) AS h")
    return f"({' UNION ALL '.join(parts)})"


def _sql(name: str, template: str, kind: Kind, ratings: str, *, judged: bool) -> str:
    energy = _parts(kind.energy, _KWH, _most(kind, kind.energy))
    template = template.replace("{readings}", _readings(name, kind)).replace("{parts_energy}", energy)
    template = template.replace("{parts_temperature}", _parts(kind.temperature, _DEGREE, _most(kind, kind.temperature)))
    for placeholder, text in (_JUDGED if judged else _PLAIN).items():
        template = template.replace(placeholder, text)
    template = template.replace("{ratings}", ratings).replace("{rounding}", str(registers.ROUNDING_KWH))
    return for_kind(template, kind)


# Name -> statement, and the parameter of its ratings.
_STATEMENTS: Final = {
    "device": (_DEVICE, "$8"),
    "fleet": (_FLEET, "$4"),
    "series": (_SERIES, "$5"),
    "paired": (_PAIRED, "$8"),
}


@cache
def _statement(name: str, kind: Kind, *, judged: bool) -> str:
    template, ratings = _STATEMENTS[name]
    return _sql(name, template, kind, ratings, judged=judged)


@dataclass(frozen=True)
class DeviceSums:
    """One device over a window; `paired_*` only within its pairings. Energies in kWh, temperatures in deg C.

    `slots`: of the device's reporting intervals, those with a reading; `intervals`, `registers`: readings of each way;
    `tiers`: where they were found.
    """

    asked: frozenset[int]
    covered: frozenset[int]
    readings: int
    intervals: int
    registers: int
    energy: float
    suspect: int
    suspect_energy: float
    paired_readings: int
    paired_intervals: int
    paired_registers: int
    paired_suspect: int
    paired_energy: float
    paired_suspect_energy: float
    temperature: float
    temperatures: int
    slots: int
    tiers: int


async def _fetch(
    reader: Reader,
    name: str,
    kind: Kind,
    key: str,
    buckets: Sequence[int],
    ratings: Ratings,
    *arguments: object,
) -> Rows:
    judged = not ratings.is_plain
    given = (*arguments, ratings.as_json()) if judged else arguments
    return await fetch_rows(reader, _statement(name, kind, judged=judged), key, buckets, *given, anew=name != "device")


async def device(
    reader: Reader,
    kind: Kind,
    place: tuple[int, str],
    window: Window,
    paired: Sequence[Window],
    ratings: Ratings,
) -> DeviceSums:
    """Sums over the readings in `window` of the device at `place` (bucket, ID); `paired` are disjoint windows."""
    bucket, device_id = place
    starts, ends = [w.start for w in paired], [w.end for w in paired]
    slot = timedelta(seconds=ratings.interval_s(device_id))
    arguments = (device_id, window.start, window.end, starts, ends, slot)
    found = await _fetch(reader, "device", kind, "readings", [bucket], ratings, *arguments)
    values = found.rows[0]
    if values["registers"]:
        counted = await registers.device(reader, kind, place, window, paired, ratings)
        for name, value in counted.items():
            values[name] += value
    return DeviceSums(asked=found.asked, covered=found.covered, **values)


async def fleet(
    reader: Reader, kind: Kind, buckets: Sequence[int], window: Window, ratings: Ratings
) -> tuple[list[Rows], bool]:
    """Sums over all devices in `buckets`, one item each (devices, readings, energy, ...), and if there are registers.

    `mixed`: devices that sent both energies and registers. `per_minute`: readings expected a minute, None when every
    device reports by the default.
    """
    found = [await _fetch(reader, "fleet", kind, "readings", buckets, ratings, window.start, window.end)]
    has_registers = found[0].rows[0]["registers"] > 0
    if has_registers:
        found.append(await registers.fleet(reader, kind, buckets, window, ratings))
    return found, has_registers


async def series(
    reader: Reader, kind: Kind, buckets: Sequence[int], bounds: Sequence[datetime], ratings: Ratings
) -> Rows:
    """An item for each interval with readings: `bin` (from 1: up to `bounds[bin]`), readings, energy, ... ."""
    arguments = (bounds[0], bounds[-1], bounds)
    return await _fetch(reader, "series", kind, "bin", buckets, ratings, *arguments)


async def paired(
    reader: Reader,
    kind: Kind,
    buckets: Sequence[int],
    window: Window,
    entries: Sequence[Entry],
    ratings: Ratings,
) -> Rows:
    """One item: readings, energy, ... of `entries`, whose windows are disjoint for each device."""
    arguments = (window.start, window.end, *registers.columns(entries))
    return await _fetch(reader, "paired", kind, "readings", buckets, ratings, *arguments)
