"""Energy from registers: the differences between a device's counts, made when they are read.

A count below 90 % of the one before is a reset: the new count is the energy since (where the device's maximum is known
and was near, the register rolled over). Any other count that is not above the highest one since the last reset adds
nothing; when it is below the one before, it is a dip, and suspect. What comes late or twice changes nothing of this, as
nothing but history is looked at: the window, and LOOK_BACK readings of the device before it.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Final

from shards.kinds import Kind
from shards.postgres.sql import for_kind, quote_identifier
from shards.ratings import Ratings
from shards.storage.packing import Column
from shards.storage.rows import COVERED, Reader, Rows, fetch_rows
from shards.storage.tiers import SEVERAL, Place, columns_of, hot, late, newest_days, packed, source
from shards.window import Window

LOOK_BACK: Final = 32  # a dip that began earlier than that before a window is taken for the new count
RESET_BELOW: Final = 0.9  # of the count before
ROUNDING_KWH: Final = 0.0005  # more than the largest power allows: what rounding to Wh may add

_MEASURED: Final = """
WITH rating AS MATERIALIZED (
    SELECT device COLLATE "C" AS device, interval_s, power_max_kw, register_max_kwh
    FROM jsonb_to_recordset($4::jsonb -> 'devices')
        AS d (device text, interval_s float8, power_max_kw float8, register_max_kwh float8)
    UNION ALL
    SELECT NULL, interval_s, power_max_kw, register_max_kwh
    FROM jsonb_to_record($4::jsonb) AS d (interval_s float8, power_max_kw float8, register_max_kwh float8)
), device AS MATERIALIZED (
    {devices}
), seen AS (
    SELECT d.device, r.timestamp, r.register
    FROM device AS d CROSS JOIN LATERAL (
        (
            SELECT timestamp, register FROM ({earlier}) AS e ORDER BY timestamp DESC LIMIT {look_back}
        )
        UNION ALL
        SELECT timestamp, {register} AS register FROM {within} AS h WHERE {register} IS NOT NULL
    ) AS r
), stepped AS (
    SELECT *, lag(register) OVER w AS before, lag(timestamp) OVER w AS since
    FROM seen WINDOW w AS (PARTITION BY device ORDER BY timestamp)
), run AS (
    SELECT *, count(*) FILTER (WHERE register < {reset_below} * before) OVER w AS run
    FROM stepped WINDOW w AS (PARTITION BY device ORDER BY timestamp)
), peaked AS (
    SELECT *, max(register) OVER (PARTITION BY device, run ORDER BY timestamp) AS peak FROM run
), highest AS (
    SELECT *, lag(peak) OVER (PARTITION BY device ORDER BY timestamp) AS high FROM peaked
), risen AS (
    SELECT *, coalesce(
        max(timestamp) FILTER (
            WHERE before IS NULL OR register > high OR register < {reset_below} * before
        ) OVER earlier,
        since
    ) AS risen
    FROM highest
    WINDOW earlier AS (PARTITION BY device ORDER BY timestamp ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
), measured AS (
    SELECT h.device, h.timestamp,
        h.register < h.before AND h.register >= {reset_below} * h.before AS dips,
        CASE
            WHEN h.before IS NULL THEN 0
            WHEN h.register >= {reset_below} * h.before THEN greatest(h.register - h.high, 0)
            WHEN h.before >= {reset_below} * coalesce(own.register_max_kwh, every.register_max_kwh)
                THEN greatest(coalesce(own.register_max_kwh, every.register_max_kwh) - h.high, 0) + h.register
            ELSE h.register
        END AS energy,
        coalesce(own.power_max_kw, every.power_max_kw) / 3600 * greatest(
            extract(epoch FROM h.timestamp - h.risen)::float8, coalesce(own.interval_s, every.interval_s)
        ) + {rounding} AS most
    FROM risen AS h
    LEFT JOIN rating AS own ON own.device = h.device
    JOIN rating AS every ON every.device IS NULL
    WHERE h.timestamp > $2
), reading AS (
    SELECT *, coalesce(energy > most, false) AS implausible FROM measured
)
"""
_OF_ALL: Final = "SELECT DISTINCT bucket, {id} AS device FROM {all} AS h WHERE {register} IS NOT NULL"
_OF_ONE: Final = "SELECT ($1::smallint[])[1] AS bucket, $5::varchar AS device"
_OF_ENTRIES: Final = "SELECT DISTINCT bucket, device FROM unnest($5::smallint[], $6::varchar[]) AS d (bucket, device)"
_OF_DEVICE: Final = "{row}.bucket = d.bucket AND {row}.{id} = d.device AND {row}.tenant_id = {tenant}"
_SUMS: Final = """
    coalesce(sum(energy) FILTER (WHERE NOT implausible), 0) AS energy,
    count(*) FILTER (WHERE implausible OR dips) AS suspect,
    coalesce(sum(energy) FILTER (WHERE implausible), 0) AS suspect_energy"""
_FLEET: Final = "SELECT " + COVERED + "," + _SUMS + " FROM reading"
_SERIES: Final = (
    "SELECT "
    + COVERED
    + """, s.* FROM (SELECT) AS one LEFT JOIN (
    SELECT width_bucket(timestamp - interval '1 microsecond', $5::timestamptz[]) AS bin,"""
    + _SUMS
    + """
    FROM reading GROUP BY 1
) AS s ON true"""
)
_PAIRED: Final = (
    "SELECT "
    + COVERED
    + ","
    + _SUMS
    + """ FROM reading JOIN unnest($6::varchar[], $7::timestamptz[], $8::timestamptz[]) AS w (device, starts, ends)
    ON w.device = reading.device AND reading.timestamp > w.starts AND reading.timestamp <= w.ends"""
)
_DEVICE: Final = (
    "SELECT "
    + COVERED
    + """,
    count(*) FILTER (WHERE paired AND (implausible OR dips)) AS paired_suspect,
    coalesce(sum(energy) FILTER (WHERE paired AND NOT implausible), 0) AS paired_energy,
    coalesce(sum(energy) FILTER (WHERE paired AND implausible), 0) AS paired_suspect_energy,"""
    + _SUMS
    + """
FROM (
    SELECT *, EXISTS (
        SELECT FROM unnest($6::timestamptz[], $7::timestamptz[]) AS w (starts, ends)
        WHERE timestamp > w.starts AND timestamp <= w.ends
    ) AS paired
    FROM reading
) AS r"""
)
_EACH: Final = "SELECT " + COVERED + ", r.timestamp, r.energy FROM (SELECT) AS one LEFT JOIN reading AS r ON true"


# The count before the first one may be archived: then that one's energy is not known, and the statement ends. Rollups
# say whether the device counted there at all.
_GUARD: Final = """(
    SELECT NULL::timestamptz, NULL::float8 FROM tier AS ar
    CROSS JOIN LATERAL (
        SELECT max(upper(gone)) AS until FROM unnest(ar.archived) AS gone WHERE lower(gone) < $2
    ) AS g
    WHERE ar.kind = '{kind}' AND ar.bucket = d.bucket AND CASE
        WHEN is_archived(ar.archived, NULL, $2::timestamptz)
            AND NOT EXISTS (SELECT FROM ({found}) AS e WHERE timestamp >= g.until)
            AND EXISTS (
                SELECT FROM {daily} AS k
                WHERE k.bucket = d.bucket AND k.{{id}} = d.device AND k.tenant_id = {{tenant}}
                    AND k.registers IS NOT NULL AND ar.archived @> (k.day::timestamp AT TIME ZONE 'UTC')
            )
        THEN refuse_archived(ar.kind, ar.archived)
    END
)"""


def _earlier(kind: Kind, columns: Sequence[Column]) -> str:
    """The newest counts of device `d` before the window, of each tier."""
    place = Place(_OF_DEVICE, until="$2", guarded=False)
    (column,) = columns
    known = "coalesce(cardinality(array_remove({0}, NULL)), CASE WHEN {1} IS NOT NULL THEN pd.n ELSE 0 END)"
    days = newest_days(kind, place, str(LOOK_BACK), known.format(f"pd.{column.of('raw')}", f"pd.{column.of('base')}"))
    parts = (hot(kind, place, columns), late(kind, place, columns), packed(kind, place, columns, rows=days))
    some = (
        f"(SELECT timestamp, {column.quoted} AS register FROM ({part}) AS p WHERE {column.quoted} IS NOT NULL "
        f"ORDER BY timestamp DESC LIMIT {LOOK_BACK})"
        for part in parts
    )
    found = " UNION ALL ".join(some)
    return f"{found} UNION ALL {_GUARD.format(kind=kind.name, daily=quote_identifier(kind.daily), found=found)}"


def _sql(devices: str, tail: str, kind: Kind) -> str:
    columns = columns_of(kind, [kind.register])
    text = (_MEASURED + tail).replace("{devices}", devices)
    text = (
        text.replace("{earlier}", _earlier(kind, columns))
        .replace("{within}", source(kind, Place(_OF_DEVICE, "$2", "$3"), columns))
        .replace("{all}", source(kind, Place(SEVERAL, "$2", "$3"), columns))
        .replace("{rounding}", str(ROUNDING_KWH))
        .replace("{look_back}", str(LOOK_BACK))
        .replace("{reset_below}", f"{RESET_BELOW}::float8")
    )
    return for_kind(text, kind)


# Name -> which devices, and what is made of their counts.
_STATEMENTS: Final = {
    "fleet": (_OF_ALL, _FLEET),
    "series": (_OF_ALL, _SERIES),
    "paired": (_OF_ENTRIES, _PAIRED),
    "device": (_OF_ONE, _DEVICE),
    "each": (_OF_ONE, _EACH),
}


@cache
def _statement(name: str, kind: Kind) -> str:
    return _sql(*_STATEMENTS[name], kind)


async def _fetch(
    reader: Reader,
    name: str,
    kind: Kind,
    buckets: Sequence[int],
    window: Window,
    ratings: Ratings,
    *arguments: object,
    key: str = "energy",
) -> Rows:
    given = (window.start, window.end, ratings.as_json(), *arguments)
    return await fetch_rows(reader, _statement(name, kind), key, buckets, *given, anew=True)


def columns(entries: Sequence[tuple[int, str, Window]]) -> tuple[list[int], list[str], list[datetime], list[datetime]]:
    """Buckets, devices, starts and ends of (bucket, device, window) entries, as SQL takes them."""
    return (
        [bucket for bucket, _, _ in entries],
        [device_id for _, device_id, _ in entries],
        [window.start for _, _, window in entries],
        [window.end for _, _, window in entries],
    )


async def fleet(reader: Reader, kind: Kind, buckets: Sequence[int], window: Window, ratings: Ratings) -> Rows:
    """One item over all devices: energy, suspect, suspect_energy."""
    return await _fetch(reader, "fleet", kind, buckets, window, ratings)


async def series(
    reader: Reader, kind: Kind, buckets: Sequence[int], bounds: Sequence[datetime], ratings: Ratings
) -> Rows:
    """An item for each interval with counts: bin, energy, suspect, suspect_energy."""
    window = Window(bounds[0], bounds[-1])
    return await _fetch(reader, "series", kind, buckets, window, ratings, bounds, key="bin")


async def paired(
    reader: Reader,
    kind: Kind,
    buckets: Sequence[int],
    window: Window,
    entries: Sequence[tuple[int, str, Window]],
    ratings: Ratings,
) -> Rows:
    """One item: energy, suspect, suspect_energy of `entries`, whose windows are disjoint for each device."""
    return await _fetch(reader, "paired", kind, buckets, window, ratings, *columns(entries))


async def device(
    reader: Reader,
    kind: Kind,
    place: tuple[int, str],
    window: Window,
    paired: Sequence[Window],
    ratings: Ratings,
) -> Mapping[str, Any]:
    """What registers add to the sums of the device at `place` (bucket, ID): column -> value."""
    bucket, device_id = place
    arguments = (device_id, [w.start for w in paired], [w.end for w in paired])
    return (await _fetch(reader, "device", kind, [bucket], window, ratings, *arguments)).rows[0]


async def each(
    reader: Reader, kind: Kind, place: tuple[int, str], window: Window, ratings: Ratings
) -> Mapping[datetime, float]:
    """Time of each count in `window` -> kWh since the one before."""
    bucket, device_id = place
    found = await _fetch(reader, "each", kind, [bucket], window, ratings, device_id, key="timestamp")
    return {row["timestamp"]: row["energy"] for row in found.rows}
