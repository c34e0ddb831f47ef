"""Energy from registers: the differences between a device's counts, made when they are read.

A count below 90 % of the one before is a reset: the new count is the energy since (where the device's maximum is known
and was near, the register rolled over). Any other count that is not above the highest one since the last reset adds
nothing; when it is below the one before, it is a dip, and suspect. What comes late or twice changes nothing of this.
What is before a window is looked at by the hour, the newest count's and the one before: of a dip that began earlier the
lower counts are the new ones.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import asyncpg

from shards.bins import HOUR, floor
from shards.kinds import Kind
from shards.postgres.driver import ARCHIVED
from shards.ratings import Ratings
from shards.storage import parts
from shards.storage.counted import Source, statement
from shards.storage.rows import Reader, Rows, fetch_rows
from shards.window import Window

_SUMS: Final = f"""
    {parts.total("energy", parts.COUNT)} AS energy,
    coalesce(sum(suspect), 0)::bigint AS suspect,
    {parts.total("suspect_energy", parts.COUNT)} AS suspect_energy"""
_FLEET: Final = f"SELECT {{covered}}, {_SUMS} FROM reading"
_SERIES: Final = f"""SELECT {{covered}}, s.* FROM (SELECT) AS one LEFT JOIN (
    SELECT width_bucket(timestamp - interval '1 microsecond', $5::timestamptz[]) AS bin, {_SUMS}
    FROM reading GROUP BY 1
) AS s ON true"""
_PAIRED: Final = f"""SELECT {{covered}}, {_SUMS}
FROM reading JOIN unnest($6::varchar[], $7::timestamptz[], $8::timestamptz[]) AS w (device, starts, ends)
    ON w.device = reading.device AND reading.timestamp > w.starts AND reading.timestamp <= w.ends"""
_DEVICE: Final = f"""SELECT {{covered}},
    coalesce(sum(suspect) FILTER (WHERE paired), 0)::bigint AS paired_suspect,
    {parts.total("energy", parts.COUNT, "paired")} AS paired_energy,
    {parts.total("suspect_energy", parts.COUNT, "paired")} AS paired_suspect_energy, {_SUMS}
FROM (
    SELECT *, EXISTS (
        SELECT FROM unnest($6::timestamptz[], $7::timestamptz[]) AS w (starts, ends)
        WHERE timestamp > w.starts AND timestamp <= w.ends
    ) AS paired
    FROM reading
) AS r"""
_EACH: Final = f"""SELECT {{covered}}, r.timestamp, ((r.energy + r.suspect_energy) / {parts.COUNT})::float8 AS energy
FROM (SELECT) AS one LEFT JOIN reading AS r ON true"""
_TAILS: Final = {"fleet": _FLEET, "series": _SERIES, "paired": _PAIRED, "device": _DEVICE, "each": _EACH}


async def _fetch(
    reader: Reader,
    name: str,
    kind: Kind,
    buckets: Sequence[int],
    window: Window,
    ratings: Ratings,
    *arguments: object,
    key: str = "energy",
    from_rollups: bool = False,
    whole_hours: bool = True,
) -> Rows:
    """`whole_hours`: most of the asked windows are; else the readings are asked first, as most hours would be cut."""
    given = (window.start, window.end, ratings.as_json(), *arguments)

    async def ask(source: Source) -> Rows:
        sql = statement(name, _TAILS[name], kind, source)
        return await fetch_rows(reader, sql, key, buckets, *given, anew=True)

    if from_rollups and whole_hours:
        found = await ask(Source.HOURS)
        if not found.singly:
            return found
    try:
        return await ask(Source.READINGS)
    except asyncpg.PostgresError as error:
        if error.sqlstate != ARCHIVED or not from_rollups:
            raise
        return await ask(Source.ALL_HOURS)


def columns(entries: Sequence[tuple[int, str, Window]]) -> tuple[list[int], list[str], list[datetime], list[datetime]]:
    """Buckets, devices, starts and ends of (bucket, device, window) entries, as SQL takes them."""
    return (
        [bucket for bucket, _, _ in entries],
        [device_id for _, device_id, _ in entries],
        [window.start for _, _, window in entries],
        [window.end for _, _, window in entries],
    )


async def fleet(
    reader: Reader, kind: Kind, buckets: Sequence[int], window: Window, ratings: Ratings, *, from_rollups: bool
) -> Rows:
    """One item over all devices: energy, suspect, suspect_energy. `from_rollups`: from hours that are known."""
    return await _fetch(reader, "fleet", kind, buckets, window, ratings, from_rollups=from_rollups)


async def series(
    reader: Reader,
    kind: Kind,
    buckets: Sequence[int],
    bounds: Sequence[datetime],
    ratings: Ratings,
    *,
    from_rollups: bool,
) -> Rows:
    """An item for each interval with counts: bin, energy, suspect, suspect_energy."""
    window = Window(bounds[0], bounds[-1])
    whole = all(bound == floor(bound, HOUR) for bound in bounds[1:-1])
    how: dict[str, Any] = {"key": "bin", "from_rollups": from_rollups, "whole_hours": whole}
    return await _fetch(reader, "series", kind, buckets, window, ratings, bounds, **how)


async def paired(
    reader: Reader,
    kind: Kind,
    buckets: Sequence[int],
    window: Window,
    entries: Sequence[tuple[int, str, Window]],
    ratings: Ratings,
    *,
    from_rollups: bool,
) -> Rows:
    """One item: energy, suspect, suspect_energy of `entries`, whose windows are disjoint for each device."""
    return await _fetch(reader, "paired", kind, buckets, window, ratings, *columns(entries), from_rollups=from_rollups)


async def device(
    reader: Reader,
    kind: Kind,
    place: tuple[int, str],
    window: Window,
    paired: Sequence[Window],
    ratings: Ratings,
    *,
    from_rollups: bool,
) -> Mapping[str, Any]:
    """What registers add to the sums of the device at `place` (bucket, ID): column -> value."""
    bucket, device_id = place
    arguments = (device_id, [w.start for w in paired], [w.end for w in paired])
    found = await _fetch(reader, "device", kind, [bucket], window, ratings, *arguments, from_rollups=from_rollups)
    return found.rows[0]


async def each(
    reader: Reader, kind: Kind, place: tuple[int, str], window: Window, ratings: Ratings
) -> Mapping[datetime, float]:
    """Time of each count in `window` -> kWh since the one before."""
    bucket, device_id = place
    found = await _fetch(reader, "each", kind, [bucket], window, ratings, device_id, key="timestamp")
    return {row["timestamp"]: row["energy"] for row in found.rows}
