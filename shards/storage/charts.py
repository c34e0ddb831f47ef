"""What a chart shows of one field, as SQL: of a device by interval or as points, of all devices by interval.

Percentiles of one device are exact. Those of all devices come from sketches that shards make and the router adds up:
counts of values by their logarithm, so that each percentile is within ACCURACY of a value that was there.
"""

import math
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Final

from shards.kinds import Field, Kind, Type
from shards.postgres.sql import for_kind, quote_identifier
from shards.storage.rows import COVERED, Reader, Rows, fetch_rows
from shards.storage.tiers import SEVERAL, Place, columns_of, source
from shards.window import Window

PERCENTILES: Final = (0.5, 0.9, 0.99)
ACCURACY: Final = 0.01
GAMMA: Final = (1 + ACCURACY) / (1 - ACCURACY)
OFFSET: Final = 2**20  # a key of a positive value is more than that, of a negative one less than its negative
TINY: Final = 1e-9  # below it a value is zero in a sketch
DENSE: Final = 8  # readings a point: of more, only the lowest and the highest of each part are looked at
_ONE: Final = "{row}.bucket = ($1::smallint[])[1] AND {row}.{id} = $2 AND {row}.tenant_id = {tenant}"
_BEFORE: Final = "timestamp - interval '1 microsecond'"
_BIN: Final = f"width_bucket({_BEFORE}, $5::timestamptz[])"
_READINGS: Final = "SELECT timestamp, {value} AS value, tier FROM {source} AS h WHERE {column} IS NOT NULL"
# A value holds until the next one. What an interval has of it weighs as long as that is.
_DEVICE: Final = f"""
WITH reading AS MATERIALIZED (
    {_READINGS}
), held AS (
    SELECT value, timestamp AS since, lead(timestamp, 1, least($4, now())) OVER (ORDER BY timestamp) AS until
    FROM reading
), weighed AS (
    SELECT bin, sum(value * seconds) / sum(seconds) AS weighted
    FROM held CROSS JOIN LATERAL generate_series(
        width_bucket(since, $5::timestamptz[]), width_bucket(until - interval '1 microsecond', $5::timestamptz[])
    ) AS bin
    CROSS JOIN LATERAL (
        SELECT date_part(
            'epoch', least(until, ($5::timestamptz[])[bin + 1]) - greatest(since, ($5::timestamptz[])[bin])
        ) AS seconds
    ) AS s WHERE until > since AND seconds > 0 GROUP BY 1
), told AS (
    SELECT {_BIN} AS bin, count(*) AS readings, min(value) AS lowest, max(value) AS highest,
        sum(value ORDER BY timestamp) / count(*) AS mean, (array_agg(value ORDER BY timestamp DESC))[1] AS last,
        percentile_cont(ARRAY[{", ".join(map(str, PERCENTILES))}]) WITHIN GROUP (ORDER BY value) AS percentiles,
        bit_or(tier) AS tiers
    FROM reading GROUP BY 1
)
SELECT {COVERED}, s.* FROM (SELECT) AS one LEFT JOIN (
    SELECT t.*, w.weighted FROM told AS t LEFT JOIN weighed AS w USING (bin)
) AS s ON true ORDER BY bin"""
_POINTS: Final = f"""
WITH reading AS MATERIALIZED (
    {_READINGS}
), size AS (
    SELECT count(*) AS n, coalesce(bit_or(tier), 0) AS tiers FROM reading
), part AS (
    SELECT (array_agg(timestamp ORDER BY value, timestamp))[1] AS lowest,
        (array_agg(timestamp ORDER BY value DESC, timestamp))[1] AS highest,
        min(timestamp) AS first, max(timestamp) AS last
    FROM reading WHERE (SELECT n FROM size) > {DENSE} * $5::integer
    GROUP BY floor(date_part('epoch', timestamp - $3) / date_part('epoch', $4::timestamptz - $3::timestamptz) * 2 * $5)
), chosen AS (
    SELECT timestamp, value FROM reading
    WHERE (SELECT n FROM size) <= {DENSE} * $5 OR timestamp IN (
        SELECT lowest FROM part UNION SELECT highest FROM part
        UNION SELECT min(first) FROM part UNION SELECT max(last) FROM part
    )
)
SELECT {COVERED}, (SELECT n FROM size) AS readings, (SELECT tiers FROM size) AS tiers,
    array_agg(date_part('epoch', timestamp)) AS times, array_agg(value) AS values
FROM (SELECT * FROM chosen ORDER BY timestamp) AS c"""
_FLEET: Final = f"""
WITH reading AS (
    SELECT width_bucket({_BEFORE}, $4::timestamptz[]) AS bin, value, tier,
        CASE WHEN abs(value) < {TINY} THEN 0
            ELSE sign(value)::integer * ({OFFSET} + ceil(ln(abs(value)) / {math.log(GAMMA)!r})::integer) END AS key
    FROM ({_READINGS}) AS r
), counted AS (
    SELECT bin, key, count(*) AS n, sum(value::numeric) AS total, min(value) AS lowest, max(value) AS highest,
        bit_or(tier) AS tiers
    FROM reading GROUP BY 1, 2
)
SELECT {COVERED}, s.* FROM (SELECT) AS one LEFT JOIN (
    SELECT bin, sum(n)::bigint AS readings, sum(total)::float8 AS total, min(lowest) AS lowest, max(highest) AS highest,
        bit_or(tiers) AS tiers, array_agg(key ORDER BY key) AS keys, array_agg(n ORDER BY key) AS counts
    FROM counted GROUP BY 1
) AS s ON true"""
_SHOWN: Final = {Type.FLOAT4: "{0}::text::float8", Type.INT: "{0}::float8", Type.BOOL: "{0}::integer::float8"}


@cache
def _sql(template: str, kind: Kind, column: str, place: Place) -> str:
    field = next(each for each in kind.stored if each.column == column)
    quoted = quote_identifier(column)
    texts = {
        "{value}": _SHOWN.get(field.type, "{0}").format(quoted),
        "{column}": quoted,
        "{source}": source(kind, place, columns_of(kind, [column])),
    }
    for placeholder, text in texts.items():
        template = template.replace(placeholder, text)
    return for_kind(template, kind)


async def device(reader: Reader, kind: Kind, field: Field, place: tuple[int, str], bounds: Sequence[datetime]) -> Rows:
    """An item for each interval of a device with readings: bin (from 1: up to `bounds[bin]`), readings, lowest, ...

    `weighted`: the mean by how long each value held; `percentiles`: as PERCENTILES.
    """
    statement = _sql(_DEVICE, kind, field.column, Place(_ONE, "$3", "$4"))
    arguments = (place[1], bounds[0], bounds[-1], bounds)
    return await fetch_rows(reader, statement, "bin", [place[0]], *arguments)


async def points(reader: Reader, kind: Kind, field: Field, place: tuple[int, str], window: Window, count: int) -> Rows:
    """One item of a device: readings, times (seconds of Unix) and values, in order; all, or some that show their shape.

    The first and the last one are among them, and the lowest and the highest.
    """
    statement = _sql(_POINTS, kind, field.column, Place(_ONE, "$3", "$4"))
    arguments = (place[1], window.start, window.end, count)
    return await fetch_rows(reader, statement, "readings", [place[0]], *arguments)


async def fleet(reader: Reader, kind: Kind, field: Field, buckets: Sequence[int], bounds: Sequence[datetime]) -> Rows:
    """An item for each interval with readings: bin, readings, total, lowest, highest; a sketch's keys and counts."""
    statement = _sql(_FLEET, kind, field.column, Place(SEVERAL, "$2", "$3"))
    return await fetch_rows(reader, statement, "bin", buckets, bounds[0], bounds[-1], bounds, anew=True)
