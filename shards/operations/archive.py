"""The archive as operators use it: what is in it, whether that is whole, and bringing months back."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final, TypeAlias

from shards.archive import objects
from shards.archive.leaving import NotYet
from shards.archive.returning import Returning, fetch
from shards.archive.rows import Month
from shards.archive.runner import APPLICATION, LIMITS
from shards.archive.store import Archive, Store
from shards.catalog import archive as ledger
from shards.catalog.archive import Entry, State
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import ClusterError, Refused, ShardError
from shards.operations.check import Facts, look
from shards.postgres.sessions import owner_session
from shards.tiers.state import shape_on
from shards.tiers.watching import Watch, watch_nothing

TIMEOUT_S: Final = 10.0
# Not in the archive yet, or not any more.
_AWAY: Final = frozenset({State.PLANNED, State.SEALED, State.EXPORTED, State.EXPIRING, State.EXPIRED})
# Told of every month that was done: which, and what was wrong with it.
Told: TypeAlias = Callable[[Entry, str | None], None]


@dataclass(frozen=True)
class Wanted:
    """Months of a kind (None: all) that hold days from `first` to before `past` (None: no limit)."""

    kind: str | None = None
    first: date | None = None
    past: date | None = None

    def has(self, entry: Entry) -> bool:
        """Whether a month is one of them."""
        following = (entry.month + timedelta(days=32)).replace(day=1)
        return (
            self.kind in {None, entry.kind}
            and (self.first is None or following > self.first)
            and (self.past is None or entry.month < self.past)
        )


@dataclass
class Outcome:
    """How many months, and their readings, were done; month -> why not."""

    months: int = 0
    readings: int = 0
    failed: dict[str, str] = field(default_factory=dict)


async def listed(catalog: Catalog, wanted: Wanted) -> list[Entry]:
    """What is known of the months, by month."""
    found = await ledger.entries(catalog, deadline_in(TIMEOUT_S))
    return [entry for entry in found if wanted.has(entry)]


async def verify(catalog: Catalog, wanted: Wanted, told: Told) -> Outcome:
    """Read every object of the months whole, and check it. Refused when there is no archive."""
    archive = await _archive(catalog)
    outcome = Outcome()
    for entry in await listed(catalog, wanted):
        if entry.object is None or entry.state not in ledger.STORED:
            continue
        async with _folder() as folder:
            await _one(entry, _check(archive, entry, folder / "object.parquet"), outcome, told)
    return outcome


async def _check(archive: Archive, entry: Entry, path: Path) -> None:
    reader = await fetch(archive, entry, path)
    try:
        await asyncio.to_thread(reader.check)
    finally:
        await asyncio.to_thread(reader.close)


async def recover(catalog: Catalog, told: Told) -> Outcome:
    """Give the ledger what it lacks: months that are away from their shards, and in the store; by the shards' word.

    For a catalog that was restored from an older backup. Of two objects of a month the newest one counts.
    """
    archive = await _archive(catalog)
    known = {(each.kind, each.bucket, each.month) for each in await listed(catalog, Wanted())}
    away = {place for facts in await _facts(catalog) for place in facts.archived} - known
    stored = {objects.month_of(key): key for key in await _current(archive).keys()}  # of two, the newest one
    newest = {place: stored[place] for place in away if place in stored}
    outcome = Outcome()
    for place, key in newest.items():
        try:
            async with _folder() as folder:
                entry = await _adopt(archive, place, key, folder / "object.parquet")
        except (ClusterError, ShardError) as error:
            outcome.failed[_name(*place)] = str(error)
            continue
        outcome.months += 1
        outcome.readings += entry.readings
        told(entry, None)
    outcome.failed |= {_name(*place): "has no object in the archive" for place in sorted(away - newest.keys())}
    return outcome


def _name(kind: str, bucket: int, month: date) -> str:
    return f"{month:%Y-%m} of bucket {bucket} of {kind}"


async def _adopt(archive: Archive, place: tuple[str, int, date], key: str, path: Path) -> Entry:
    """Damaged, and nothing is adopted, when the object is not whole or not what its key says."""
    store, catalog = _current(archive), archive.catalog
    size, sha256 = await store.fetch(key, path)
    reader = await asyncio.to_thread(objects.Reader, path, key)
    try:
        await asyncio.to_thread(reader.check)
        reader.expect(archive.cluster_id, *place)
    finally:
        await asyncio.to_thread(reader.close)
    found = ledger.Found(store.url, key, size, sha256)
    await ledger.adopt(catalog, place, reader.readings, found, deadline_in(TIMEOUT_S))
    return await ledger.planned(catalog, *place, deadline_in(TIMEOUT_S))


async def _facts(catalog: Catalog) -> list[Facts]:
    return list(await asyncio.gather(*(look(record) for record in await catalog.shards(deadline_in(TIMEOUT_S)))))


def _current(archive: Archive) -> Store:
    if archive.current is None:
        raise AssertionError  # _archive() looked
    return archive.current


async def restore(
    catalog: Catalog, wanted: Wanted, keep: timedelta, told: Told, watch: Watch = watch_nothing
) -> Outcome:
    """Bring the archived months back, until `keep` from now; those that are there already stay longer.

    Refused when there is no archive, or nothing of it is meant.
    """
    archive = await _archive(catalog)
    until = datetime.now(UTC) + keep
    entries = [each for each in await listed(catalog, wanted) if each.object is not None and each.state not in _AWAY]
    if not entries:
        raise Refused("the archive has nothing of that time: `voltroute archive list` shows what it has")
    outcome = Outcome()
    for entry in entries:
        async with _folder() as folder:
            await _one(entry, _restore(archive, entry, until, folder, watch), outcome, told)
    return outcome


async def _restore(archive: Archive, entry: Entry, until: datetime, folder: Path, watch: Watch) -> None:
    catalog, deadline = archive.catalog, deadline_in(TIMEOUT_S)
    if entry.state is State.RESTORED:
        longer = max(until, entry.restored_until or until)
        await ledger.move_on(catalog, entry, deadline, restored_until=longer)
        return
    if entry.state not in {State.DROPPED, State.RESTORING}:
        raise NotYet(f"it is on its way out ({entry.state}): try again when it is dropped")
    shard_map = await catalog.shard_map(deadline)
    records = {record.name: record for record in await catalog.shards(deadline)}
    if shard_map is None:
        raise NotYet("there is no shard map yet")
    record = records[shard_map.owner(entry.bucket)]
    async with owner_session(record, LIMITS, APPLICATION) as connection:
        month = Month(entry.kind, entry.bucket, entry.month, await shape_on(connection, entry.kind))
        await Returning(connection, archive, month, entry, until, watch).come(folder / "object.parquet")


async def _one(entry: Entry, work: Awaitable[None], outcome: Outcome, told: Told) -> None:
    """A month that fails keeps no other from its own."""
    try:
        await work
    except (ClusterError, ShardError) as error:
        why = error.detail if isinstance(error, ShardError) else str(error)
        outcome.failed[entry.name] = why
        told(entry, why)
    else:
        outcome.months += 1
        outcome.readings += entry.readings
        told(entry, None)


async def _archive(catalog: Catalog) -> Archive:
    archive = await Archive.of(catalog, (await catalog.info(deadline_in(TIMEOUT_S))).cluster_id)
    if archive.current is None:
        raise Refused("there is no archive: `voltroute lifecycle policy set --archive-after 90d --archive-to URL`")
    return archive


@asynccontextmanager
async def _folder() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="voltroute-archive-") as folder:
        yield Path(folder)
