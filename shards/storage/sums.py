"""Sums over readings of one shard: of a device, of all devices, in intervals, within pairings.

Energies of intervals are summed here, and registers.py adds what registers counted. An energy above what the device's
rating allows is left out of `energy`, and told as `suspect` and `suspect_energy`. Energies are summed in whole
millionths of a watt-hour, temperatures in millionths of a degree: the same sum in whatever order, from whatever tier.
Where a shard has rollups they are asked (rolled.py); else the readings themselves (summed.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import asyncpg

from shards.bins import HOUR, MINUTE, ceil, floor
from shards.kinds import Kind
from shards.postgres.driver import ARCHIVED
from shards.ratings import INTERVAL_S, Ratings
from shards.storage import parts, registers, rolled, spans, summed
from shards.storage.rollups import roles
from shards.storage.rows import Reader, Record, Rows, fetch_rows
from shards.window import Window

LONG: Final = timedelta(days=4)  # a period of one device
Entry = tuple[int, str, Window]  # bucket, device, when
_ARE_ROLLED: Final = """
SELECT count(*) FROM tier
WHERE kind = $1 AND bucket = ANY($2::smallint[]) AND rolled_of = $3 AND summed_since <= $4
"""


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


@dataclass(frozen=True)
class FleetSums:
    """Sums over all devices, one item each (devices, readings, energy, ...); whether registers count among them.

    `mixed`: devices that sent both energies and registers. `per_minute`: readings expected a minute, None when every
    device reports by the default. `rolled`: whether rollups can be asked for the rest.
    """

    rows: list[Rows]
    has_registers: bool
    rolled: bool


async def are_rolled(reader: Reader, kind: Kind, buckets: Sequence[int], since: datetime) -> bool:
    """Whether rollups say most of what was since then; what they do not say, their statements find."""
    return parts.are_whole(kind) and bool(
        await reader.connection.fetchval(_ARE_ROLLED, kind.name, buckets, roles(kind), since) == len(buckets)
    )


async def _fetch(
    reader: Reader,
    name: str,
    kind: Kind,
    key: str,
    buckets: Sequence[int],
    ratings: Ratings,
    *arguments: object,
    from_rollups: bool = False,
) -> Rows:
    judged = not ratings.is_plain
    given = (*arguments, ratings.as_json()) if judged else arguments
    statement = (rolled if from_rollups else summed).statement(name, kind, judged=judged)
    anew = from_rollups or name != "device"
    return await fetch_rows(reader, statement, key, buckets, *given, anew=anew)


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
    interval_s = ratings.interval_s(device_id)
    # A slot is a minute of the clock, as rollups have them. A few days are read faster than rollups are asked.
    is_long = window.end - window.start >= LONG
    by_minute = interval_s == INTERVAL_S and window.start == floor(window.start, MINUTE)
    if by_minute and is_long and await are_rolled(reader, kind, [bucket], window.start):
        found = await _device_rolled(reader, kind, place, window, paired, ratings)
        if found is not None:
            return found
    try:
        return await _device_read(reader, kind, place, window, paired, ratings)
    except asyncpg.PostgresError as error:
        # Of archived time rollups alone are left.
        if (
            error.sqlstate != ARCHIVED
            or not by_minute
            or is_long
            or not await are_rolled(reader, kind, [bucket], window.start)
        ):
            raise
        found = await _device_rolled(reader, kind, place, window, paired, ratings)
        if found is None:
            raise
        return found


async def _device_read(
    reader: Reader, kind: Kind, place: tuple[int, str], window: Window, paired: Sequence[Window], ratings: Ratings
) -> DeviceSums:
    """From its readings."""
    bucket, device_id = place
    starts, ends = [w.start for w in paired], [w.end for w in paired]
    interval = timedelta(seconds=ratings.interval_s(device_id))
    arguments = (device_id, window.start, window.end, starts, ends, interval)
    found = await _fetch(reader, "device", kind, "readings", [bucket], ratings, *arguments)
    values = found.rows[0]
    if values["registers"]:
        await _add_counts(reader, kind, place, (window, paired), ratings, values, from_rollups=False)
    return DeviceSums(asked=found.asked, covered=found.covered, **values)


async def _add_counts(
    reader: Reader,
    kind: Kind,
    place: tuple[int, str],
    when: tuple[Window, Sequence[Window]],
    ratings: Ratings,
    values: Record,
    *,
    from_rollups: bool,
) -> None:
    counted = await registers.device(reader, kind, place, *when, ratings, from_rollups=from_rollups)
    for name, value in counted.items():
        values[name] += value


async def _device_rolled(
    reader: Reader, kind: Kind, place: tuple[int, str], window: Window, paired: Sequence[Window], ratings: Ratings
) -> DeviceSums | None:
    """From rollups; None when registers count, and what they do is not kept there."""
    bucket, device_id = place
    asked = (device_id, *_segments(window, paired))
    found = await _fetch(reader, "device", kind, "readings", [bucket], ratings, *asked, from_rollups=True)
    values = found.rows[0]
    if values["registers"]:
        if not spans.are_kept(kind):
            return None
        await _add_counts(reader, kind, place, (window, paired), ratings, values, from_rollups=True)
    return DeviceSums(asked=found.asked, covered=found.covered, **values)


def _segments(window: Window, paired: Sequence[Window]) -> tuple[list[datetime], list[datetime], list[bool]]:
    """Starts, ends and whether paired, of the window's parts."""
    at, found = window.start, list[tuple[datetime, datetime, bool]]()
    for each in sorted(paired, key=lambda w: w.start):
        start, end = max(each.start, at), min(each.end, window.end)
        if start < end:
            found += [(at, start, False)] if at < start else []
            found.append((start, end, True))
            at = end
    found += [(at, window.end, False)] if at < window.end else []
    return [start for start, _, _ in found], [end for _, end, _ in found], [is_paired for _, _, is_paired in found]


async def fleet(reader: Reader, kind: Kind, buckets: Sequence[int], window: Window, ratings: Ratings) -> FleetSums:
    """Sums over all devices in `buckets`."""
    first, last = ceil(window.start, HOUR), floor(window.end, HOUR)
    from_rollups = await are_rolled(reader, kind, buckets, window.start)
    if first < last and from_rollups:
        edges = (first, last, ceil(window.start, MINUTE), floor(window.end, MINUTE))
        bounds = (window.start, window.end, *edges)
        whole = edges[2:] == (window.start, window.end)
        found = await _fetch(
            reader, "fleet" if whole else "sharp fleet", kind, "readings", buckets, ratings, *bounds, from_rollups=True
        )
        if found.rows[0]["outside"] and not found.rows[0]["registers"]:
            found = await _fetch(reader, "whole fleet", kind, "readings", buckets, ratings, *bounds, from_rollups=True)
        if not found.rows[0]["registers"]:
            return FleetSums([found], has_registers=False, rolled=True)
        if spans.are_kept(kind):
            return await _counted_fleet(reader, kind, buckets, window, (first, last), ratings)
    found = await _fetch(reader, "fleet", kind, "readings", buckets, ratings, window.start, window.end)
    if not found.rows[0]["registers"]:
        return FleetSums([found], has_registers=False, rolled=from_rollups)
    counted = await registers.fleet(reader, kind, buckets, window, ratings, from_rollups=False)
    return FleetSums([found, counted], has_registers=True, rolled=False)


async def _counted_fleet(
    reader: Reader,
    kind: Kind,
    buckets: Sequence[int],
    window: Window,
    hours: tuple[datetime, datetime],
    ratings: Ratings,
) -> FleetSums:
    """Sums over all devices from rollups, where registers count among them.

    What the period has beside whole hours is read by device: a bucket's minutes do not say which of them sent both.
    """
    bounds = (window.start, window.end, *hours, *hours)
    found = await _fetch(reader, "counted fleet", kind, "readings", buckets, ratings, *bounds, from_rollups=True)
    counted = await registers.fleet(reader, kind, buckets, window, ratings, from_rollups=True)
    return FleetSums([found, counted], has_registers=True, rolled=True)


async def series(
    reader: Reader,
    kind: Kind,
    buckets: Sequence[int],
    bounds: Sequence[datetime],
    ratings: Ratings,
    *,
    from_rollups: bool,
) -> Rows:
    """An item for each interval with readings: `bin` (from 1: up to `bounds[bin]`), readings, energy, ... ."""
    arguments = (bounds[0], bounds[-1], bounds)
    from_rollups = from_rollups and all(bound == floor(bound, MINUTE) for bound in bounds)
    return await _fetch(reader, "series", kind, "bin", buckets, ratings, *arguments, from_rollups=from_rollups)


async def paired(
    reader: Reader,
    kind: Kind,
    buckets: Sequence[int],
    window: Window,
    entries: Sequence[Entry],
    ratings: Ratings,
    *,
    from_rollups: bool,
) -> Rows:
    """One item: readings, energy, ... of `entries`, whose windows are disjoint for each device."""
    arguments = (window.start, window.end, *registers.columns(entries))
    whole = from_rollups and all(floor(at, HOUR) == at for _, _, each in entries for at in (each.start, each.end))
    name = "whole paired" if whole else "paired"
    return await _fetch(reader, name, kind, "readings", buckets, ratings, *arguments, from_rollups=from_rollups)
