"""A month leaves its shard: sealed, exported, uploaded, read back whole, and only then dropped. Each step is resumable.

    planned -> sealed -> exported -> uploaded -> verified -> dropping -> dropped

The ledger is written after what it says. Exporting and comparing hold nothing: what is sealed does not change. Sealing
and dropping hold the bucket, as every step of the lifecycle. Here the order of statements is safety.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from shards.archive import objects
from shards.archive.rows import Month
from shards.archive.store import CATALOG_TIMEOUT_S, Archive, Damaged, Store
from shards.catalog import archive as ledger
from shards.catalog.archive import Entry, State
from shards.clock import deadline_in
from shards.errors import ClusterError
from shards.kinds import Kind
from shards.postgres.connections import Connection
from shards.postgres.sql import LOCK_TIMEOUT, quote_identifier
from shards.postgres.transactions import transaction
from shards.storage import late
from shards.storage.rollups import roles
from shards.tiers import rolling, steps
from shards.tiers.due import Tiers
from shards.tiers.holding import held
from shards.tiers.runner import Pause, no_pause
from shards.tiers.steps import Kept
from shards.tiers.watching import Watch, watch_nothing

_SEALS: Final = 5  # attempts, while late readings still come
_IS_HERE: Final = """
SELECT EXISTS (SELECT FROM owned_bucket WHERE bucket = $1)
    AND NOT EXISTS (SELECT FROM bucket_move WHERE bucket = $1)
"""
_TIER: Final = """
SELECT packed_until, rolled_of, archived @> $3::timestamptz AS archived FROM tier WHERE bucket = $1 AND kind = $2
"""
_SEAL: Final = """
UPDATE tier SET sealed_until = greatest(sealed_until, $3) WHERE bucket = $1 AND kind = $2 AND packed_until >= $3
"""
_TAKE: Final = """
UPDATE tier
SET archived = archived + tstzmultirange(tstzrange($3, $4)), packed_readings = packed_readings - $5
WHERE bucket = $1 AND kind = $2 AND sealed_until >= $4
"""
_LEAF: Final = """
SELECT l.name, EXISTS (SELECT FROM packed_leaf AS p WHERE p.table_oid = l.leaf_oid) AS taken
FROM bucket_table AS b CROSS JOIN LATERAL leaves_of(b.name) AS l
WHERE b.bucket = $1 AND b.kind = $2 AND b.role = 'packed' AND lower(l.span) = $3
"""
_GOING: Final = """
INSERT INTO packed_leaf (table_oid, bucket, kind, name) SELECT to_regclass(format('public.%I', $3::text)), $1, $2, $3
"""


class NotYet(ClusterError):
    """A month cannot leave now: the next round tries again."""


@dataclass
class Leaving:
    """One month of a bucket and kind on its way, in a session of its shard. `summed`: the kind whose rollups stay.

    `archives`: by the policy it goes to the store; else it is dropped for good. `is_wanted` looks at the policy again.
    """

    connection: Connection
    archive: Archive
    month: Month
    entry: Entry
    archives: bool
    summed: Kind | None
    folder: Path
    is_wanted: Callable[[], Awaitable[bool]]
    at: Watch = watch_nothing
    pause: Pause = no_pause
    waits: int = field(default=0, init=False)  # whether somebody may still read it

    async def go(self) -> None:
        """As far as it goes now. NotYet, StoreError, and whatever the shard says."""
        following = {
            State.PLANNED: self._seal,
            State.SEALED: self._export,
            State.EXPORTED: self._upload,
            State.UPLOADED: self._verify,
            State.VERIFIED: self._take,
            State.DROPPING: self._drop,
            State.RESTORED: self._again,
        }
        if self.entry.state in {State.DROPPED, State.EXPIRED}:
            await self._begin_anew()
        while not self.waits and (step := following.get(self.entry.state)) is not None:
            await step()

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.month.kind}-{self.month.bucket}-{self.month.first}.parquet"

    @property
    def _kept(self) -> Kept:
        return Kept(self.connection, Tiers(*self.month.place, []), self.month.shape, self.at, self.summed)

    async def _note(self, state: State, **changes: Any) -> None:
        deadline = deadline_in(CATALOG_TIMEOUT_S)
        self.entry = await ledger.move_on(self.archive.catalog, self.entry, deadline, state=state, **changes)

    async def _tier(self) -> Any:
        """The bucket's row, when it is here, in no move, and its sums hold everything. NotYet otherwise."""
        if not await self.connection.fetchval(_IS_HERE, self.month.bucket):
            raise NotYet("the bucket is in a move, or not here")
        tier = (await self.connection.fetch(_TIER, *self.month.place, self.month.span[0]))[0]
        if self.summed is not None and tier["rolled_of"] != roles(self.summed):
            raise NotYet("its rollups are being made anew")
        return tier

    async def _begin_anew(self) -> None:
        """It is there, and the ledger says that it left: the shard is older. Or it did, as somebody else was faster."""
        leaf = await self.connection.fetch(_LEAF, *self.month.place, self.month.span[0])
        if leaf and not leaf[0]["taken"]:
            gone = {"store": None, "object": None} if self.entry.state is State.EXPIRED else {}
            await self._note(State.PLANNED, **gone)

    async def _seal(self) -> None:
        """From this COMMIT on no late reading is taken, and all that were are packed."""
        _, past = self.month.span
        for _ in range(_SEALS):
            await self._count_again()
            async with held(self.connection, self.month.bucket) as is_ours:
                if not is_ours:
                    raise NotYet("another step of its lifecycle is under way")
                tier = await self._tier()
                if tier["packed_until"] < past:
                    raise NotYet("not all of it is packed")
                await self._merge(tier["packed_until"])
                if await self._close(past):
                    await self._sealed()
                    return
        raise NotYet("late readings keep coming")

    async def _sealed(self) -> None:
        if self.entry.object is not None:  # there are readings that only the object may have
            await self._expect(self.entry.columns)
            await self._note(State.UPLOADED)
            return
        readings, fingerprint = await self.month.fingerprint(self.connection, self.month.columns)
        await self.at("after seal")
        # Empty: nothing is to be archived, and its partition goes.
        state = State.SEALED if readings and self.archives else State.VERIFIED
        await self._note(state, readings=readings, columns=self.month.columns, fingerprint=fingerprint)

    async def _expect(self, columns: Sequence[str]) -> None:
        """NotYet unless what is packed is what the ledger says."""
        if await self.month.fingerprint(self.connection, columns) != (self.entry.readings, self.entry.fingerprint):
            raise NotYet(f"what the shard has is not what was archived in {self.entry.object}: see ArchiveFailing")

    async def _merge(self, packed_until: datetime) -> None:
        kept = Kept(
            self.connection,
            Tiers(*self.month.place, [], packed_until=packed_until),
            self.month.shape,
            self.at,
            self.summed,
        )
        while await steps.merge_some(kept):
            pass

    async def _count_again(self) -> None:
        """What registers counted must be known: nobody could find it out when the readings are gone."""
        is_behind = self.summed is not None
        while is_behind and self.summed is not None:
            started = time.monotonic()
            async with held(self.connection, self.month.bucket) as is_ours:
                if not is_ours:
                    raise NotYet("another step of its lifecycle is under way")
                is_behind = await rolling.count_again(self.connection, self.summed, self.month.bucket)
            await self.pause(time.monotonic() - started)

    async def _close(self, past: datetime) -> bool:
        """False when a late reading came since the merge."""
        late_root = quote_identifier(f"{self.month.kind}_telemetry_late")
        async with transaction(self.connection):
            await self.connection.execute(LOCK_TIMEOUT)
            # First alone: who stores a late reading after this finds the seal, and who did before is seen here.
            await self.connection.execute(late.ALONE, self.month.bucket)
            waiting = f"SELECT EXISTS (SELECT FROM {late_root} WHERE bucket = $1::smallint AND timestamp < $2)"
            if await self.connection.fetchval(waiting, self.month.bucket, past):
                return False
            await self.connection.execute(_SEAL, *self.month.place, past)
            await self.at("inside seal")
        return True

    async def _export(self) -> None:
        store = self.archive.current
        if store is None:
            raise NotYet("there is no archive any more: `voltroute lifecycle policy set --archive-to URL`")
        metadata = objects.described(self.month, self.archive.cluster_id, self.entry.readings)
        writer = await asyncio.to_thread(objects.Writer, self._path, self.month, metadata)
        try:
            await self._each_part(writer.write)
        finally:
            await asyncio.to_thread(writer.close)
        if writer.readings != self.entry.readings:
            raise NotYet(f"{writer.readings} of {self.entry.readings} readings were there: the bucket was moved, say")
        size, sha256 = await asyncio.to_thread(objects.digest, self._path)
        await self.at("after export")
        key = objects.key_of(self.month, sha256)
        await self._note(State.EXPORTED, store=store.url, object=key, bytes=size, sha256=sha256)

    async def _each_part(self, work: Any) -> None:
        started = time.monotonic()
        async for table in self.month.parts(self.connection):
            await asyncio.to_thread(work, table)
            await self.pause(time.monotonic() - started)
            started = time.monotonic()

    async def _upload(self) -> None:
        store, key = await self._stored()
        # Exported by somebody who ended since; or the place was put right.
        if not self._path.exists() or store is not self.archive.current:
            await self._note(State.SEALED)
            return
        await store.put(key, self._path)
        await asyncio.to_thread(self._path.unlink)  # so that what is compared comes from the store
        await self.at("after upload")
        await self._note(State.UPLOADED)

    async def _stored(self) -> tuple[Store, str]:
        if self.entry.store is None or self.entry.object is None:
            raise AssertionError  # it was exported
        return await self.archive.at(self.entry.store), self.entry.object

    async def _verify(self) -> None:
        """Read the object back, and compare it with what is packed, bit by bit. One that is damaged is written anew."""
        store, key = await self._stored()
        try:
            await self._compare(store, key)
        except Damaged:
            await self._note(State.SEALED)
            raise
        finally:
            await asyncio.to_thread(self._path.unlink, missing_ok=True)
        await self.at("after verify")
        await self._note(State.VERIFIED)

    async def _compare(self, store: Store, key: str) -> None:
        size, sha256 = await store.fetch(key, self._path)
        if (size, sha256) != (self.entry.bytes, self.entry.sha256):
            raise Damaged(f"{store.url}/{key} is not what was put there: {size} bytes, and {self.entry.bytes} were")
        reader = await asyncio.to_thread(objects.Reader, self._path, key)
        number = 0

        def compare(table: Any) -> None:
            nonlocal number
            if number >= reader.parts or not objects.same(reader.part(number), table):
                raise NotYet(f"part {number} of {key} is not what is packed: see ArchiveFailing")
            number += 1

        try:
            await self._each_part(compare)
        finally:
            await asyncio.to_thread(reader.close)
        if number != reader.parts:
            raise NotYet(f"{key} has {reader.parts} parts, and {number} are packed: see ArchiveFailing")

    async def _again(self) -> None:
        """It was restored, for long enough: the object is compared with it, as before the first time."""
        await self._note(State.UPLOADED)

    async def _take(self) -> None:
        """From this COMMIT on readers are told that the month is archived. It is still there for those before."""
        if self.archives and self.entry.readings and self.entry.object is None:  # it was to be dropped for good
            await self._note(State.SEALED)
            return
        first, past = self.month.span
        async with held(self.connection, self.month.bucket) as is_ours:
            if not is_ours:
                raise NotYet("another step of its lifecycle is under way")
            tier = await self._tier()
            leaf = await self.connection.fetch(_LEAF, *self.month.place, first)
            if not leaf and self.entry.readings and not tier["archived"]:
                raise NotYet("its partition is not there: the shard is older than the ledger")
            if leaf and not leaf[0]["taken"]:
                if tier["archived"]:
                    raise NotYet("it is archived, and being restored")
                await self._expect(self.entry.columns)
                if not await self.is_wanted():
                    raise NotYet("the policy was changed: it stays")
                async with transaction(self.connection):
                    await self.connection.execute(LOCK_TIMEOUT)
                    if self.entry.readings:
                        done = await self.connection.execute(_TAKE, *self.month.place, first, past, self.entry.readings)
                        if done != "UPDATE 1":
                            raise NotYet("it is not sealed: the shard is older than the ledger")
                    await self.connection.execute(_GOING, *self.month.place, leaf[0]["name"])
                    await self.at("inside take")
            await self.at("after take")
        await self._note(State.DROPPING)

    async def _drop(self) -> None:
        async with held(self.connection, self.month.bucket) as is_ours:
            if not is_ours:
                raise NotYet("another step of its lifecycle is under way")
            leaf = await self.connection.fetch(_LEAF, *self.month.place, self.month.span[0])
            if leaf and not leaf[0]["taken"]:
                # A shard that is older than the ledger, restored from a backup say: from the beginning.
                await self._note(State.PLANNED)
                return
            _, self.waits = await steps.drop(self._kept)
        if not self.waits:
            gone = self.entry.object is None
            await self._note(State.EXPIRED if gone else State.DROPPED, restored_until=None)
