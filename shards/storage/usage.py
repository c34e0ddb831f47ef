"""What a tenant stores, by day: readings, devices, and about how many bytes; from rollups where a shard has them."""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Final

from shards.kinds import Kind
from shards.postgres.sql import for_kind
from shards.storage import parts, rolled, sums
from shards.storage.rollups import hours
from shards.storage.rows import COVERED, Reader, Rows, fetch_rows
from shards.storage.tiers import PACKED, SEVERAL, Place, source

# Bytes of a reading, hot and packed, as the shard's tables of all tenants have them on average, with indexes.
_SIZE: Final = """size AS MATERIALIZED (
    SELECT
        coalesce((
            SELECT sum(pg_total_relation_size(relid)) / nullif(sum(pg_stat_get_live_tuples(relid)), 0)
            FROM pg_partition_tree('{history}'::regclass) WHERE isleaf
        ), 0)::float8 AS hot,
        coalesce((
            SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('{packed}'::regclass) WHERE isleaf
        ) / nullif((SELECT sum(packed_readings) FROM tier WHERE kind = {kind}), 0), 0)::float8 AS packed
)"""
_DAYS: Final = """
SELECT {covered}, s.* FROM (SELECT) AS one LEFT JOIN (
    SELECT r.bin, r.readings, d.devices, r.tiers, (r.packed * size.packed + r.hot * size.hot)::bigint AS bytes
    FROM (
        SELECT bin, sum(readings)::bigint AS readings, bit_or(tier) AS tiers,
            coalesce(sum(readings) FILTER (WHERE is_packed), 0)::float8 AS packed,
            coalesce(sum(readings) FILTER (WHERE NOT is_packed), 0)::float8 AS hot
        FROM reading GROUP BY 1
    ) AS r JOIN (SELECT bin, count(DISTINCT device) AS devices FROM device GROUP BY 1) AS d USING (bin), size
) AS s ON true"""
_BIN: Final = "width_bucket({0}, $4::timestamptz[])"
_OF_READING: Final = _BIN.format("timestamp - interval '1 microsecond'")
_OF_ROLLUP: Final = _BIN.format("k.at")
_FROM_ROLLUPS: Final = (
    rolled.FRESH
    + ", "
    + _SIZE
    + f""", reading AS (
    SELECT {_OF_ROLLUP} AS bin, k.readings,
        CASE WHEN NOT t.archived @> k.at THEN k.at < t.packed_until END AS is_packed, {{rollups}} AS tier
    FROM {{minutely}} AS k JOIN tier AS t ON t.bucket = k.bucket AND t.kind = {{kind}}
    WHERE {{of_tenant}} AND k.at >= $2::timestamptz AND k.at < $3::timestamptz
    UNION ALL SELECT {_OF_READING}, 1, false, tier FROM fresh
), device AS (
    SELECT DISTINCT {_OF_ROLLUP} AS bin, k.{{id}} AS device FROM ({{hours}}) AS k
    UNION SELECT {_OF_READING}, device FROM fresh
)"""
    + _DAYS
)
_FROM_READINGS: Final = (
    "WITH "
    + _SIZE
    + f""", reading AS MATERIALIZED (
    SELECT {_OF_READING} AS bin, 1 AS readings, h.tier = {PACKED} AS is_packed, h.tier, h.{{id}} AS device
    FROM {{source}} AS h
), device AS (SELECT bin, device FROM reading)"""
    + _DAYS
)


@cache
def _statement(kind: Kind, *, from_rollups: bool) -> str:
    if from_rollups:
        texts = {"{fresh}": rolled.fresh(kind), "{hours}": hours(rolled.OF_ALL, "$2", "$3")}
        return rolled.filled(_FROM_ROLLUPS, texts, kind)
    text = _FROM_READINGS.replace("{source}", source(kind, Place(SEVERAL, "$2", "$3"), ()))
    return for_kind(text.replace("{covered}", COVERED), kind)


async def by_day(reader: Reader, kind: Kind, buckets: Sequence[int], bounds: Sequence[datetime]) -> Rows:
    """An item for each day with readings: `bin` (from 1: up to `bounds[bin]`), readings, devices, bytes, tiers.

    The bounds are whole hours.
    """
    from_rollups = parts.are_whole(kind) and await sums.are_rolled(reader, kind, buckets, bounds[0])
    statement = _statement(kind, from_rollups=from_rollups)
    arguments = (bounds[0], bounds[-1], bounds)
    return await fetch_rows(reader, statement, "bin", buckets, *arguments, anew=True)
