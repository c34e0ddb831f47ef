"""What registers counted in the hours of rollups (`count_span` of migration 0020): SQL that makes and keeps it.

Counts are in whole parts of a kWh, as energies are. What an hour's counts come to on their own is kept, so that an hour
depends on nothing outside: registers.py adds hours, and single counts, to each other.
"""

from functools import cache
from typing import Final

from shards.kinds import Kind
from shards.postgres.sql import for_kind
from shards.storage import parts
from shards.storage.packing import Column
from shards.storage.tiers import PACKED, Place, columns_of, hot, late, packed

RESET_BELOW: Final = 0.9  # of the count before
FIELDS: Final = ("counted", "first_count", "last_count", "peak", "began", "risen", "rate", "odd")
DAYS: Final = 20  # of devices, counted again in one transaction
HOURS: Final = 24 * DAYS  # likewise
# Bins are counted from a whole hour in UTC: date_trunc would ask the session's time zone.
ORIGIN: Final = "timestamptz '2000-01-01 00:00:00+00'"
HOUR_OF: Final = f"date_bin('1 hour', {{0}} - interval '1 microsecond', {ORIGIN})"
_KEY: Final = "bucket, tenant_id, {id}, at"
# Counts of hours, as `counted`: in each hour by itself, in the order of time.
_SPANS: Final = """stepped AS (
    SELECT *, lag(register) OVER w AS before FROM counted WINDOW w AS (PARTITION BY {key} ORDER BY timestamp)
), run AS (
    SELECT *, count(*) FILTER (WHERE register < {below} * before) OVER w AS run
    FROM stepped WINDOW w AS (PARTITION BY {key} ORDER BY timestamp)
), peaked AS (
    SELECT *, max(register) OVER (PARTITION BY {key}, run ORDER BY timestamp) AS peak FROM run
), higher AS (
    SELECT *, lag(peak) OVER (PARTITION BY {key} ORDER BY timestamp) AS high FROM peaked
), rising AS (
    SELECT *, before IS NULL OR register > high OR register < {below} * before AS rises FROM higher
), risen AS (
    SELECT *, max(timestamp) FILTER (WHERE rises) OVER (
        PARTITION BY {key} ORDER BY timestamp ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS risen
    FROM rising
), fallen AS (
    SELECT {key}, count(*)::integer AS counted, max(timestamp) AS until,
        (array_agg(register ORDER BY timestamp))[1] AS first_count,
        (array_agg(register ORDER BY timestamp DESC))[1] AS last_count,
        (array_agg(peak ORDER BY timestamp DESC))[1] AS peak, min(timestamp) AS began,
        max(timestamp) FILTER (WHERE rises) AS risen,
        coalesce(max((
            CASE WHEN register < {below} * before THEN register ELSE greatest(register - high, 0) END
        )::float8 / {seconds}), 0) AS rate,
        count(*) FILTER (WHERE register < before AND NOT register < {below} * before) AS dips,
        array_agg(ARRAY[high, before, register] ORDER BY timestamp) FILTER (WHERE register < {below} * before) AS resets
    FROM risen GROUP BY {key}
), span AS (
    SELECT {key}, until, ROW(
        counted, first_count, last_count, peak, began, risen, rate,
        CASE WHEN dips > 0 OR resets IS NOT NULL THEN ARRAY[ARRAY[dips, 0, 0]] || resets END
    )::count_span AS counts
    FROM fallen
)"""
_SECONDS: Final = "extract(epoch FROM timestamp - risen)::float8"
_COUNTED: Final = f"""counted AS (
    SELECT h.bucket, h.tenant_id, h.{{id}}, {HOUR_OF.format("h.timestamp")} AS at, h.timestamp, {{count}} AS register
    FROM ({{source}}) AS h WHERE {{register}} IS NOT NULL
)"""
# What comes after an hour's newest count, and is neither below it nor falls, is added to what is known of the hour.
_APPEND: Final = f"""
WITH {_COUNTED}, {_SPANS}, changed AS (
    UPDATE {{hourly}} AS k SET counted_until = s.until, counts = CASE
        WHEN k.registers = (s.counts).counted THEN s.counts
        WHEN k.registers = (k.counts).counted + (s.counts).counted AND (s.counts).began > k.counted_until
            AND (s.counts).odd IS NULL AND (s.counts).first_count >= (k.counts).last_count
        THEN ROW(
            k.registers, (k.counts).first_count, (s.counts).last_count, greatest((k.counts).peak, (s.counts).peak),
            (k.counts).began,
            CASE WHEN (s.counts).peak > (k.counts).peak THEN (s.counts).risen ELSE (k.counts).risen END,
            greatest((k.counts).rate, (s.counts).rate, greatest((s.counts).first_count - (k.counts).peak, 0)::float8
                / extract(epoch FROM (s.counts).began - (k.counts).risen)::float8), (k.counts).odd
        )::count_span
    END
    FROM span AS s
    WHERE k.bucket = s.bucket AND k.tenant_id = s.tenant_id AND k.{{id}} = s.{{id}} AND k.at = s.at
    RETURNING k.tenant_id, k.{{id}} AS device, k.at, k.counts IS NULL AS is_unknown
)
SELECT tenant_id, device, at FROM changed WHERE is_unknown"""
_AGAIN: Final = f"""
WITH asked AS MATERIALIZED (
    SELECT $1::smallint AS bucket, *
    FROM unnest($3::smallint[], $4::varchar[], $5::timestamptz[]) AS a (tenant_id, device, at)
), {_COUNTED}, {_SPANS}
UPDATE {{hourly}} AS k SET counts = s.counts, counted_until = s.until FROM span AS s
WHERE k.bucket = s.bucket AND k.tenant_id = s.tenant_id AND k.{{id}} = s.{{id}} AND k.at = s.at"""
# The last hour that is packed is not folded yet; others are known, unless they are of a release before.
_UNKNOWN_HOURS: Final = f"""
SELECT k.tenant_id, k.{{id}} AS device, k.at FROM tier AS t JOIN {{hourly}} AS k ON k.bucket = t.bucket
    AND k.at >= t.packed_until - interval '1 hour' AND {{which}}
WHERE t.bucket = $1::smallint AND t.kind = {{kind}} AND k.registers > 0 AND NOT t.archived @> k.at
    AND (k.counts).counted IS DISTINCT FROM k.registers LIMIT {HOURS}"""
_OF_HOUR: Final = "{row}.bucket = $1::smallint AND {row}.{id} = a.device AND {row}.tenant_id = a.tenant_id"
_OF_DAY: Final = "{row}.bucket = $1::smallint AND {row}.{id} = d.{id} AND {row}.tenant_id = d.tenant_id"
_STARTS: Final = "(d.day::timestamp AT TIME ZONE 'UTC')"
# Of what is archived there is nothing to be counted again.
_UNKNOWN_DAYS: Final = """
    SELECT d.bucket, d.tenant_id, d.{id}, d.day FROM {daily} AS d
    JOIN tier AS t ON t.bucket = d.bucket AND t.kind = {kind}
    WHERE d.bucket = $1::smallint AND d.registers IS NOT NULL AND d.counts IS NULL{which}"""
_ARE_GONE: Final = f"(t.archived @> {_STARTS} OR d.day < (t.summed_since AT TIME ZONE 'UTC')::date)"
_UNCOUNTABLE: Final = _UNKNOWN_DAYS.replace("{which}", f" AND {_ARE_GONE} LIMIT 10000")
# They are not looked for again: no counts tell as little as NULL.
_GIVE_UP: Final = f"""
UPDATE {{daily}} AS u SET counts = ARRAY[]::count_span[] FROM ({_UNCOUNTABLE}) AS d
WHERE u.bucket = d.bucket AND u.tenant_id = d.tenant_id AND u.{{id}} = d.{{id}} AND u.day = d.day"""
_TO_COUNT: Final = _UNKNOWN_DAYS.replace("{which}", f" AND NOT {_ARE_GONE} LIMIT {DAYS}")
_DAYS_AGAIN: Final = f"""
WITH asked AS MATERIALIZED ({_TO_COUNT}
), {_COUNTED}, {_SPANS}, again AS (
    SELECT d.bucket, d.tenant_id, d.{{id}}, d.day, array_agg(s.counts ORDER BY n) AS counts
    FROM asked AS d CROSS JOIN generate_series(0, 23) AS n
    LEFT JOIN span AS s ON s.{{id}} = d.{{id}} AND s.tenant_id = d.tenant_id
        AND s.at = {_STARTS} + n * interval '1 hour'
    GROUP BY 1, 2, 3, 4
)
UPDATE {{daily}} AS d SET counts = a.counts FROM again AS a
WHERE d.bucket = a.bucket AND d.tenant_id = a.tenant_id AND d.{{id}} = a.{{id}} AND d.day = a.day"""
_INGESTED: Final = ", h.ingested_at"
_UNKNOWN: Final = ", NULL::timestamptz AS ingested_at"


def are_kept(kind: Kind) -> bool:
    """Whether hours keep what registers counted: where the largest count is declared, and small enough."""
    return parts.are_whole(kind) and parts.is_counted(kind)


def _columns(kind: Kind) -> tuple[Column, ...]:
    return columns_of(kind, [kind.register])


def unpacked(kind: Kind, place: Place) -> str:
    """Counts that are not packed, with when they were ingested."""
    return " UNION ALL ".join(tier(kind, place, _columns(kind), _INGESTED) for tier in (hot, late))


def _known(kind: Kind, place: Place, mark: str) -> str:
    """Those of a place that rollups with this mark hold."""
    every = f"{unpacked(kind, place)} UNION ALL {packed(kind, place, _columns(kind), _UNKNOWN)}"
    return f"SELECT * FROM ({every}) AS e WHERE e.tier = {PACKED} OR e.ingested_at < {mark}"


def _filled(template: str, kind: Kind, source: str) -> str:
    texts = {
        "{source}": source,
        "{count}": parts.register(kind),
        "{key}": _KEY,
        "{below}": f"{RESET_BELOW}::float8",
        "{seconds}": _SECONDS,
    }
    for placeholder, text in texts.items():
        template = template.replace(placeholder, text)
    return for_kind(template, kind)


@cache
def append(kind: Kind) -> str:
    """Counts of a bucket ($1) that were ingested from $2 to before $3, after their sums; gives the hours in doubt."""
    ingested = "{row}.bucket = $1::smallint AND {row}.ingested_at >= $2 AND {row}.ingested_at < $3"
    return _filled(_APPEND, kind, unpacked(kind, Place(ingested)))


@cache
def fill(kind: Kind) -> str:
    """The same of what a bucket ($1) holds of a time after $3 up to $4, if it was ingested before $2, or is packed."""
    return _filled(_APPEND, kind, _known(kind, Place("{row}.bucket = $1::smallint", "$3", "$4", guarded=False), "$2"))


@cache
def hours(kind: Kind) -> str:
    """Count hours of a bucket ($1; tenants, devices, hours: $3 to $5) again, from what was ingested before $2."""
    place = Place(_OF_HOUR, "a.at", "(a.at + interval '1 hour')", guarded=False)
    known = f"SELECT h.* FROM asked AS a CROSS JOIN LATERAL ({_known(kind, place, '$2::timestamptz')}) AS h"
    return _filled(_AGAIN, kind, known)


@cache
def unknown_hours(kind: Kind, *, hot: bool) -> str:
    """Tenants, devices and hours of a bucket ($1) that are not known: of its last packed hour, or also of hot ones."""
    return for_kind(_UNKNOWN_HOURS.replace("{which}", "true" if hot else "k.at < t.packed_until"), kind)


@cache
def unknown_days(kind: Kind) -> str:
    """Whether a bucket ($1) has days that are to be counted again: there are none, most of the time."""
    return for_kind(f"SELECT EXISTS ({_UNKNOWN_DAYS.replace('{which}', '')})", kind)


@cache
def give_up(kind: Kind) -> str:
    """Of a bucket's ($1) days that are not known, leave those alone whose readings, or sums, are not there."""
    return for_kind(_GIVE_UP, kind)


@cache
def days(kind: Kind) -> str:
    """Count some of a bucket's ($1) days that are not known again, from what was ingested before $2 or is packed."""
    place = Place(_OF_DAY, _STARTS, f"({_STARTS} + interval '1 day')", guarded=False)
    known = f"SELECT h.* FROM asked AS d CROSS JOIN LATERAL ({_known(kind, place, '$2::timestamptz')}) AS h"
    return _filled(_DAYS_AGAIN, kind, known)
