"""A month comes back from the archive: read whole, checked, packed as it was; readers find it from one COMMIT on.

    dropped -> restoring -> restored

It stays as it was archived: nothing is added to it, and after its time it is dropped again.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from shards.archive import objects
from shards.archive.leaving import NotYet
from shards.archive.rows import Month
from shards.archive.store import CATALOG_TIMEOUT_S, Archive, Damaged
from shards.catalog import archive as ledger
from shards.catalog.archive import Entry, State
from shards.clock import deadline_in
from shards.errors import Refused
from shards.kinds import DAILY
from shards.postgres.connections import Connection
from shards.postgres.sql import LOCK_TIMEOUT, quote_identifier
from shards.postgres.transactions import transaction
from shards.tiers import steps
from shards.tiers.due import Tiers
from shards.tiers.holding import held
from shards.tiers.steps import Kept
from shards.tiers.watching import Watch, watch_nothing

_STATE: Final = """
SELECT (SELECT archived FROM tier WHERE bucket = $1 AND kind = $2) @> $3::timestamptz AS archived,
    EXISTS (SELECT FROM owned_bucket WHERE bucket = $1)
    AND NOT EXISTS (SELECT FROM bucket_move WHERE bucket = $1) AS here
"""
_TABLES: Final = "SELECT make_tier_tables($1, $2::smallint, '')"
_MONTH: Final = "SELECT make_packed_month($1, $2::smallint, $3::date)"
# What registers counted in it may be found out again, where a release before archived it.
_UNKNOWN: Final = """
UPDATE {daily} SET counts = NULL
WHERE bucket = $1::smallint AND day >= $2::date AND day < $3::date AND cardinality(counts) = 0
"""
_GIVE: Final = """
UPDATE tier
SET archived = archived - tstzmultirange(tstzrange($3, $4)), packed_readings = packed_readings + $5
WHERE bucket = $1 AND kind = $2
"""


async def fetch(archive: Archive, entry: Entry, path: Path) -> objects.Reader:
    """The object of an entry, read whole into a file. Damaged when it is not what was archived.

    Refused when it is another cluster's.
    """
    key, store = entry.object or "", await archive.at(entry.store or "")
    size, sha256 = await store.fetch(key, path)
    if (size, sha256) != (entry.bytes, entry.sha256):
        raise Damaged(f"{store.url}/{key} is not what was put there: {size} bytes, and {entry.bytes} were")
    reader = await asyncio.to_thread(objects.Reader, path, key)
    reader.expect(archive.cluster_id, entry.kind, entry.bucket, entry.month)
    if reader.readings != entry.readings:
        raise Damaged(f"{store.url}/{key} has {reader.readings} readings, and {entry.readings} were archived")
    return reader


@dataclass
class Returning:
    """One month of a bucket and kind on its way back, in a session of its shard."""

    connection: Connection
    archive: Archive
    month: Month
    entry: Entry
    until: datetime
    at: Watch = watch_nothing

    async def come(self, path: Path) -> None:
        """Refused when the shard has it; NotYet, StoreError, Damaged. A rerun goes on; rows that are there stay."""
        if await self._is_back():
            return
        reader = await fetch(self.archive, self.entry, path)
        try:
            if self.entry.state is not State.RESTORING:
                await self._note(State.RESTORING)
            await self._prepare()
            for number in range(reader.parts):
                await self._pack(await asyncio.to_thread(reader.part, number))
            if self.entry.fingerprint is None:  # the ledger was made of what is in the store
                await self._compare(reader)
        finally:
            await asyncio.to_thread(reader.close)
        await self._publish()

    async def _note(self, state: State, **changes: Any) -> None:
        deadline = deadline_in(CATALOG_TIMEOUT_S)
        self.entry = await ledger.move_on(self.archive.catalog, self.entry, deadline, state=state, **changes)

    async def _is_archived(self) -> bool:
        found = (await self.connection.fetch(_STATE, *self.month.place, self.month.span[0]))[0]
        if not found["here"]:
            raise NotYet(f"bucket {self.month.bucket} is in a move, or not here: try again")
        return bool(found["archived"])

    async def _is_back(self) -> bool:
        """Whether somebody brought it back, and ended between that COMMIT and the ledger."""
        if await self._is_archived():
            return False
        if self.entry.state is not State.RESTORING:
            raise Refused(f"the shard has {self.entry.name}")
        await self._note(State.RESTORED, restored_until=self.until)
        return True

    async def _check(self) -> None:
        if not await self._is_archived():
            raise Refused(f"the shard has {self.entry.name}: somebody else restores it")

    async def _prepare(self) -> None:
        """The partition; first whatever is left of the one that was dropped."""
        async with held(self.connection, self.month.bucket) as is_ours:
            if not is_ours:
                raise NotYet("another step of its lifecycle is under way: try again")
            await self._check()
            _, seen = await steps.drop(Kept(self.connection, Tiers(*self.month.place, []), self.month.shape))
            if seen:
                raise NotYet("old statements may still read what was dropped: try again")
            await self.connection.execute(_TABLES, self.month.kind, self.month.bucket)
            await self.connection.execute(_MONTH, self.month.kind, self.month.bucket, self.month.first)

    async def _pack(self, table: Any) -> None:
        """A part, which nobody reads yet; the bucket is held, so that it is in no move meanwhile."""
        async with held(self.connection, self.month.bucket) as is_ours:
            if not is_ours:
                raise NotYet("another step of its lifecycle is under way: try again")
            await self._check()
            async with transaction(self.connection):
                await self.month.pack(self.connection, table)
                await self.at("inside restore")
        await self.at("after part")

    async def _compare(self, reader: objects.Reader) -> None:
        """Take the fingerprint of what was packed, if that is what the object holds."""
        number = 0
        async for table in self.month.parts(self.connection):
            if number >= reader.parts or not objects.same(await asyncio.to_thread(reader.part, number), table):
                raise Damaged(f"{self.entry.name}: part {number} that was restored is not what the object holds")
            number += 1
        columns = self.month.columns
        _, fingerprint = await self.month.fingerprint(self.connection, columns)
        await self._note(State.RESTORING, columns=columns, fingerprint=fingerprint)

    async def _publish(self) -> None:
        async with held(self.connection, self.month.bucket) as is_ours:
            if not is_ours:
                raise NotYet("another step of its lifecycle is under way: try again")
            await self._check()
            found = await self.month.fingerprint(self.connection, self.entry.columns)
            if found != (self.entry.readings, self.entry.fingerprint):
                raise Damaged(f"{self.entry.name}: what was restored is not what was archived; nobody reads it")
            async with transaction(self.connection):
                await self.connection.execute(LOCK_TIMEOUT)
                await self.connection.execute(_GIVE, *self.month.place, *self.month.span, self.entry.readings)
                daily = quote_identifier(f"{self.month.kind}{DAILY}")
                await self.connection.execute(_UNKNOWN.format(daily=daily), *self.month.bounds)
                await self.at("inside return")
            await self.at("after return")
            await self._note(State.RESTORED, restored_until=self.until)
