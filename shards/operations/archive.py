"""The archive as operators use it: what is in it, whether that is whole, and bringing months back."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final, TypeAlias

from shards.archive.leaving import NotYet
from shards.archive.returning import Returning, fetch
from shards.archive.rows import Month
from shards.archive.runner import APPLICATION, LIMITS
from shards.archive.store import Store
from shards.catalog import archive as ledger
from shards.catalog.archive import Entry, State
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import ClusterError, Refused, ShardError
from shards.postgres.sessions import owner_session
from shards.tiers.state import shape_on
from shards.tiers.watching import Watch, watch_nothing

TIMEOUT_S: Final = 10.0
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
    info = await catalog.info(deadline_in(TIMEOUT_S))
    store = await _store(catalog, info.cluster_id)
    outcome = Outcome()
    for entry in await listed(catalog, wanted):
        if entry.object is None or entry.state not in ledger.STORED:
            continue
        async with _folder() as folder:
            await _one(entry, _check(store, entry, info.cluster_id, folder / "object.parquet"), outcome, told)
    return outcome


async def _check(store: Store, entry: Entry, cluster_id: str, path: Path) -> None:
    reader = await fetch(store, entry, cluster_id, path)
    try:
        await asyncio.to_thread(reader.check)
    finally:
        await asyncio.to_thread(reader.close)


async def restore(
    catalog: Catalog, wanted: Wanted, keep: timedelta, told: Told, watch: Watch = watch_nothing
) -> Outcome:
    """Bring the archived months back, until `keep` from now; those that are there already stay longer.

    Refused when there is no archive, or nothing of it is meant.
    """
    info = await catalog.info(deadline_in(TIMEOUT_S))
    store = await _store(catalog, info.cluster_id)
    until = datetime.now(UTC) + keep
    entries = await listed(catalog, wanted)
    entries = [each for each in entries if each.state in {State.DROPPED, State.RESTORING, State.RESTORED}]
    if not entries:
        raise Refused("the archive has nothing of that time: `voltroute archive list` shows what it has")
    outcome = Outcome()
    for entry in entries:
        async with _folder() as folder:
            await _one(entry, _restore(catalog, info.cluster_id, store, entry, until, folder, watch), outcome, told)
    return outcome


async def _restore(
    catalog: Catalog, cluster_id: str, store: Store, entry: Entry, until: datetime, folder: Path, watch: Watch
) -> None:
    deadline = deadline_in(TIMEOUT_S)
    if entry.state is State.RESTORED:
        longer = max(until, entry.restored_until or until)
        await ledger.move_on(catalog, entry, deadline, restored_until=longer)
        return
    shard_map = await catalog.shard_map(deadline)
    records = {record.name: record for record in await catalog.shards(deadline)}
    if shard_map is None:
        raise NotYet("there is no shard map yet")
    record = records[shard_map.owner(entry.bucket)]
    async with owner_session(record, LIMITS, APPLICATION) as connection:
        month = Month(entry.kind, entry.bucket, entry.month, await shape_on(connection, entry.kind))
        returning = Returning(connection, catalog, cluster_id, month, entry, store, until, watch)
        await returning.come(folder / "object.parquet")


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


async def _store(catalog: Catalog, cluster_id: str) -> Store:
    store = await Store.of(catalog, cluster_id)
    if store is None:
        raise Refused("there is no archive: `voltroute lifecycle policy set --archive-after 90d --archive-to URL`")
    return store


@asynccontextmanager
async def _folder() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="voltroute-archive-") as folder:
        yield Path(folder)
