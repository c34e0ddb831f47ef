"""Carrying out what is due of the archive on one shard: months that are old enough leave, in their order."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final, TypeAlias

from shards.archive.leaving import Leaving
from shards.archive.rows import Month
from shards.archive.store import CATALOG_TIMEOUT_S, Archive
from shards.catalog import archive as ledger
from shards.catalog.archive import Entry, State
from shards.clock import deadline_in
from shards.errors import ShardError
from shards.kinds import BUILT_IN, Kind, Kinds
from shards.policy import Policies, Policy
from shards.postgres.connections import Connection
from shards.postgres.sessions import MOVER, SessionLimits, owner_session
from shards.shard import ShardRecord
from shards.storage import parts
from shards.tiers.due import Step
from shards.tiers.runner import Done, Pause, Result, no_pause, nobody
from shards.tiers.state import shape_on
from shards.tiers.watching import Watch, watch_nothing

APPLICATION: Final = f"{MOVER} of the archive"  # as a mover's, it inserts nothing that a move's mark must wait for
LIMITS: Final = SessionLimits(statement_timeout_s=120.0, lock_timeout_s=2.0)
# Of one bucket and kind one archiver at a time: what two of them export they would only overtake each other with.
_ALONE: Final = "SELECT pg_try_advisory_lock(hashtext('voltroute.archive of ' || $2), $1::integer)"
_LET_GO: Final = "SELECT pg_advisory_unlock(hashtext('voltroute.archive of ' || $2), $1::integer)"
_NOW: Final = "SELECT clock_timestamp()"
# Whole months: what is packed of the last one grows.
_MONTHS: Final = """
SELECT b.bucket, b.kind, (lower(l.span) AT TIME ZONE 'UTC')::date AS month
FROM bucket_table AS b
JOIN owned_bucket AS o ON o.bucket = b.bucket
JOIN tier AS t ON t.bucket = b.bucket AND t.kind = b.kind
JOIN LATERAL leaves_of(b.name) AS l ON upper(l.span) <= t.packed_until
WHERE b.role = 'packed' AND NOT b.detaching AND NOT EXISTS (SELECT FROM bucket_move AS m WHERE m.bucket = b.bucket)
ORDER BY month, b.kind, b.bucket
"""
_GONE: Final = """
SELECT archived @> ($3::date::timestamp AT TIME ZONE 'UTC') FROM tier WHERE bucket = $1 AND kind = $2
"""
_OWNED: Final = """
SELECT o.bucket FROM owned_bucket AS o WHERE NOT EXISTS (SELECT FROM bucket_move AS m WHERE m.bucket = o.bucket)
"""

Current: TypeAlias = Callable[[], Awaitable[Policies]]


def end_of(month: date) -> datetime:
    """The instant at which a month is over (UTC)."""
    following = (month + timedelta(days=32)).replace(day=1)
    return datetime(following.year, following.month, 1, tzinfo=UTC)


def leaves_now(policy: Policy | None, month: date, entry: Entry | None, now: datetime) -> bool:
    """Whether a month that is packed on its shard is to leave it. What was restored leaves whatever the policy is."""
    state = None if entry is None else entry.state
    if state in {State.RESTORING, State.EXPIRING}:
        return False
    if entry is not None and entry.restored_until is not None:
        return entry.restored_until <= now
    if state is State.DROPPING:  # readers were told
        return True
    after = None if policy is None else policy.leaves_after()
    return after is not None and end_of(month) <= now - after


@dataclass(frozen=True)
class Archiver:
    """Takes what is due of one shard out of it. `policies` are asked for again before each step that is for good."""

    record: ShardRecord
    archive: Archive
    policies: Current
    kinds: Kinds = BUILT_IN
    done: Done = nobody
    pause: Pause = no_pause
    watch: Watch = watch_nothing
    known: dict[tuple[str, int, date], Entry] = field(default_factory=dict)

    async def look(self) -> list[tuple[int, str, date]]:
        """The months that are to leave the shard now: bucket, kind, first day."""
        await self._learn()
        async with owner_session(self.record, LIMITS, APPLICATION) as connection:
            return await self._due(connection)

    async def run(self) -> Result:
        """All that is due. A month that fails keeps back the later ones of its bucket alone. ShardError: no answer."""
        result = Result()
        await self._learn()
        async with owner_session(self.record, LIMITS, APPLICATION) as connection:
            stuck: set[tuple[int, str]] = set()
            for bucket, kind, first in await self._due(connection):
                if (bucket, kind) in stuck:
                    continue
                name = f"{first:%Y-%m} of bucket {bucket} of {kind}"
                async with _failing_alone(connection, name, result):
                    month = Month(kind, bucket, first, await shape_on(connection, kind))
                    if await self._leave(connection, month, result):
                        continue
                stuck.add((bucket, kind))
            await self._settle(connection, result)
            await self._expire(connection, result)
        return result

    async def _learn(self) -> None:
        self.known.clear()
        for entry in await ledger.entries(self.archive.catalog, deadline_in(CATALOG_TIMEOUT_S)):
            self.known[entry.kind, entry.bucket, entry.month] = entry

    async def _due(self, connection: Connection) -> list[tuple[int, str, date]]:
        now = await connection.fetchval(_NOW)
        policies = await self.policies()
        return [
            (bucket, kind, month)
            for bucket, kind, month in await connection.fetch(_MONTHS)
            if leaves_now(policies.of(kind, bucket), month, self.known.get((kind, bucket, month)), now)
        ]

    async def _leave(self, connection: Connection, month: Month, result: Result) -> bool:
        """False when somebody else is at it, or still reads it."""
        if not await connection.fetchval(_ALONE, month.bucket, month.kind):
            return False
        started = time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix="voltroute-archive-") as folder:
                leaving = await self._leaving(connection, month, Path(folder))
                if leaving is None:
                    return True
                await leaving.go()
        finally:
            if not connection.is_closed():
                await asyncio.shield(connection.execute(_LET_GO, month.bucket, month.kind))
        result.waiting += leaving.waits
        if not leaving.waits:
            result.done[Step.ARCHIVE] = result.done.get(Step.ARCHIVE, 0) + leaving.entry.readings
            self.done(month.bucket, month.kind, Step.ARCHIVE, leaving.entry.readings, time.monotonic() - started)
        return not leaving.waits

    async def _leaving(self, connection: Connection, month: Month, folder: Path) -> Leaving | None:
        """None when it is not due any more: the policy was changed, it is kept longer, somebody else was faster."""
        catalog, deadline = self.archive.catalog, deadline_in(CATALOG_TIMEOUT_S)
        entry = await ledger.planned(catalog, month.kind, month.bucket, month.first, deadline)
        if not await self._is_due(connection, month, entry):
            return None
        await self.archive.follow()
        policy = (await self.policies()).of(month.kind, month.bucket)

        async def is_wanted() -> bool:
            known = await ledger.planned(catalog, month.kind, month.bucket, month.first, deadline_in(CATALOG_TIMEOUT_S))
            policy = (await self.policies()).of(month.kind, month.bucket)
            if known.readings and known.object is None and policy is not None and policy.archive is not None:
                return False  # since it was sealed somebody wants it archived
            return await self._is_due(connection, month, known)

        return Leaving(
            connection, self.archive, month, entry,
            archives=entry.object is not None or (policy is not None and policy.archive is not None),
            summed=self._summed(month.kind), folder=folder, is_wanted=is_wanted, at=self.watch, pause=self.pause,
        )  # fmt: skip

    async def _is_due(self, connection: Connection, month: Month, entry: Entry) -> bool:
        policy = (await self.policies()).of(month.kind, month.bucket)
        return leaves_now(policy, month.first, entry, await connection.fetchval(_NOW))

    def _summed(self, name: str) -> Kind | None:
        kind = self.kinds.by_name.get(name)
        return kind if kind is not None and parts.are_whole(kind) else None

    async def _settle(self, connection: Connection, result: Result) -> None:
        """Months whose partition somebody else dropped, after readers were told: the ledger follows."""
        there = {(bucket, kind, month) for bucket, kind, month in await connection.fetch(_MONTHS)}
        for entry in await self._of_shard(connection, State.VERIFIED, State.DROPPING):
            if (entry.bucket, entry.kind, entry.month) in there:
                continue
            async with _failing_alone(connection, entry.name, result):
                if not entry.readings or await connection.fetchval(_GONE, entry.bucket, entry.kind, entry.month):
                    gone = State.EXPIRED if entry.object is None else State.DROPPED
                    await self._note(entry, gone, restored_until=None)

    async def _expire(self, connection: Connection, result: Result) -> None:
        """Months that are old enough to leave the archive, too."""
        now = await connection.fetchval(_NOW)
        for entry in await self._of_shard(connection, State.DROPPED, State.EXPIRING):
            policy = (await self.policies()).of(entry.kind, entry.bucket)
            is_old = policy is not None and policy.drop is not None and end_of(entry.month) <= now - policy.drop
            if not is_old or entry.object is None or entry.store is None:
                continue
            async with _failing_alone(connection, entry.name, result):
                store = await self.archive.at(entry.store)
                going = entry if entry.state is State.EXPIRING else await self._note(entry, State.EXPIRING)
                await store.delete(entry.object)
                await self.watch("after delete")
                await self._note(going, State.EXPIRED)
                result.done[Step.EXPIRE] = result.done.get(Step.EXPIRE, 0) + entry.readings
                self.done(entry.bucket, entry.kind, Step.EXPIRE, entry.readings, 0.0)

    async def _note(self, entry: Entry, state: State, **changes: object) -> Entry:
        return await ledger.move_on(self.archive.catalog, entry, deadline_in(CATALOG_TIMEOUT_S), state=state, **changes)

    async def _of_shard(self, connection: Connection, *states: State) -> Sequence[Entry]:
        """Entries in these states whose buckets are here."""
        await self._learn()
        mine = {bucket for (bucket,) in await connection.fetch(_OWNED)}
        return [entry for entry in self.known.values() if entry.state in states and entry.bucket in mine]


@asynccontextmanager
async def _failing_alone(connection: Connection, name: str, result: Result) -> AsyncIterator[None]:
    """What fails keeps no other month from its own, whatever it is; but for the connection."""
    try:
        yield
    except Exception as error:
        if connection.is_closed():
            raise
        result.failed[name] = _detail(error)


def _detail(error: Exception) -> str:
    return error.detail if isinstance(error, ShardError) else str(error) or type(error).__name__
