"""What one side of a bucket has that the other lacks, by key and content, whatever any clock said."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Final

from shards.moves.carrier import (
    Direction,
    carry_all_status,
    carry_days,
    carry_hours,
    make_leaves,
)
from shards.moves.fingerprints import ANY_MAJOR, Different, hash_of
from shards.moves.horizons import carry_sealed, have_same_horizons
from shards.moves.pipe import pipe
from shards.moves.throttle import Passed, at_full_speed
from shards.postgres.sql import quote_identifier
from shards.postgres.transactions import transaction
from shards.storage.roots import StoredKind

HOURS_AT_ONCE: Final = 24  # in a transaction
_KEYS: Final = ("device", "timestamp", "tenant_id", "hash")
_PROBE: Final = """
CREATE TEMP TABLE IF NOT EXISTS probe (
    device text COLLATE "C", timestamp timestamptz, tenant_id smallint, hash bigint
) ON COMMIT DELETE ROWS
"""
_ROWS: Final = """
SELECT {id}::text AS device, timestamp, tenant_id, {hash} AS hash FROM {table} AS h
WHERE timestamp >= $1::timestamptz AND timestamp < $1::timestamptz + interval '1 hour'
"""
_COUNTS: Final = """
SELECT count(*) FILTER (WHERE h.timestamp IS NULL) AS missing,
    count(*) FILTER (WHERE h.timestamp IS NOT NULL AND {hash} <> p.hash) AS differ,
    count(h.timestamp) AS matched
FROM probe AS p LEFT JOIN {table} AS h
    ON h.{id} = p.device AND h.timestamp = p.timestamp AND h.tenant_id = p.tenant_id
"""
_DAY_ROWS: Final = """
SELECT {id}::text AS device, day::timestamptz AS timestamp, tenant_id, {hash} AS hash FROM {table} AS h
WHERE day = $1
"""
_DAY_COUNTS: Final = """
SELECT count(*) FILTER (WHERE h.day IS NULL) AS missing,
    count(*) FILTER (WHERE h.day IS NOT NULL AND {hash} <> p.hash) AS differ, count(h.day) AS matched
FROM probe AS p LEFT JOIN {table} AS h
    ON h.{id} = p.device AND h.day = p.timestamp::date AND h.tenant_id = p.tenant_id
"""
_HERE: Final = """
SELECT count(*) FROM {table} WHERE timestamp >= $1::timestamptz AND timestamp < $1::timestamptz + interval '1 hour'
"""
_STATUS_ROWS: Final = (
    "SELECT {id}::text AS device, last_updated, tenant_id, 0::bigint AS hash FROM {table} WHERE bucket = $1"
)
_STATUS_BEHIND: Final = """
SELECT count(*) FROM probe AS p
LEFT JOIN {table} AS h ON h.{id} = p.device AND h.tenant_id = p.tenant_id AND h.bucket = $1
WHERE h.last_updated IS NULL OR h.last_updated < p.timestamp
"""


@dataclass
class Difference:
    """Rows that only the keeper has, that it lacks, or that differ under one key; a device's packed day is a row, too.

    `hours`, `days`: (kind, hour or packed day) to carry.
    """

    only_kept: int = 0
    missing: int = 0
    differ: int = 0
    days: list[tuple[StoredKind, date]] = field(default_factory=list)
    statuses_behind: int = 0
    hours: list[tuple[StoredKind, datetime]] = field(default_factory=list)

    @property
    def is_superset(self) -> bool:
        """The keeper has everything."""
        return not (self.missing or self.differ or self.statuses_behind)

    def words(self, giver: str, keeper: str) -> str:
        """In a sentence: who has what."""
        text = f"{self.missing:,} readings only on {giver}, {self.only_kept:,} only on {keeper}, {self.differ:,} differ"
        return text + (f", {self.statuses_behind:,} statuses are older on {keeper}" if self.statuses_behind else "")


async def difference(direction: Direction, passed: Passed = at_full_speed) -> Difference:
    """What the taker (the keeper) lacks of the giver, over the whole bucket. The giver takes no writes meanwhile."""
    found = Difference()
    giver, keeper = direction.giver, direction.taker
    hours = await direction.differing_hours()
    hashed = hash_of(giver, keeper)
    await keeper.execute(_PROBE)
    for kind, hour in hours:
        names = {"id": quote_identifier(kind.id_column), "hash": hashed.format(row=kind.row)}
        theirs = _ROWS.format(table=quote_identifier(direction.theirs[kind.history]), **names)
        ours = quote_identifier(direction.ours[kind.history])
        async with transaction(keeper):
            await pipe(giver, theirs, (hour,), keeper, "probe", _KEYS, passed)
            await keeper.execute("ANALYZE probe")
            counts = (await keeper.fetch(_COUNTS.format(table=ours, **names)))[0]
            here = int(await keeper.fetchval(_HERE.format(table=ours), hour))
        found.missing += counts["missing"]
        found.differ += counts["differ"]
        found.only_kept += here - counts["matched"]
        if counts["missing"]:
            found.hours.append((kind, hour))
    await _compare_days(direction, found, passed)
    for kind in direction.kinds:
        found.statuses_behind += await _statuses_behind(direction, kind, passed)
    return found


async def _check_horizons(direction: Direction) -> None:
    """Different when the sides froze or packed otherwise.

    Then a reading is a row of history on the one, a part of a packed day on the other, and nothing can be compared.
    """
    if not await have_same_horizons(direction.bucket, direction.giver, direction.taker):
        message = "the sides have not frozen and packed the same: one was restored, or lost its record of the move"
        raise Different(message)


async def _compare_days(direction: Direction, found: Difference, passed: Passed) -> None:
    """Packed days of devices that are not the same on both."""
    giver, keeper = direction.giver, direction.taker
    await _check_horizons(direction)
    for kind, day in await direction.differing_days():
        names = {"id": quote_identifier(kind.id_column), "hash": ANY_MAJOR.format(row=kind.row)}
        theirs = _DAY_ROWS.format(table=quote_identifier(direction.theirs[kind.history]), **names)
        ours = quote_identifier(direction.ours[kind.history])
        async with transaction(keeper):
            await pipe(giver, theirs, (day,), keeper, "probe", _KEYS, passed)
            counts = (await keeper.fetch(_DAY_COUNTS.format(table=ours, **names)))[0]
            here = int(await keeper.fetchval(f"SELECT count(*) FROM {ours} WHERE day = $1", day))
        found.missing += counts["missing"]
        found.differ += counts["differ"]
        found.only_kept += here - counts["matched"]
        if counts["missing"]:
            found.days.append((kind, day))


async def _statuses_behind(direction: Direction, kind: StoredKind, passed: Passed) -> int:
    keeper, bucket = direction.taker, direction.bucket
    names = {"id": quote_identifier(kind.id_column), "table": quote_identifier(kind.status)}
    async with transaction(keeper):
        await pipe(direction.giver, _STATUS_ROWS.format(**names), (bucket,), keeper, "probe", _KEYS, passed)
        await keeper.execute("ANALYZE probe")
        return int(await keeper.fetchval(_STATUS_BEHIND.format(**names), bucket))


async def carry_difference(
    direction: Direction, hold: Callable[[], Awaitable[None]], passed: Passed = at_full_speed
) -> int:
    """Carry, by key, every hour whose rows differ, and every newer status; returns how many readings were new.

    In transactions of its own on the taker, each of which begins with `hold`; the comparison is outside of them, as it
    may take longer than a transaction may stand idle. The staging tables are made (carrier.prepare_delta).
    """
    await _check_horizons(direction)
    hours = await direction.differing_hours()
    days = await direction.differing_days()
    new = 0
    async with transaction(direction.taker):
        await hold()
        await make_leaves(direction)
        await carry_days(direction, days, passed)
    for start in range(0, len(hours), HOURS_AT_ONCE):
        async with transaction(direction.taker):
            await hold()
            new += await carry_hours(direction, hours[start : start + HOURS_AT_ONCE], passed)
    async with transaction(direction.taker):
        await hold()
        await carry_all_status(direction, passed)
        await carry_sealed(direction, passed)
    return new
