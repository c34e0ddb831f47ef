"""Sums over the readings themselves, of all tiers, as SQL: what sums.py asks for where rollups cannot say it."""

from functools import cache
from typing import Final

from shards.kinds import Kind
from shards.postgres.sql import for_kind
from shards.storage import judging, parts
from shards.storage.rows import COVERED
from shards.storage.tiers import SEVERAL, Place, columns_of, hot, late, packed, source

ONE: Final = "{row}.bucket = ($1::smallint[])[1] AND {row}.{id} = $2 AND {row}.tenant_id = {tenant}"


def _sums() -> str:
    return f"""
    {parts.total("energy", parts.KWH, "NOT implausible")} AS energy,
    count(*) FILTER (WHERE implausible) AS suspect,
    {parts.total("energy", parts.KWH, "implausible")} AS suspect_energy,
    {parts.total("temperature", parts.DEGREE)} AS temperature,
    count(temperature) AS temperatures,
    coalesce(bit_or(tier), 0) AS tiers"""


_SUMS: Final = _sums()
_READING: Final = "{parts_energy} AS energy, {parts_temperature} AS temperature, {implausible} AS implausible, h.tier"

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
    """
    + parts.total("energy", parts.KWH, "paired AND NOT implausible")
    + """ AS paired_energy,
    """
    + parts.total("energy", parts.KWH, "paired AND implausible")
    + """ AS paired_suspect_energy,
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
    FROM {readings} AS h {rated}
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
    """
    + parts.total("suspect_energy", parts.KWH)
    + """ AS suspect_energy,
    """
    + parts.total("energy", parts.KWH)
    + """ AS energy,
    """
    + parts.total("temperature", parts.DEGREE)
    + """ AS temperature,
    coalesce(sum(temperatures), 0)::bigint AS temperatures,
    coalesce(bit_or(tiers), 0) AS tiers
FROM (
    SELECT count(*) AS readings, count({register}) AS registers, 60 / max({interval}) AS per_minute,
        sum({parts_energy}) FILTER (WHERE NOT {implausible}) AS energy,
        count(*) FILTER (WHERE {implausible}) AS suspect,
        sum({parts_energy}) FILTER (WHERE {implausible}) AS suspect_energy,
        sum({parts_temperature}) AS temperature,
        count({temperature}) AS temperatures,
        bit_or(h.tier) AS tiers
    FROM {readings} AS h {rated}
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
        FROM {readings} AS h {rated}
    ) AS reading
    GROUP BY 1
) AS s ON true
"""
)

# Packed days are unpacked device by device; how the others are found is the planner's to choose.
_PAIRED: Final = (
    """
WITH entry AS (
    SELECT * FROM unnest($4::smallint[], $5::varchar[], $6::timestamptz[], $7::timestamptz[])
        AS w (bucket, device, starts, ends)
    WHERE bucket = ANY($1::smallint[])
)
SELECT """
    + COVERED
    + """,
    count(*) AS readings,"""
    + _SUMS
    + """
FROM (
    SELECT """
    + _READING
    + """
    FROM {readings} AS h {rated}
) AS reading
"""
)


def _readings(name: str, kind: Kind) -> str:
    """What a statement sums over, in all tiers."""
    columns = columns_of(kind, (kind.energy, kind.register, kind.temperature))
    if name == "device":
        return source(kind, Place(ONE, "$3", "$4"), columns)
    if name != "paired":
        return source(kind, Place(SEVERAL, "$2", "$3"), columns)
    plain = Place("{row}.bucket = ANY($1::smallint[]) AND {row}.tenant_id = {tenant}", "$2", "$3")
    listed = ", ".join(["h.{id}", "h.timestamp", *(f"h.{each.quoted}" for each in columns), "h.tier"])
    on = "h.bucket = w.bucket AND h.{id} = w.device AND h.timestamp > w.starts AND h.timestamp <= w.ends"
    found = [
        f"SELECT {listed} FROM entry AS w JOIN ({part(kind, plain, columns)}) AS h ON {on}" for part in (hot, late)
    ]
    own = Place(
        "{row}.bucket = w.bucket AND {row}.{id} = w.device AND {row}.tenant_id = {tenant}",
        "greatest(w.starts, $2::timestamptz)",
        "least(w.ends, $3::timestamptz)",
    )
    found.append(f"SELECT {listed} FROM entry AS w CROSS JOIN LATERAL ({packed(kind, own, columns)}) AS h")
    return f"({' UNION ALL '.join(found)})"


def _sql(name: str, template: str, kind: Kind, ratings: str, *, judged: bool) -> str:
    template = template.replace("{readings}", _readings(name, kind)).replace("{parts_energy}", parts.energy(kind))
    template = template.replace("{parts_temperature}", parts.temperature(kind))
    return for_kind(judging.filled(template, ratings, judged=judged), kind)


# Name -> statement, and the parameter of its ratings.
_STATEMENTS: Final = {
    "device": (_DEVICE, "$8"),
    "fleet": (_FLEET, "$4"),
    "series": (_SERIES, "$5"),
    "paired": (_PAIRED, "$8"),
}


@cache
def statement(name: str, kind: Kind, *, judged: bool) -> str:
    """The sums called `name` (see sums.py) of a kind; `judged`: with ratings, as the last parameter but the tenant."""
    template, ratings = _STATEMENTS[name]
    return _sql(name, template, kind, ratings, judged=judged)
