"""The same sums as summed.py, from rollups and what they do not hold yet, as SQL.

Whole hours come from the sums of devices, whole minutes from those of buckets, both in one snapshot with the bucket's
mark: readings that were ingested from it on are `fresh`, and read one by one. So are the rest of an hour or a minute,
and hours in which a device has an energy above what its rating allows.
"""

from collections.abc import Mapping
from functools import cache
from typing import Final

from shards.kinds import Kind
from shards.postgres.sql import for_kind
from shards.storage import judging, parts
from shards.storage.remainder import ROLLED, Remainder
from shards.storage.rollups import hours, roles
from shards.storage.rows import COVERED
from shards.storage.spans import ORIGIN
from shards.storage.tiers import ROLLUPS

# A bucket that has lost its rollups since somebody looked is not covered: the shard is asked again, for its readings.
_MARK: Final = """
WITH mark AS MATERIALIZED (
    SELECT bucket, rolled_until AS since FROM tier
    WHERE kind = {kind} AND bucket = ANY($1::smallint[]) AND rolled_of = '{roles}' AND summed_since <= {begins}
)"""
_COVERED: Final = COVERED.replace("ANY($1::smallint[])", f"ANY({ROLLED})")
_READING: Final = "{parts_energy} AS energy, {parts_temperature} AS temperature, {register} AS register"
_SUM: Final = "readings, energies, registers, energy, temperature, temperatures"
OF_ALL: Final = "{row}.bucket = ANY({rolled}) AND {row}.tenant_id = {tenant}"
_OF_TENANT: Final = OF_ALL.replace("{row}", "k")
# Of readings: by what is given, so that partitions are left out when the statement is planned.
_IN_PERIOD: Final = "{row}.bucket = ANY($1::smallint[]) AND {row}.tenant_id = {tenant}"
# A row of `total`, for each of these: what is left out of its energy is told as suspect.
_OF_ROLLUP: Final = f"{_SUM}, 0 AS suspect, 0::numeric AS suspect_energy, {ROLLUPS} AS tier"
_OF_READING: Final = """1 AS readings, (energy IS NOT NULL)::integer AS energies,
    (register IS NOT NULL)::integer AS registers, CASE WHEN NOT implausible THEN energy END AS energy, temperature,
    (temperature IS NOT NULL)::integer AS temperatures, implausible::integer AS suspect,
    CASE WHEN implausible THEN energy END AS suspect_energy, tier"""
_OF_SPOT: Final = """0 AS readings, 0 AS energies, 0 AS registers, -energy AS energy, 0 AS temperature,
    0 AS temperatures, 1 AS suspect, energy AS suspect_energy, tier"""
_SUMS: Final = f"""
    coalesce(sum(readings), 0)::bigint AS readings,
    coalesce(sum(registers), 0)::bigint AS registers,
    {parts.total("energy", parts.KWH)} AS energy,
    coalesce(sum(suspect), 0)::bigint AS suspect,
    {parts.total("suspect_energy", parts.KWH)} AS suspect_energy,
    {parts.total("temperature", parts.DEGREE)} AS temperature,
    coalesce(sum(temperatures), 0)::bigint AS temperatures,
    coalesce(bit_or(tier), 0) AS tiers"""
_ROW: Final = "h.timestamp, {reading}, {implausible} AS implausible, h.tier"
FRESH: Final = (
    _MARK
    + f""", fresh AS MATERIALIZED (
    SELECT h.{{id}} AS device, {_ROW} FROM ({{fresh}}) AS h {{rated}}
)"""
)

# `sharp`: what a period has before its first whole minute and after its last one. `outside`: devices of its first hour
# or its last, and of no other. Only they are looked for among the readings: another statement does, if there are any.
_FLEET: Final = (
    FRESH
    + """, core AS MATERIALIZED (
    SELECT k.{id} AS device, sum(k.readings) AS readings, sum(k.energies) AS energies, sum(k.registers) AS registers,
        sum(k.energy) AS energy, sum(k.temperature) AS temperature, sum(k.temperatures) AS temperatures
    FROM ({whole_hours}) AS k GROUP BY 1
), outside AS MATERIALIZED (
    SELECT DISTINCT k.bucket, k.{id} AS device FROM ({first_hour} UNION ALL {last_hour}) AS k
    WHERE NOT EXISTS (SELECT FROM core WHERE core.device = k.{id})
        AND NOT EXISTS (SELECT FROM fresh WHERE fresh.device = k.{id})
){sharp}, device AS (
    SELECT device FROM core UNION SELECT device FROM fresh{sharp_devices}{outside_devices}
), spot AS ({spots}
), total AS (
    SELECT {of_rollup} FROM core
    UNION ALL
    SELECT {of_rollup} FROM {minutely} AS k WHERE {of_tenant} AND k.at >= $6::timestamptz AND k.at < $4
    UNION ALL
    SELECT {of_rollup} FROM {minutely} AS k WHERE {of_tenant} AND k.at >= $5 AND k.at < $7::timestamptz
    UNION ALL SELECT {of_reading} FROM fresh
    UNION ALL SELECT {of_spot} FROM spot{sharp_rows}
)
SELECT {covered}, (SELECT count(*) FROM device) AS devices, {mixed} AS mixed, {outside} AS outside,
    (SELECT sum(60 / {interval}) FROM device AS d {rated_devices}) AS per_minute, {sums}
FROM total"""
)
_SHARP: Final = f""", sharp AS MATERIALIZED (
    SELECT h.{{id}} AS device, {_ROW} FROM ({{edges}}) AS h {{rated}}
)"""
_SHARP_ROWS: Final = "\n    UNION ALL SELECT {of_reading} FROM sharp"
# Devices that sent both energies and counts, of the whole period.
_MIXED: Final = """(
    SELECT count(*) FROM (
        SELECT device FROM (
            SELECT device, readings, registers FROM core
            UNION ALL SELECT device, 1, (register IS NOT NULL)::integer FROM fresh
            UNION ALL SELECT device, 1, (register IS NOT NULL)::integer FROM sharp
        ) AS e GROUP BY 1 HAVING sum(registers) BETWEEN 1 AND sum(readings) - 1
    ) AS m
)"""
_SHARP_DEVICES: Final = " UNION SELECT device FROM sharp"
_OUTSIDE_DEVICES: Final = """
    UNION
    SELECT device FROM outside AS x WHERE EXISTS (SELECT FROM ({first}) AS h) OR EXISTS (SELECT FROM ({last}) AS h)"""
_SERIES: Final = (
    FRESH
    + """, spot AS ({spots}
), total AS (
    SELECT width_bucket(k.at, $4::timestamptz[]) AS bin, {of_rollup} FROM {minutely} AS k
    WHERE {of_tenant} AND k.at >= $2::timestamptz AND k.at < $3::timestamptz
    UNION ALL
    SELECT width_bucket(timestamp - interval '1 microsecond', $4), {of_reading} FROM fresh
    UNION ALL
    SELECT width_bucket(timestamp - interval '1 microsecond', $4), {of_spot} FROM spot
)
SELECT {covered}, s.* FROM (SELECT) AS one LEFT JOIN (SELECT bin, {sums} FROM total GROUP BY 1) AS s ON true"""
)
# `piece`: the windows of devices, each with its whole hours; `rest`: what it has beside them, read one by one.
_PIECES: Final = (
    FRESH
    + f""", piece AS MATERIALIZED (
    SELECT *, date_bin('1 hour', starts + interval '1 hour' - interval '1 microsecond', {ORIGIN}) AS first,
        date_bin('1 hour', ends, {ORIGIN}) AS last
    FROM ({{windows}}) AS w
), rest AS (
    SELECT bucket, device, paired, starts, least(first, ends) AS ends FROM piece WHERE starts < first
    UNION ALL
    SELECT bucket, device, paired, last, ends FROM piece WHERE first <= last AND last < ends
), single AS MATERIALIZED (
    SELECT w.paired, f.* FROM fresh AS f
    JOIN piece AS w ON w.device = f.device AND f.timestamp > w.starts AND f.timestamp <= w.ends{{rest}}
), hour AS {{once}} (
    SELECT w.paired, k.* FROM piece AS w {{joined_hours}}
), spot AS ({{spots}}
), total AS (
    SELECT paired, {{of_rollup}} FROM hour
    UNION ALL SELECT paired, {{of_reading}} FROM single
    UNION ALL SELECT paired, {{of_spot}} FROM spot
)"""
)
_SPOTS_OF_PIECES: Final = """
    SELECT w.paired, {reading}, h.tier
    FROM (
        SELECT DISTINCT k.paired, k.bucket, k.{id} AS device, k.at AS starts, k.at + interval '1 hour' AS ends
        FROM hour AS k {rated_hours} WHERE k.most > {allowed}
    ) AS w
    CROSS JOIN LATERAL ({known}) AS h {rated} WHERE {implausible}"""
_REST: Final = f"""
    UNION ALL
    SELECT w.paired, w.device, {_ROW} FROM rest AS w CROSS JOIN LATERAL ({{known}}) AS h {{rated}}"""
_PAIRED: Final = _PIECES + "\nSELECT {covered}, {sums} FROM total"
_BEFORE: Final = "timestamp - interval '1 microsecond'"
_DEVICE: Final = (
    _PIECES
    + f""", slot AS (
    SELECT at, bit_or(minutes) AS minutes FROM (
        SELECT at, minutes FROM hour
        UNION ALL
        SELECT date_bin('1 hour', {_BEFORE}, {ORIGIN}), 1::bigint << (
            date_part('minute', {_BEFORE} - date_bin('1 hour', {_BEFORE}, {ORIGIN}))::integer
        )
        FROM single
    ) AS m GROUP BY 1
)
SELECT {{covered}}, {{sums}},
    coalesce(sum(energies), 0)::bigint AS intervals,
    coalesce(sum(readings) FILTER (WHERE paired), 0)::bigint AS paired_readings,
    coalesce(sum(suspect) FILTER (WHERE paired), 0)::bigint AS paired_suspect,
    coalesce(sum(energies) FILTER (WHERE paired), 0)::bigint AS paired_intervals,
    coalesce(sum(registers) FILTER (WHERE paired), 0)::bigint AS paired_registers,
    {parts.total("energy", parts.KWH, "paired")} AS paired_energy,
    {parts.total("suspect_energy", parts.KWH, "paired")} AS paired_suspect_energy,
    (SELECT coalesce(sum(bit_count(minutes::bit(64))), 0)::bigint FROM slot) AS slots
FROM total"""
)
_ENTRIES: Final = """SELECT bucket, device, true AS paired, greatest(starts, $2::timestamptz) AS starts,
        least(ends, $3::timestamptz) AS ends
    FROM unnest($4::smallint[], $5::varchar[], $6::timestamptz[], $7::timestamptz[]) AS w (bucket, device, starts, ends)
    WHERE bucket = ANY($1::smallint[])"""
_SEGMENTS: Final = """SELECT ($1::smallint[])[1] AS bucket, $2::varchar AS device, paired, starts, ends
    FROM unnest($3::timestamptz[], $4::timestamptz[], $5::boolean[]) AS w (starts, ends, paired)"""
# The rows `s` are hours in which a device has a reading with more than its rating allows.
_SPOTS: Final = """
    SELECT h.timestamp, {reading}, h.tier
    FROM (
        SELECT DISTINCT k.bucket, k.{id} AS device, k.at FROM ({hours}) AS k {rated_hours} WHERE k.most > {allowed}
    ) AS s CROSS JOIN LATERAL ({known}) AS h {rated} WHERE {implausible}"""
_NO_SPOTS: Final = """
    SELECT NULL::timestamptz AS timestamp, false AS paired, 0::bigint AS energy, 0 AS tier WHERE false"""
_OF_PIECE: Final = (
    "{row}.bucket = w.bucket AND {row}.bucket = ANY($1::smallint[]) AND {row}.{id} = w.device "
    "AND {row}.tenant_id = {tenant}"
)
# Not found by the device: it has a reading in a minute, and what is fresh is of a minute or two.
_OF_ONE: Final = "{row}.bucket = ($1::smallint[])[1] AND ({row}.{id} = $2) IS TRUE AND {row}.tenant_id = {tenant}"
_BEGIN_OF_SEGMENTS: Final = "($3::timestamptz[])[1]"
_AN_HOUR: Final = "interval '1 hour'"


def _spots(readings: Remainder, after: str, until: str, *, judged: bool) -> str:
    if not judged:
        return _NO_SPOTS
    known = readings.known(
        _OF_PIECE.replace("w.", "s."),
        f"greatest(s.at, {after}::timestamptz)",
        f"least(s.at + {_AN_HOUR}, {until}::timestamptz)",
        (f"{after}::timestamptz", f"{until}::timestamptz"),
    )
    first = f"({after}::timestamptz - {_AN_HOUR} + interval '1 microsecond')"
    return _SPOTS.replace("{known}", known).replace("{hours}", hours(OF_ALL, first, until))


def _fleet(readings: Remainder, name: str) -> dict[str, str]:
    sharp, whole, counted = name != "fleet", name == "whole fleet", name == "counted fleet"
    texts = {
        "{sharp}": _SHARP if sharp else "",
        "{sharp_rows}": _SHARP_ROWS if sharp else "",
        "{sharp_devices}": _SHARP_DEVICES if sharp else "",
        "{outside_devices}": _OUTSIDE_DEVICES if whole else "",
        "{mixed}": _MIXED if counted else "0",
        "{outside}": "0" if whole or counted else "(SELECT count(*) FROM outside)",
        "{whole_hours}": hours(OF_ALL, "$4", "$5"),
        "{first_hour}": hours(f"{OF_ALL} AND $2::timestamptz < $4", f"($4::timestamptz - {_AN_HOUR})", "$4"),
        "{last_hour}": hours(f"{OF_ALL} AND $5 < $3::timestamptz", "$5", f"($5::timestamptz + {_AN_HOUR})"),
    }
    if sharp:
        texts["{edges}"] = readings.edges()
    if whole:
        one = "{row}.bucket = x.bucket AND {row}.{id} = x.device AND {row}.tenant_id = {tenant}"
        texts["{first}"] = readings.known(one, "$2", "$4")
        texts["{last}"] = readings.known(one, "$5", "$3")
    return texts


def _pieces(readings: Remainder, name: str, windows: str, within: tuple[str, str], *, judged: bool) -> dict[str, str]:
    """What one looks at once, readings of hours or the hours themselves, is not kept, and not planned for."""
    return {
        "{once}": "MATERIALIZED" if judged or name == "device" else "NOT MATERIALIZED",
        "{spots}": _SPOTS_OF_PIECES if judged else _NO_SPOTS,
        "{joined_hours}": _hours_of_pieces(name),
        "{rest}": "" if name == "whole paired" else _REST,
        "{windows}": windows,
        "{known}": readings.known(_OF_PIECE, "w.starts", "w.ends", within) + " OFFSET 0",
    }


# Of many devices, all hours are read and matched; of one, its own.
_HOURS_OF_MANY: Final = (
    "JOIN ({hours}) AS k ON k.{id} = w.device AND k.bucket = w.bucket AND k.at >= w.first AND k.at < w.last"
)
_HOURS_OF_ONE: Final = "CROSS JOIN LATERAL (SELECT * FROM ({hours}) AS k OFFSET 0) AS k"


def _hours_of_pieces(name: str) -> str:
    if name != "device":
        return _HOURS_OF_MANY.replace("{hours}", hours(OF_ALL, "$2", "$3"))
    own = hours(_OF_PIECE + " AND {row}.bucket = ANY({rolled})", "w.first", "w.last")
    return _HOURS_OF_ONE.replace("{hours}", own)


def _texts(name: str, kind: Kind, *, judged: bool) -> tuple[str, dict[str, str], str]:
    """The template, what is put into it, and the parameter of its ratings."""
    readings = Remainder(kind)
    of_period = {"{fresh}": fresh(kind)}
    if name in {"fleet", "sharp fleet", "whole fleet", "counted fleet"}:
        spots = _spots(readings, "$6", "$7", judged=judged)
        return _FLEET, {"{spots}": spots, **_fleet(readings, name), **of_period}, "$8"
    if name == "series":
        return _SERIES, {"{spots}": _spots(readings, "$2", "$3", judged=judged), **of_period}, "$5"
    if name in {"paired", "whole paired"}:
        return _PAIRED, {**_pieces(readings, name, _ENTRIES, ("$2", "$3"), judged=judged), **of_period}, "$8"
    period = _BEGIN_OF_SEGMENTS, "($4::timestamptz[])[cardinality($4::timestamptz[])]"
    of_one = readings.fresh(_OF_ONE, *period)
    return _DEVICE, {**_pieces(readings, name, _SEGMENTS, period, judged=judged), "{fresh}": of_one}, "$6"


def filled(
    template: str,
    texts: Mapping[str, str],
    kind: Kind,
    ratings: str = "",
    *,
    begins: str = "$2::timestamptz",
    judged: bool = False,
) -> str:
    """A statement that begins with `FRESH`, of one kind. `texts`: put into it first; `begins`: of its period."""
    known = {
        "{begins}": begins,
        "{covered}": _COVERED,
        "{sums}": _SUMS,
        "{of_rollup}": _OF_ROLLUP,
        "{of_reading}": _OF_READING,
        "{of_spot}": _OF_SPOT,
        "{of_tenant}": _OF_TENANT,
        "{reading}": _READING,
        "{rolled}": ROLLED,
        "{rollups}": str(ROLLUPS),
        "{roles}": roles(kind),
        "{parts_energy}": parts.energy(kind),
        "{parts_temperature}": parts.temperature(kind),
        "{rated_hours}": judging.joined("k.{id}", judged=judged),
        "{rated_devices}": judging.joined("d.device", judged=judged),
    }
    for placeholder, text in (*texts.items(), *known.items()):
        template = template.replace(placeholder, text)
    return for_kind(judging.filled(template, ratings, judged=judged), kind)


def fresh(kind: Kind) -> str:
    """What rollups of the buckets $1 do not hold of a time after $2 up to $3."""
    return Remainder(kind).fresh(_IN_PERIOD, "$2", "$3")


@cache
def statement(name: str, kind: Kind, *, judged: bool) -> str:
    """The sums called `name` (see sums.py) of a kind; `judged`: with ratings, as the last parameter but the tenant.

    "sharp fleet": over a period with other edges than minutes; "whole fleet": also with devices in its edges alone;
    "counted fleet": also with how many sent both energies and counts, over a period of whole hours but for its edges;
    "whole paired": all windows are of whole hours.
    """
    template, texts, ratings = _texts(name, kind, judged=judged)
    begins = _BEGIN_OF_SEGMENTS if name == "device" else "$2::timestamptz"
    return filled(template, texts, kind, ratings, begins=begins, judged=judged)
