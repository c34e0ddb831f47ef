"""What registers count between two times, as SQL: spans of counts in the order of time, each beside what was before it.

A span is one count, or an hour of rollups (spans.py): the same sums come of both. So they do of archived hours, as what
lies before a window is looked at by the hour: all counts of the hour of the newest one, and of the hour before.
"""

from enum import Enum, auto
from functools import cache
from typing import Final

from shards.kinds import Kind
from shards.postgres.sql import for_kind
from shards.storage import parts
from shards.storage.judging import ROUNDING_KWH
from shards.storage.packing import Column
from shards.storage.remainder import RECENT, ROLLED
from shards.storage.rolled import OF_ALL
from shards.storage.rollups import hours, roles
from shards.storage.rows import COVERED
from shards.storage.spans import FIELDS, HOUR_OF, RESET_BELOW, unpacked
from shards.storage.tiers import SEVERAL, Place, columns_of, hot, late, newest_days, packed, source

FEW: Final = 200  # hours that are read count by count,
MANY: Final = 8  # and one of so many: reading all of the period takes less than more of them


class Source(Enum):
    """What a statement looks at: readings alone, or hours that are known, and few that are not, or however many."""

    READINGS = auto()
    HOURS = auto()
    ALL_HOURS = auto()


_RATING: Final = """rating AS MATERIALIZED (
    SELECT device COLLATE "C" AS device, interval_s, power_max_kw, register_max_kwh
    FROM jsonb_to_recordset($4::jsonb -> 'devices')
        AS d (device text, interval_s float8, power_max_kw float8, register_max_kwh float8)
    UNION ALL
    SELECT NULL, interval_s, power_max_kw, register_max_kwh
    FROM jsonb_to_record($4::jsonb) AS d (interval_s float8, power_max_kw float8, register_max_kwh float8)
)"""
_RATED: Final = """
    LEFT JOIN rating AS own ON own.device = h.device
    JOIN rating AS every ON every.device IS NULL"""
_POWER: Final = "coalesce(own.power_max_kw, every.power_max_kw) / 3600"
# Its first count beside what was before is `edge`; up to its first reset it is `rise`, and behind that `later`.
_READING: Final = """stepped AS (
    SELECT *, lag(last_count) OVER w AS before FROM seen WINDOW w AS (PARTITION BY device ORDER BY timestamp, began)
), reset AS (
    SELECT *, coalesce(first_count < {below} * before, false) AS resets,
        coalesce(cardinality(odd) / 3 - 1, 0) AS more
    FROM stepped
), run AS (
    SELECT *, sum(more + resets::integer) OVER w AS run
    FROM reset WINDOW w AS (PARTITION BY device ORDER BY timestamp, began)
), peaked AS (
    SELECT *, max(peak) OVER (PARTITION BY device, run ORDER BY timestamp, began) AS top FROM run
), highest AS (
    SELECT *, lag(top) OVER (PARTITION BY device ORDER BY timestamp, began) AS high FROM peaked
), rising AS (
    SELECT *, max(risen) FILTER (WHERE before IS NULL OR resets OR more > 0 OR head > high) OVER (
        PARTITION BY device ORDER BY timestamp, began ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS since
    FROM highest
), measured AS (
    SELECT h.device, h.timestamp,
        coalesce(odd[1][1], 0) + (NOT resets AND coalesce(first_count < before, false))::integer AS dips,
        CASE
            WHEN before IS NULL THEN 0
            WHEN NOT resets THEN greatest(first_count - high, 0)
            WHEN before >= {below} * {maximum} THEN greatest({maximum} - high, 0) + first_count
            ELSE first_count
        END AS edge,
        CASE WHEN before IS NULL OR resets THEN head - first_count
            ELSE greatest(head - greatest(high, first_count), 0) END AS rise,
        CASE WHEN more > 0 THEN (
            SELECT sum(
                CASE WHEN n < more THEN odd[n + 2][1] ELSE peak END + CASE
                    WHEN odd[n + 1][2] >= {below} * {maximum} THEN greatest({maximum} - CASE
                        WHEN n > 1 OR resets THEN odd[n + 1][1] ELSE greatest(odd[n + 1][1], high)
                    END, 0)
                    ELSE 0
                END
            ) FROM generate_series(1, more) AS n
        ) ELSE 0 END AS later,
        {power} * {unit} * greatest(
            extract(epoch FROM began - since)::float8, coalesce(own.interval_s, every.interval_s)
        ) + {rounding} * {unit} AS most
    FROM rising AS h{rated}
    WHERE h.timestamp > $2
), reading AS (
    SELECT device, timestamp, rise + later + CASE WHEN edge > most THEN 0 ELSE edge END AS energy,
        dips + coalesce(edge > most, false)::integer AS suspect,
        CASE WHEN edge > most THEN edge ELSE 0 END AS suspect_energy
    FROM measured
)
"""
_COLUMNS: Final = "timestamp, began, first_count, last_count, head, peak, risen, odd"
# One count is a span by itself.
_SINGLE: Final = (
    "h.timestamp, h.timestamp AS began, {0} AS first_count, {0} AS last_count, {0} AS head, {0} AS peak, "
    "h.timestamp AS risen, NULL::bigint[] AS odd"
)
_SPAN: Final = (
    "h.until AS timestamp, h.began, h.first_count, h.last_count, "
    "CASE WHEN cardinality(h.odd) > 3 THEN h.odd[2][1] ELSE h.peak END AS head, h.peak, h.risen, h.odd"
)
# Also by what is given: so partitions of other buckets are left out when the statement is planned.
_OF_DEVICE: Final = (
    "{row}.bucket = d.bucket AND {row}.bucket = ANY($1::smallint[]) AND {row}.{id} = d.device "
    "AND {row}.tenant_id = {tenant}"
)
_AN_HOUR: Final = "interval '1 hour'"
_HOUR_OF_START: Final = HOUR_OF.format("$2::timestamptz")
_BEGIN: Final = f"({_HOUR_OF_START} - {_AN_HOUR})"
# The newest archived hour of device `d` before the window: rollups say whether it counted. A month's last hour may not
# be folded; the window's own day may have none before it.
_GONE: Final = f"""
    SELECT max(g.at) AS hour FROM tier AS ar CROSS JOIN LATERAL (
        SELECT (k.day::timestamp AT TIME ZONE 'UTC') + (u.n - 1) * {_AN_HOUR} AS at
        FROM (
            SELECT k.day, k.registers FROM {{daily}} AS k
            WHERE k.bucket = d.bucket AND k.{{id}} = d.device AND k.tenant_id = {{tenant}} AND k.registers IS NOT NULL
                AND k.day <= ($2 AT TIME ZONE 'UTC')::date AND ar.archived @> (k.day::timestamp AT TIME ZONE 'UTC')
            ORDER BY k.day DESC LIMIT 3
        ) AS k CROSS JOIN LATERAL unnest(k.registers) WITH ORDINALITY AS u (registers, n) WHERE u.registers > 0
        UNION ALL (
            SELECT k.at FROM {{hourly}} AS k
            WHERE k.bucket = d.bucket AND k.{{id}} = d.device AND k.tenant_id = {{tenant}} AND k.registers > 0
                AND k.at < $2 AND ar.archived @> k.at ORDER BY k.at DESC LIMIT 1
        )
    ) AS g
    WHERE ar.kind = {{kind}} AND ar.bucket = d.bucket AND g.at < $2
        AND is_archived(ar.archived, NULL, $2::timestamptz)"""
_GONE_HOURS: Final = f"""
    SELECT {_SPAN} FROM ({{gone_hours}}) AS h JOIN tier AS ar ON ar.kind = {{kind}} AND ar.bucket = h.bucket
    WHERE h.registers > 0 AND ar.archived @> h.at AND CASE
        WHEN h.counted = h.registers AND h.at >= ar.summed_since THEN true ELSE refuse_archived(ar.kind, ar.archived)
    END"""
_LOOK_BACK: Final = f"""
SELECT r.* FROM (
    SELECT {HOUR_OF.format("max(e.timestamp)")} AS hour FROM ({{newest}}) AS e
) AS n CROSS JOIN LATERAL (
    {_GONE}
) AS g CROSS JOIN LATERAL (
    SELECT d.bucket, d.device, greatest(n.hour, g.hour) - {_AN_HOUR} AS hour
) AS l CROSS JOIN LATERAL (
    SELECT {{single}} FROM {{earlier}} AS h WHERE {{register}} IS NOT NULL
    UNION ALL
    SELECT * FROM ({_GONE_HOURS}) AS h WHERE g.hour IS NOT NULL
) AS r"""
_READ: Final = """device AS MATERIALIZED (
    {devices}
), seen AS (
    SELECT d.device, r.* FROM device AS d CROSS JOIN LATERAL (
        {look_back}
        UNION ALL
        SELECT {single} FROM {within} AS h WHERE {register} IS NOT NULL
    ) AS r
)"""
# An hour that is folded may have a second part, of what came late: then it is not known. One that is archived may be
# unfolded, or its last instant came late, behind all others. `bad` hours are read count by count: it is not known what
# they counted, something came since, a window begins or ends in them, a count may be more than the power allows.
_ROLLED: Final = f"""mark AS MATERIALIZED (
    SELECT bucket, rolled_until AS since, packed_until - {_AN_HOUR} AS folded, summed_since, archived FROM tier
    WHERE kind = {{kind}} AND bucket = ANY($1::smallint[]) AND rolled_of = '{{roles}}' AND summed_since <= $2
), device AS MATERIALIZED (
    {{devices}}
), hour AS MATERIALIZED (
    SELECT k.bucket, k.{{id}} AS device, k.at, k.until, k.registers, {", ".join(f"k.{name}" for name in FIELDS)},
        k.folded OR k.at >= m.folded OR m.archived @> k.at AS is_whole, {{cuts}} AS cuts
    FROM ({{hours}}) AS k JOIN mark AS m ON m.bucket = k.bucket AND k.at >= m.summed_since{{of_devices}}
    WHERE k.registers > 0 AND (k.began <= $3) IS NOT FALSE
), fresh AS MATERIALIZED (
    SELECT h.bucket, h.{{id}} AS device, h.timestamp, {{count}} AS register
    FROM ({{fresh}}) AS h JOIN mark AS m ON m.bucket = h.bucket
    WHERE h.ingested_at >= m.since AND {{register}} IS NOT NULL
        AND {HOUR_OF.format("h.timestamp")} >= m.summed_since
), bad AS MATERIALIZED (
    SELECT h.bucket, h.device, h.at FROM hour AS h{_RATED}
    WHERE h.counted IS DISTINCT FROM h.registers OR NOT h.is_whole
        OR width_bucket(h.began - interval '1 microsecond', h.cuts)
            <> width_bucket(h.until - interval '1 microsecond', h.cuts)
        OR {_POWER} IS NOT NULL AND (h.rate > {_POWER} * {{unit}} OR EXISTS (
            SELECT FROM generate_series(2, cardinality(h.odd) / 3) AS n WHERE h.odd[n][2] >= {{below}} * {{maximum}}
        ))
    UNION
    SELECT h.bucket, h.device, h.at FROM fresh AS f
    JOIN hour AS h ON h.bucket = f.bucket AND h.device = f.device AND h.at = {HOUR_OF.format("f.timestamp")}
    WHERE f.timestamp <= h.until
), few AS MATERIALIZED (
    SELECT {{few}} AS few FROM bad
), segment AS MATERIALIZED (
    SELECT h.bucket, h.device, {_SPAN} FROM hour AS h
    WHERE NOT EXISTS (SELECT FROM bad AS b WHERE b.bucket = h.bucket AND b.device = h.device AND b.at = h.at)
    UNION ALL
    SELECT h.bucket, h.device, {_SINGLE.format("h.register")} FROM fresh AS h
    WHERE NOT EXISTS (
        SELECT FROM bad AS b
        WHERE b.bucket = h.bucket AND b.device = h.device AND b.at = {HOUR_OF.format("h.timestamp")}
    ){{only_devices}}
    UNION ALL
    SELECT d.bucket, d.device, {{single}}
    FROM bad AS d CROSS JOIN LATERAL ({{counts}}) AS h WHERE (SELECT few FROM few) AND {{register}} IS NOT NULL
), placed AS MATERIALIZED (
    SELECT DISTINCT device FROM segment WHERE timestamp > {_HOUR_OF_START} AND timestamp <= $2
), lost AS MATERIALIZED (
    SELECT DISTINCT bucket, device FROM segment AS s
    WHERE timestamp > $2 AND NOT EXISTS (SELECT FROM placed AS p WHERE p.device = s.device)
), seen AS (
    SELECT device, {_COLUMNS} FROM segment AS s
    WHERE timestamp > $2 OR EXISTS (SELECT FROM placed AS p WHERE p.device = s.device)
    UNION ALL
    SELECT d.device, r.* FROM lost AS d CROSS JOIN LATERAL ({{look_back}}) AS r
)"""
_SEVERAL: Final = "SELECT DISTINCT bucket, {id} AS device FROM {all} AS h WHERE {register} IS NOT NULL"
_ONE: Final = "SELECT ($1::smallint[])[1] AS bucket, $5::varchar AS device"
_ENTRIES: Final = """SELECT bucket, device, array_agg(DISTINCT cut ORDER BY cut) AS cuts
    FROM unnest($5::smallint[], $6::varchar[], $7::timestamptz[], $8::timestamptz[]) AS w (bucket, device, starts, ends)
    CROSS JOIN LATERAL unnest(ARRAY[starts, ends, $2, $3]) AS cut WHERE bucket = ANY($1::smallint[]) GROUP BY 1, 2"""
_OF_ONE: Final = "{row}.bucket = ANY({rolled}) AND {row}.{id} = $5 AND {row}.tenant_id = {tenant}"
# Not found by the device: what is fresh is of a minute or two.
_FRESH_OF_ONE: Final = SEVERAL.replace(" AND", " AND ({row}.{id} = $5) IS TRUE AND", 1)
# What is asked for -> which devices, the hours that are theirs, and where these may not be cut.
_ASKED: Final = {
    "fleet": (_SEVERAL, OF_ALL, "ARRAY[$2, $3]::timestamptz[]"),
    "series": (_SEVERAL, OF_ALL, "$5::timestamptz[]"),
    "paired": (_ENTRIES, OF_ALL, "d.cuts"),
    "device": (
        _ONE,
        _OF_ONE,
        "(SELECT array_agg(c ORDER BY c) FROM unnest($6::timestamptz[] || $7::timestamptz[] || ARRAY[$2, $3]) AS c)",
    ),
    "each": (_ONE, "", ""),
}


def _columns(kind: Kind) -> tuple[Column, ...]:
    return columns_of(kind, [kind.register])


def _newest(kind: Kind) -> str:
    """The newest count of device `d` up to the window, of each tier."""
    place = Place(_OF_DEVICE, until="$2", guarded=False)
    columns = _columns(kind)
    (column,) = columns
    known = "coalesce(cardinality(array_remove({0}, NULL)), CASE WHEN {1} IS NOT NULL THEN pd.n ELSE 0 END)"
    days = newest_days(kind, place, "1", known.format(f"pd.{column.of('raw')}", f"pd.{column.of('base')}"))
    tiers = (hot(kind, place, columns), late(kind, place, columns), packed(kind, place, columns, rows=days))
    return " UNION ALL ".join(
        f"(SELECT timestamp FROM ({tier}) AS p WHERE {column.quoted} IS NOT NULL ORDER BY timestamp DESC LIMIT 1)"
        for tier in tiers
    )


def _look_back(kind: Kind) -> str:
    after = f"greatest(l.hour, g.hour + {_AN_HOUR})"
    earlier = source(kind, Place(_OF_DEVICE, after, "$2", guarded=False), _columns(kind))
    which = "{row}.bucket = l.bucket AND {row}.{id} = l.device AND {row}.tenant_id = {tenant}"
    gone = hours(which, "l.hour", "$2", counts=True)
    texts = {"{newest}": _newest(kind), "{earlier}": earlier, "{gone_hours}": gone}
    template = _LOOK_BACK
    for placeholder, text in texts.items():
        template = template.replace(placeholder, text)
    return template


def _counts(kind: Kind) -> str:
    """The counts of an hour of `d`; the period's own times let partitions be left out."""
    columns, after, until = _columns(kind), "d.at", f"least(d.at + {_AN_HOUR}, $3::timestamptz)"
    rows = Place(f"{_OF_DEVICE} AND {{row}}.timestamp > {_BEGIN} AND {{row}}.timestamp <= $3", after, until)
    first, last = (f"({moment} AT TIME ZONE 'UTC')::date" for moment in (_BEGIN, "$3::timestamptz"))
    days = Place(f"{_OF_DEVICE} AND {{row}}.day >= {first} AND {{row}}.day <= {last}", after, until)
    tiers = (hot(kind, rows, columns), late(kind, rows, columns), packed(kind, days, columns))
    return " UNION ALL ".join(tiers)


def _fresh(kind: Kind, name: str) -> str:
    which = _FRESH_OF_ONE if name == "device" else SEVERAL
    return unpacked(kind, Place(f"{which} AND {RECENT}", _BEGIN, "$3"))


def _template(name: str, kind: Kind, *, from_rollups: bool) -> str:
    devices, own, cuts = _ASKED[name]
    if not from_rollups:
        within = source(kind, Place(_OF_DEVICE, "$2", "$3"), _columns(kind))
        return _READ.replace("{devices}", devices).replace("{within}", within)
    paired = name == "paired"
    texts = {
        "{devices}": devices if paired else "SELECT",
        "{hours}": hours(own, _BEGIN, "$3", counts=True),
        "{of_devices}": " JOIN device AS d ON d.bucket = k.bucket AND d.device = k.{id}" if paired else "",
        "{only_devices}": " AND h.device IN (SELECT device FROM device)" if paired else "",
        "{cuts}": cuts,
        "{fresh}": _fresh(kind, name),
        "{counts}": _counts(kind),
        "{rolled}": ROLLED,
    }
    template = _ROLLED
    for placeholder, text in texts.items():
        template = template.replace(placeholder, text)
    return template


@cache
def statement(name: str, tail: str, kind: Kind, source_: Source) -> str:
    """A statement over `reading` (device, timestamp, energy, suspect, suspect_energy), in parts of a kWh.

    What is asked for: `name`, of `_ASKED`; `tail`: what is selected. `{covered}` in it: the buckets that were read, and
    `singly`: whether too many hours would have been read count by count, and were not.
    """
    from_rollups = source_ is not Source.READINGS
    template = f"WITH {_RATING}, {_template(name, kind, from_rollups=from_rollups)}, {_READING}{tail}"
    covered = COVERED.replace("ANY($1::smallint[])", f"ANY({ROLLED})") if from_rollups else COVERED
    covered += f", {'NOT (SELECT few FROM few)' if from_rollups else 'false'} AS singly"
    whole = "round({0})::bigint" if parts.is_counted(kind) else "{0}"
    texts = {
        "{covered}": covered,
        "{few}": "true" if source_ is Source.ALL_HOURS else f"count(*) <= {FEW} + (SELECT count(*) FROM hour) / {MANY}",
        "{look_back}": _look_back(kind),
        "{single}": _SINGLE.format("{count}"),
        "{count}": parts.register(kind),
        "{all}": source(kind, Place(SEVERAL, "$2", "$3"), _columns(kind)),
        "{rated}": _RATED,
        "{power}": _POWER,
        "{maximum}": whole.format(f"(coalesce(own.register_max_kwh, every.register_max_kwh) * {parts.COUNT}::float8)"),
        "{unit}": f"{parts.COUNT}::float8",
        "{below}": f"{RESET_BELOW}::float8",
        "{rounding}": str(ROUNDING_KWH),
        "{roles}": roles(kind),
    }
    for placeholder, text in texts.items():
        template = template.replace(placeholder, text)
    return for_kind(template, kind)
