"""Carrying a bucket's rows from one shard to another: table by table, then what was ingested since, or what differs."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Final

from shards.moves import fingerprints
from shards.moves.fingerprints import CHANGED, Tables
from shards.moves.phases import Recorded
from shards.moves.pipe import pipe
from shards.moves.record import Token
from shards.moves.throttle import Passed, at_full_speed
from shards.postgres.connections import Connection
from shards.postgres.sql import measured_at, quote_identifier
from shards.postgres.transactions import transaction
from shards.storage.roots import StoredKind, in_common, stored_kinds
from shards.storage.tables import BRIN_OF, Leaf, leaves

# Of a bucket that is owned nothing goes; then the copy ends at the first key that is there.
_EMPTY: Final = """
DELETE FROM {table} WHERE bucket = $1 AND NOT EXISTS (SELECT FROM owned_bucket WHERE bucket = $1)
"""
_CARRIES: Final = "SET LOCAL voltroute.carries = 'on'"  # see refuse_frozen(): a repeat must not be refused
_UNSUM: Final = """
UPDATE tier SET rolled_of = NULL WHERE bucket = $1 AND rolled_until > $2 AND rolled_of IS NOT NULL
"""
_MAKE_LEAF: Final = "SELECT make_leaf($1, $2, $3, $4)"
_WEIGHT: Final = """
SELECT pg_stat_get_live_tuples(c.oid), pg_relation_size(c.oid) FROM pg_class AS c
WHERE c.oid = to_regclass(format('public.%I', $1::text))
"""
_HOUR: Final = "timestamp >= $1::timestamptz AND timestamp < $1::timestamptz + interval '1 hour'"
_DEVICES_OF_HOUR: Final = "{id} IN (SELECT {id} FROM {history} WHERE " + _HOUR + ")"


@dataclass(frozen=True)
class Direction:
    """A bucket's way from one shard to another, with each side's tables of history (root -> name)."""

    bucket: int
    giver: Connection
    taker: Connection
    theirs: Tables
    ours: Tables
    kinds: tuple[StoredKind, ...]

    @property
    def streams(self) -> tuple[StoredKind, ...]:
        """What is only inserted: histories, and the late readings of kinds of which the bucket has any tier."""
        return self.kinds + tuple(kind.as_late for kind in self.tiered)

    @property
    def tiered(self) -> tuple[StoredKind, ...]:
        """The kinds that have tables of late and packed readings on both sides."""
        return tuple(kind for kind in self.kinds if kind.packed in self.theirs and kind.packed in self.ours)

    @property
    def rollups(self) -> tuple[StoredKind, ...]:
        """Tables of sums, which do not change while the move is recorded; each as the statuses of a kind."""
        return tuple(each for kind in self.kinds for each in kind.as_rollups)

    @classmethod
    async def between(
        cls, bucket: int, giver: Connection, taker: Connection, tables: tuple[Tables, Tables]
    ) -> "Direction":
        """What both store is carried: what one lacks nobody writes yet (see shards/README, Kinds)."""
        kinds = in_common(await stored_kinds(giver), await stored_kinds(taker))
        return cls(bucket, giver, taker, *tables, kinds)

    def kind(self, name: str) -> StoredKind:
        """A kind, or a tier of it, as both sides have it now: a session of before may have known other columns."""
        packed = (kind.as_packed for kind in self.tiered)
        return next(kind for kind in (*self.streams, *packed, *self.rollups) if kind.name == name)

    def known(self, leaf: Leaf) -> Leaf:
        """A leaf with its kind as both sides have it now."""
        return replace(leaf, kind=self.kind(leaf.kind.name))

    async def compare_history(self, window: tuple[datetime, datetime]) -> int:
        """Number of readings ingested in `window` that are the same on both. Different when they are not."""
        return await fingerprints.compare_history(*self._sides, self.streams, window)

    async def compare_changed_status(self, since: datetime) -> None:
        """Different when statuses of devices with readings ingested since then are not the same."""
        await fingerprints.compare_changed_status(*self._sides, self.streams, (self.bucket, since))

    async def differing_days(self) -> list[tuple[StoredKind, date]]:
        """Packed days that are not the same on both. They stay as they are for as long as the move is recorded."""
        return await fingerprints.differing_days(*self._sides, [kind.as_packed for kind in self.tiered])

    async def differing_hours(self) -> list[tuple[StoredKind, datetime]]:
        """(kind, hour) in which the giver has readings that are not the taker's."""
        return await fingerprints.differing_hours(*self._sides, self.streams)

    async def compare_rollups(self) -> None:
        """Different when the sums of the bucket are not the same on both."""
        await fingerprints.compare_rollups(self.giver, self.taker, self.rollups, self.bucket)

    @property
    def _sides(self) -> tuple[Connection, Connection, tuple[Tables, Tables]]:
        return self.giver, self.taker, (self.theirs, self.ours)


async def has_all(connection: Connection, tables: Tables) -> bool:
    """Whether the bucket whose tables these are has its history of every kind."""
    return {kind.history for kind in await stored_kinds(connection)} <= tables.keys()


async def make_leaves(direction: Direction) -> list[Leaf]:
    """Make those leaves at the taker that it does not have yet, also of packed days; returns the giver's."""
    kinds = (*direction.kinds, *(kind.as_packed for kind in direction.tiered))
    wanted = await leaves(direction.giver, direction.theirs, kinds)
    there = {(leaf.kind, leaf.lower, leaf.upper) for leaf in await leaves(direction.taker, direction.ours, kinds)}
    for leaf in wanted:
        if (leaf.kind, leaf.lower, leaf.upper) not in there:
            parent = direction.ours[leaf.kind.history]
            await direction.taker.fetchval(_MAKE_LEAF, parent, parent + leaf.suffix, leaf.lower, leaf.upper)
    return wanted


def listed(names: Iterable[str]) -> str:
    """Columns, quoted."""
    return ", ".join(map(quote_identifier, names))


async def copy_leaf(direction: Direction, leaf: Leaf, token: Token, passed: Passed) -> int:
    """Copy one leaf in a transaction of the target, from its beginning; returns the number of rows."""
    target, columns = direction.ours[leaf.kind.history] + leaf.suffix, leaf.kind.columns
    async with transaction(direction.taker):
        await token.hold(direction.taker, Recorded.COPYING)
        await direction.taker.execute(f"TRUNCATE {quote_identifier(target)}")
        query = f"SELECT {listed(columns)} FROM {quote_identifier(leaf.name)}"
        rows = await pipe(direction.giver, query, (), direction.taker, target, columns, passed)
        await token.set_copied(direction.taker, target)
    return rows


def statuses_of(kind: StoredKind, bucket: int) -> str:
    """What the statuses of a bucket are called among the tables that are whole."""
    return f"{kind.status}_b{bucket:04d}"


async def copy_status(direction: Direction, kind: StoredKind, token: Token, passed: Passed) -> int:
    """Copy the bucket's statuses of one kind, or a table of its sums, in the same way; passes bring what changes.

    They come into the table of all statuses: the target does not answer for the bucket before it owns it.
    """
    table, columns = quote_identifier(kind.status), kind.status_columns
    async with transaction(direction.taker):
        await token.hold(direction.taker, Recorded.COPYING)
        await direction.taker.execute(_EMPTY.format(table=table), direction.bucket)
        query = f"SELECT {listed(columns)} FROM {table} WHERE bucket = $1"
        rows = await pipe(direction.giver, query, (direction.bucket,), direction.taker, kind.status, columns, passed)
        await token.set_copied(direction.taker, statuses_of(kind, direction.bucket))
    return rows


async def carry_days(direction: Direction, days: Iterable[tuple[StoredKind, date]], passed: Passed) -> int:
    """Packed days, by device: those that are there already stay as they are. Returns how many were new."""
    new, taker = 0, direction.taker
    for kind, day in days:
        columns, staged = listed(kind.columns), quote_identifier(staging_of(kind.history))
        ours = quote_identifier(direction.ours[kind.history])
        await taker.execute(f"CREATE TEMP TABLE IF NOT EXISTS {staged} (LIKE {ours}) ON COMMIT DELETE ROWS")
        query = f"SELECT {columns} FROM {quote_identifier(direction.theirs[kind.history])} WHERE day = $1"
        await pipe(direction.giver, query, (day,), taker, staging_of(kind.history), kind.columns, passed)
        done = await taker.execute(
            f"INSERT INTO {ours} ({columns}) SELECT {columns} FROM {staged} ON CONFLICT DO NOTHING"
        )
        await taker.execute(f"TRUNCATE {staged}")
        new += int(done.rpartition(" ")[2])
    return new


async def late_of(direction: Direction) -> list[Leaf]:
    """The bucket's tables of late readings, as leaves that are copied like any."""
    found = []
    for kind in direction.tiered:
        name = direction.theirs[kind.late]
        rows, size = (await direction.giver.fetch(_WEIGHT, name))[0]
        found.append(Leaf(kind.as_late, name, "", "", "", rows, size))
    return found


async def prepare_delta(taker: Connection) -> None:
    """Make the session's staging tables."""
    for kind in await stored_kinds(taker):
        for root in (kind.history, kind.late, kind.status):
            await taker.execute(
                f"CREATE TEMP TABLE IF NOT EXISTS {staging_of(root)} (LIKE {root}) ON COMMIT DELETE ROWS"
            )


def staging_of(root: str) -> str:
    """The name of a staging table: by the root's name, which no other root has."""
    return f"delta_{root}"


async def carry_since(direction: Direction, since: datetime, passed: Passed = at_full_speed) -> int:
    """What the giver ingested since then, inside the taker's transaction; returns how many rows were new there."""
    new = 0
    for kind in direction.streams:
        new += await _carry(direction, kind, "ingested_at >= $1", CHANGED, since, passed)
    return new


async def carry_hours(direction: Direction, hours: Iterable[tuple[StoredKind, datetime]], passed: Passed) -> int:
    """Whole hours of readings, by key: those that are there already stay as they are. Returns how many were new."""
    new = 0
    for kind, hour in hours:
        new += await _carry(direction, kind, _HOUR, _DEVICES_OF_HOUR, hour, passed)
    return new


async def _carry(
    direction: Direction, kind: StoredKind, which: str, whose: str, argument: datetime, passed: Passed
) -> int:
    """Readings that fit `which`, and the statuses of the devices `whose` readings they are."""
    giver, taker = direction.giver, direction.taker
    columns, staged = kind.columns, staging_of(kind.history)
    table = quote_identifier(direction.theirs[kind.history])
    query = f"SELECT {listed(columns)} FROM {table} WHERE {which}"
    if not await pipe(giver, query, (argument,), taker, staged, columns, passed):
        return 0
    ours = quote_identifier(direction.ours[kind.history])
    await taker.execute(_CARRIES)
    new = f"INSERT INTO {ours} ({listed(columns)}) SELECT {listed(columns)} FROM {staged} ON CONFLICT DO NOTHING"
    count, first = (
        await taker.fetch(f"WITH n AS ({new} RETURNING ingested_at) SELECT count(*), min(ingested_at) FROM n")
    )[0]
    if first is not None:
        await _check_rollups(direction, first)
    devices = whose.format(id=quote_identifier(kind.id_column), history=table)
    await _carry_status(direction, kind, devices, (argument,), passed)
    await taker.execute(f"TRUNCATE {staged}, {staging_of(kind.status)}")
    return int(count)


async def _check_rollups(direction: Direction, first: datetime) -> None:
    """Readings that are new at the taker, and older than its mark: a clock was set back, no side has summed them."""
    if await direction.taker.execute(_UNSUM, direction.bucket, first) != "UPDATE 0":
        await direction.giver.execute(_UNSUM, direction.bucket, first)


async def carry_all_status(direction: Direction, passed: Passed = at_full_speed) -> None:
    """Every status that is newer at the giver."""
    for kind in direction.kinds:
        await _carry_status(direction, kind, "true", (), passed)
        await direction.taker.execute(f"TRUNCATE {staging_of(kind.status)}")


async def _carry_status(
    direction: Direction, kind: StoredKind, which: str, arguments: tuple[object, ...], passed: Passed
) -> None:
    """Statuses never go back: of two, the one with the newer reading stays, and the giver's when both have the same.

    Of a value that a status keeps, the newer one stays, whichever side has it.
    """
    columns, staged = kind.status_columns, staging_of(kind.status)
    table, key = quote_identifier(kind.status), quote_identifier(kind.id_column)
    arguments = (*arguments, direction.bucket)
    query = f"SELECT {listed(columns)} FROM {table} WHERE bucket = ${len(arguments)} AND {which}"
    await pipe(direction.giver, query, arguments, direction.taker, staged, columns, passed)
    changed, newer = _merged(kind)
    await direction.taker.execute(
        f"INSERT INTO {table} AS known ({listed(columns)}) SELECT {listed(columns)} FROM {staged} "
        f"ON CONFLICT ({key}, tenant_id, bucket) DO UPDATE SET {changed} WHERE {newer}"
    )


def _merged(kind: StoredKind) -> tuple[str, str]:
    """What a status takes of another one, and when it does."""
    newer = "excluded.last_updated >= known.last_updated"
    changed, conditions = [], [newer]
    kept = dict(kind.kept)
    for column in kind.changing:
        name = quote_identifier(column)
        if column in kept:
            times = (measured_at(column, kept[column], row) for row in ("excluded", "known"))
            later = " > ".join(times)
            conditions.append(later)
            pair = (name, quote_identifier(kept[column]))
            changed += [f"{each} = CASE WHEN {later} THEN excluded.{each} ELSE known.{each} END" for each in pair]
        elif column in kept.values():
            continue
        elif column == "last_updated":
            changed.append(f"{name} = greatest(excluded.{name}, known.{name})")
        else:
            changed.append(f"{name} = CASE WHEN {newer} THEN excluded.{name} ELSE known.{name} END")
    return ", ".join(changed), " OR ".join(conditions)


async def settle(direction: Direction) -> None:
    """Summaries and statistics of a bucket as they should be before a fence, which then takes milliseconds."""
    sides = ((direction.giver, direction.theirs), (direction.taker, direction.ours))
    await asyncio.gather(*(_settle(*side, direction.kinds) for side in sides))


async def _settle(connection: Connection, tables: Tables, kinds: Iterable[StoredKind]) -> None:
    for leaf in await leaves(connection, tables, kinds):
        index = await connection.fetchval(BRIN_OF, leaf.name)
        if index is not None:
            await connection.execute("SELECT brin_summarize_new_values($1::oid::regclass)", index)
        await connection.execute(f"ANALYZE {quote_identifier(leaf.name)}")
