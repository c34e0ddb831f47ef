"""The same sums as summed.py, from rollups and what they do not hold yet, as SQL.

Whole hours come from the sums of devices, whole minutes from those of buckets, both in one snapshot with the bucket's
mark: readings that were ingested from it on are `fresh`, and read one by one. So are the rest of an hour or a minute,
and hours in which a device has an energy above what its rating allows.
"""

from functools import cache
from typing import Final

from shards.kinds import Kind
from shards.postgres.sql import for_kind
from shards.storage import judging, parts
from shards.storage.rollups import ORIGIN, roles
from shards.storage.rows import COVERED
from shards.storage.tiers import ROLLUPS, SEVERAL, Place, columns_of, hot, late, packed

_INGESTED: Final = ", h.ingested_at"
# A bucket without rollups of these columns: all of its readings are fresh.
_MARK: Final = """
WITH mark AS MATERIALIZED (
    SELECT b.bucket, coalesce(t.rolled_of = '{roles}', false) AS rolled,
        CASE WHEN t.rolled_of = '{roles}' THEN t.rolled_until ELSE '-infinity' END AS since
    FROM unnest($1::smallint[]) AS b (bucket) LEFT JOIN tier AS t ON t.bucket = b.bucket AND t.kind = {kind}
)"""
_ROLLED: Final = "ARRAY(SELECT bucket FROM mark WHERE rolled)"
_UNROLLED: Final = "ARRAY(SELECT bucket FROM mark WHERE NOT rolled)"
_RECENT: Final = "{row}.ingested_at >= (SELECT min(since) FROM mark) AND {row}.ingested_at < 'infinity'"
_READING: Final = "{parts_energy} AS energy, {parts_temperature} AS temperature, {register} AS register"
_SUM: Final = "readings, energies, registers, energy, temperature, temperatures"
_OF_TENANT: Final = "k.bucket = ANY({rolled}) AND k.tenant_id = {tenant}"
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

# Devices of no whole hour: only they are looked for in what the period has of its first hour and its last.
_FLEET: Final = (
    _MARK
    + """, fresh AS MATERIALIZED (
    SELECT h.{id} AS device, {reading}, {implausible} AS implausible, h.tier FROM ({fresh}{sharp}) AS h {rated}
), core AS MATERIALIZED (
    SELECT k.{id} AS device, sum(k.readings) AS readings, sum(k.energies) AS energies, sum(k.registers) AS registers,
        sum(k.energy) AS energy, sum(k.temperature) AS temperature, sum(k.temperatures) AS temperatures
    FROM {hourly} AS k WHERE {of_tenant} AND k.at >= $4::timestamptz AND k.at < $5::timestamptz GROUP BY 1
), outside AS (
    SELECT k.bucket, k.{id} AS device FROM {hourly} AS k
    WHERE {of_tenant} AND (
        k.at = $4::timestamptz - interval '1 hour' AND $2::timestamptz < $4 OR k.at = $5 AND $5 < $3::timestamptz
    ) AND NOT EXISTS (SELECT FROM core WHERE core.device = k.{id})
), device AS (
    SELECT device FROM core UNION SELECT device FROM fresh
    UNION
    SELECT device FROM outside AS x WHERE EXISTS (SELECT FROM ({first}) AS h) OR EXISTS (SELECT FROM ({last}) AS h)
), spot AS ({spots}
), total AS (
    SELECT {of_rollup} FROM core
    UNION ALL
    SELECT {of_rollup} FROM {minutely} AS k WHERE {of_tenant} AND k.at >= $6::timestamptz AND k.at < $4
    UNION ALL
    SELECT {of_rollup} FROM {minutely} AS k WHERE {of_tenant} AND k.at >= $5 AND k.at < $7::timestamptz
    UNION ALL SELECT {of_reading} FROM fresh
    UNION ALL SELECT {of_spot} FROM spot
)
SELECT {covered}, (SELECT count(*) FROM device) AS devices, 0 AS mixed,
    (SELECT sum(60 / {interval}) FROM device AS d {rated_devices}) AS per_minute, {sums}
FROM total"""
)
_SERIES: Final = (
    _MARK
    + """, fresh AS MATERIALIZED (
    SELECT h.timestamp, {reading}, {implausible} AS implausible, h.tier FROM ({fresh}) AS h {rated}
), spot AS ({spots}
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
_PIECES: Final = """, piece AS MATERIALIZED (
    SELECT *, date_bin('1 hour', starts + interval '1 hour' - interval '1 microsecond', {origin}) AS first,
        date_bin('1 hour', ends, {origin}) AS last
    FROM ({windows}) AS w
), rest AS (
    SELECT bucket, device, paired, starts, least(first, ends) AS ends FROM piece WHERE starts < first
    UNION ALL
    SELECT bucket, device, paired, last, ends FROM piece WHERE first <= last AND last < ends
), fresh AS MATERIALIZED (
    SELECT w.paired, h.timestamp, {reading}, {implausible} AS implausible, h.tier
    FROM piece AS w CROSS JOIN LATERAL ({fresh}) AS h {rated}
    UNION ALL
    SELECT w.paired, h.timestamp, {reading}, {implausible} AS implausible, h.tier
    FROM rest AS w CROSS JOIN LATERAL ({known}) AS h {rated}
), hour AS MATERIALIZED (
    SELECT w.paired, k.*
    FROM piece AS w CROSS JOIN LATERAL (
        SELECT k.bucket, k.{id}, k.at, k.most, k.minutes, k.readings, k.energies, k.registers, k.energy, k.temperature,
            k.temperatures
        FROM {hourly} AS k
        WHERE k.bucket = w.bucket AND k.{id} = w.device AND k.tenant_id = {tenant} AND k.at >= w.first AND k.at < w.last
            AND k.bucket = ANY({rolled})
        OFFSET 0
    ) AS k
), spot AS (
    SELECT w.paired, {reading}, h.tier
    FROM (SELECT k.*, k.at AS starts, k.at + interval '1 hour' AS ends, k.{id} AS device FROM hour AS k {rated_hours}
        WHERE k.most > {allowed}) AS w
    CROSS JOIN LATERAL ({known}) AS h {rated} WHERE {implausible}
), total AS (
    SELECT paired, {of_rollup} FROM hour
    UNION ALL SELECT paired, {of_reading} FROM fresh
    UNION ALL SELECT paired, {of_spot} FROM spot
)"""
_PAIRED: Final = _MARK + _PIECES + "\nSELECT {covered}, {sums} FROM total"
_DEVICE: Final = (
    _MARK
    + _PIECES
    + f""", slot AS (
    SELECT at, bit_or(minutes) AS minutes FROM (
        SELECT at, minutes FROM hour
        UNION ALL
        SELECT date_bin('1 hour', timestamp - interval '1 microsecond', {{origin}}),
            1::bigint << (date_part('minute', timestamp - interval '1 microsecond'
                - date_bin('1 hour', timestamp - interval '1 microsecond', {{origin}}))::integer)
        FROM fresh
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
# Of buckets with rollups. The rows `s` are hours in which a device has more than its rating allows.
_SPOTS: Final = """
    SELECT h.timestamp, {reading}, h.tier
    FROM (
        SELECT k.bucket, k.{id} AS device, k.at FROM {hourly} AS k {rated_hours}
        WHERE {of_tenant} AND k.at > {after} - interval '1 hour' AND k.at < {until} AND k.most > {allowed}
    ) AS s CROSS JOIN LATERAL ({known}) AS h {rated} WHERE {implausible}"""
_NO_SPOTS: Final = """
    SELECT NULL::timestamptz AS timestamp, 0::bigint AS energy, 0 AS tier WHERE false"""


class _Readings:
    """Queries of a kind's readings in places, beside `mark`."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._columns = columns_of(kind, (kind.energy, kind.register, kind.temperature))

    def _query(self, places: tuple[Place, Place], ingested: str) -> str:
        plain, whole = places
        rows = " UNION ALL ".join(tier(self._kind, plain, self._columns, _INGESTED) for tier in (hot, late))
        unpacked = f"SELECT e.* FROM ({rows}) AS e JOIN mark AS m ON m.bucket = e.bucket WHERE e.ingested_at {ingested}"
        days = packed(self._kind, whole, self._columns, ", NULL::timestamptz AS ingested_at")
        return f"{unpacked} UNION ALL {days}"

    def fresh(self, which: str, after: str, until: str) -> str:
        """What rollups do not hold."""
        # Found by when it came: that looks like few rows to the planner, and the period does not.
        recent = f"{which} AND {_RECENT} AND ({{row}}.timestamp <= {until}) IS TRUE"
        days = Place(f"{which} AND {{row}}.bucket = ANY({_UNROLLED})", after, until)
        return self._query((Place(recent, after), days), ">= m.since")

    def known(self, which: str, after: str, until: str) -> str:
        """What they hold."""
        days = Place(f"{which} AND {{row}}.bucket = ANY({_ROLLED})", after, until)
        return self._query((Place(which, after, until), days), "< m.since")


def _spots(readings: _Readings, after: str, until: str) -> str:
    known = readings.known(
        "{row}.bucket = s.bucket AND {row}.{id} = s.device AND {row}.tenant_id = {tenant}",
        f"greatest(s.at, {after}::timestamptz)",
        f"least(s.at + interval '1 hour', {until}::timestamptz)",
    )
    return (
        _SPOTS.replace("{known}", known)
        .replace("{after}", f"{after}::timestamptz")
        .replace("{until}", f"{until}::timestamptz")
    )


def _fleet(readings: _Readings) -> dict[str, str]:
    edge = SEVERAL + " AND {0}::timestamptz < {1}::timestamptz"
    sharp = (readings.known(edge.replace("{0}", one).replace("{1}", other), one, other) for one, other in _SHARP)
    one = "{row}.bucket = x.bucket AND {row}.{id} = x.device AND {row}.tenant_id = {tenant}"
    return {
        "{fresh}": readings.fresh(SEVERAL, "$2", "$3"),
        "{sharp}": "".join(f" UNION ALL {each}" for each in sharp),
        "{first}": readings.known(one, "$2", "$4"),
        "{last}": readings.known(one, "$5", "$3"),
    }


_SHARP: Final = (("$2", "$6"), ("$7", "$3"))
_OF_PIECE: Final = "{row}.bucket = w.bucket AND {row}.{id} = w.device AND {row}.tenant_id = {tenant}"


def _pieces(readings: _Readings, windows: str) -> dict[str, str]:
    return {
        "{windows}": windows,
        "{fresh}": readings.fresh(_OF_PIECE, "w.starts", "w.ends"),
        "{known}": readings.known(_OF_PIECE, "w.starts", "w.ends") + " OFFSET 0",
    }


def _texts(name: str, kind: Kind, *, judged: bool) -> tuple[str, dict[str, str], str]:
    """The template, what is put into it, and the parameter of its ratings."""
    readings = _Readings(kind)
    if name == "fleet":
        spots = _spots(readings, "$6", "$7") if judged else _NO_SPOTS
        return _FLEET, {"{spots}": spots, **_fleet(readings)}, "$8"
    if name == "series":
        spots = _spots(readings, "$2", "$3") if judged else _NO_SPOTS
        return _SERIES, {"{spots}": spots, "{fresh}": readings.fresh(SEVERAL, "$2", "$3")}, "$5"
    if name == "paired":
        return _PAIRED, _pieces(readings, _ENTRIES), "$8"
    return _DEVICE, _pieces(readings, _SEGMENTS), "$6"


@cache
def statement(name: str, kind: Kind, *, judged: bool) -> str:
    """The sums called `name` (see sums.py) of a kind; `judged`: with ratings, as the last parameter but the tenant."""
    template, texts, ratings = _texts(name, kind, judged=judged)
    texts |= {
        "{covered}": COVERED,
        "{sums}": _SUMS,
        "{of_rollup}": _OF_ROLLUP,
        "{of_reading}": _OF_READING,
        "{of_spot}": _OF_SPOT,
        "{of_tenant}": _OF_TENANT,
        "{reading}": _READING,
        "{rolled}": _ROLLED,
        "{origin}": ORIGIN,
        "{roles}": roles(kind),
        "{parts_energy}": parts.energy(kind),
        "{parts_temperature}": parts.temperature(kind),
    }
    for placeholder, text in texts.items():
        template = template.replace(placeholder, text)
    template = template.replace("{rated_hours}", judging.joined("k.{id}", judged=judged))
    template = template.replace("{rated_devices}", judging.joined("d.device", judged=judged))
    return for_kind(judging.filled(template, ratings, judged=judged), kind)
