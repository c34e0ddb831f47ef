"""One replica of a shard as a router reads it: whether it can be read from, and how far it has replayed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from shards.clock import deadline_in
from shards.errors import ShardError
from shards.postgres.connections import Connection
from shards.postgres.lineage import Lineage
from shards.postgres.pools import ShardPool
from shards.shard import ReplicaRecord

SAMPLE_S: Final = 0.25
PATIENCE_S: Final = 1.0  # for what a server says of its WAL; then it counts as silent
# NULL: it has been promoted, and what it has may be of another history than what its primary went on with.
REPLAYED: Final = "SELECT CASE WHEN pg_is_in_recovery() THEN (pg_last_wal_replay_lsn() - '0/0')::bigint END"
# `timeline`: of what it receives. It is NULL while the wire to its primary is cut, and stays what it was until the
# server starts again: PostgreSQL leaves a timeline for a newer one alone.
_ASK: Final = """
SELECT pg_is_in_recovery() AS is_replica, (pg_last_wal_replay_lsn() - '0/0')::bigint AS replayed,
    (SELECT received_tli FROM pg_stat_wal_receiver WHERE status = 'streaming') AS timeline,
    pg_postmaster_start_time() AS started, pg_last_xact_replay_timestamp() AS newest
"""


@dataclass(frozen=True)
class _Heard:
    """What a replica said last."""

    replayed: int
    timeline: int | None
    started: datetime
    newest: datetime | None


class Replica:
    """`reader`: what answers are read with; `watcher`: asks how far it is, with a connection of its own."""

    def __init__(self, record: ReplicaRecord, reader: ShardPool, watcher: ShardPool, lineage: Lineage) -> None:
        self.record = record
        self.reader = reader
        self._watcher = watcher
        self._lineage = lineage
        self._heard: _Heard | None = None
        self._error = "it was not asked yet"
        self._uses: set[asyncio.Timeout] = set()
        self._following = asyncio.create_task(self._follow())

    @property
    def replayed(self) -> int | None:
        """How far it is at least; None when nobody knows."""
        return None if self._heard is None else self._heard.replayed

    @property
    def newest(self) -> datetime | None:
        """When the newest transaction that it has was committed, by its primary's clock."""
        return None if self._heard is None else self._heard.newest

    def why_not(self) -> str | None:
        """Why it cannot be read from at all; None when it can."""
        heard = self._heard
        if heard is None:
            return self._error
        if heard.timeline is None:
            return "it has not received anything since it was started"
        if heard.timeline != self._lineage.timeline:
            return f"it receives timeline {heard.timeline}, and the primary is on {self._lineage.timeline}"
        return None

    def reached(self, position: int) -> None:
        """It has been seen to have replayed so much."""
        heard = self._heard
        if heard is not None and position > heard.replayed:
            self._heard = _Heard(position, heard.timeline, heard.started, heard.newest)

    @asynccontextmanager
    async def connection(self, deadline: float, tenant: int) -> AsyncIterator[Connection]:
        """As ShardPool.connection; and it ends, with a ShardUnavailable, when the replica is silent meanwhile."""
        async with self.reader.connection(deadline, tenant) as connection, asyncio.timeout(None) as limit:
            self._uses.add(limit)
            try:
                yield connection
            finally:
                self._uses.discard(limit)

    async def _follow(self) -> None:
        while True:
            try:
                async with self._watcher.connection(deadline_in(PATIENCE_S)) as connection:
                    found = (await connection.fetch(_ASK))[0]
            except ShardError as error:
                self._forget(error.detail)
            else:
                if found["is_replica"]:
                    self._hear(_Heard(found["replayed"] or 0, found["timeline"], found["started"], found["newest"]))
                else:
                    self._forget("it is a primary, not a replica")
            await asyncio.sleep(SAMPLE_S)

    def _hear(self, heard: _Heard) -> None:
        known = self._heard
        if known is not None and known.started == heard.started:
            timeline = known.timeline if heard.timeline is None else heard.timeline
            heard = _Heard(max(heard.replayed, known.replayed), timeline, heard.started, heard.newest)
        self._heard = heard

    def _forget(self, why: str) -> None:
        self._heard, self._error = None, why
        now = asyncio.get_running_loop().time()
        while self._uses:  # once each: one that is ending cannot be told again
            self._uses.pop().reschedule(now)

    async def close(self) -> None:
        """Close its pools."""
        self._following.cancel()
        await asyncio.gather(self.reader.close(), self._watcher.close())
