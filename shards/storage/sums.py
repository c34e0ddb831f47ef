"""Sums over readings of one shard: of a device, of all devices, in intervals, within pairings.

Energies of intervals are summed here, and registers.py adds what registers counted. An energy above what the device's
rating allows is left out of `energy`, and told as `suspect` and `suspect_energy`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Final

from shards.kinds import Kind
from shards.postgres.sql import for_kind
from shards.ratings import Ratings
from shards.storage import registers
from shards.storage.rows import COVERED, Reader, Rows, fetch_rows
from shards.window import Window

Entry = tuple[int, str, Window]  # bucket, device, when

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

_SUMS: Final = """
    coalesce(sum(energy) FILTER (WHERE NOT implausible), 0) AS energy,
    count(*) FILTER (WHERE implausible) AS suspect,
    coalesce(sum(energy) FILTER (WHERE implausible), 0) AS suspect_energy,
    coalesce(sum(temperature), 0) AS temperature,
    count(temperature) AS temperatures"""

_READING: Final = """h.{energy} AS energy, {temperature} AS temperature, {implausible} AS implausible"""

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
    coalesce(sum(energy) FILTER (WHERE paired AND NOT implausible), 0) AS paired_energy,
    coalesce(sum(energy) FILTER (WHERE paired AND implausible), 0) AS paired_suspect_energy,
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
    FROM {history} AS h {rated}
    WHERE bucket = ($1::smallint[])[1] AND {id} = $2 AND tenant_id = {tenant} AND timestamp > $3 AND timestamp <= $4
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
    coalesce(sum(suspect_energy), 0) AS suspect_energy,
    coalesce(sum(energy), 0) AS energy,
    coalesce(sum(temperature), 0) AS temperature,
    coalesce(sum(temperatures), 0)::bigint AS temperatures
FROM (
    SELECT count(*) AS readings, count({register}) AS registers, {per_minute} AS per_minute,
        sum(h.{energy}) FILTER (WHERE NOT {implausible}) AS energy,
        count(*) FILTER (WHERE {implausible}) AS suspect,
        sum(h.{energy}) FILTER (WHERE {implausible}) AS suspect_energy,
        sum({temperature}) AS temperature,
        count({temperature}) AS temperatures
    FROM {history} AS h {rated}
    WHERE bucket = ANY($1::smallint[]) AND tenant_id = {tenant} AND timestamp > $2 AND timestamp <= $3
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
        FROM {history} AS h {rated}
        WHERE bucket = ANY($1::smallint[]) AND tenant_id = {tenant} AND timestamp > $2 AND timestamp <= $3
    ) AS reading
    GROUP BY 1
) AS s ON true
"""
)

_PAIRED: Final = (
    "SELECT "
    + COVERED
    + """,
    count(*) AS readings,"""
    + _SUMS
    + """
FROM (
    SELECT """
    + _READING
    + """
    FROM unnest($4::smallint[], $5::varchar[], $6::timestamptz[], $7::timestamptz[]) AS w (bucket, device, starts, ends)
    JOIN {history} AS h
        ON h.bucket = w.bucket AND h.{id} = w.device AND h.timestamp > w.starts AND h.timestamp <= w.ends
    {rated}
    WHERE h.bucket = ANY($1::smallint[]) AND h.tenant_id = {tenant} AND h.timestamp > $2 AND h.timestamp <= $3
) AS reading
"""
)


def _sql(template: str, kind: Kind, ratings: str, *, judged: bool) -> str:
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
    return _sql(template, kind, ratings, judged=judged)


@dataclass(frozen=True)
class DeviceSums:
    """One device over a window; `paired_*` only within its pairings. Energies in kWh, temperatures in deg C.

    `slots`: of the device's reporting intervals, those with a reading; `intervals`, `registers`: readings of each way.
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
