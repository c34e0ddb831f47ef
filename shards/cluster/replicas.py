"""The replicas of one shard as a router reads them: how far each is behind, and which one an answer may come from."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Final

from shards.clock import deadline_in
from shards.cluster.replica import PATIENCE_S, SAMPLE_S, Replica
from shards.errors import ShardError
from shards.postgres.lag import Floors, Written
from shards.postgres.lineage import Lineage
from shards.postgres.pools import ShardPool
from shards.shard import ReplicaRecord

WRITTEN: Final = "SELECT (pg_current_wal_lsn() - '0/0')::bigint"


@dataclass(frozen=True)
class ReplicaRules:
    """Which replicas a router reads: none that is behind by more than `lag_max_s`, and of its own zone first."""

    lag_max_s: float = 10.0
    zone: str | None = None


@dataclass(frozen=True)
class ReplicaState:
    """A replica as it is told to people. `lag_s`: None when it is not known; `why_not`: None while it is read from."""

    name: str
    address: str
    zone: str | None
    lag_s: float | None
    why_not: str | None


class Replicas:
    """All of one shard. `primary`: asks the primary how far it has written, while there are replicas."""

    def __init__(
        self,
        primary: ShardPool | None,
        lineage: Lineage,
        make: Callable[[ReplicaRecord], Replica],
        rules: ReplicaRules,
    ) -> None:
        self.floors = Floors()
        self._primary = primary
        self._lineage = lineage
        self._make = make
        self._rules = rules
        self._written = Written()
        self._known: dict[ReplicaRecord, Replica] = {}
        self._following: asyncio.Task[None] | None = None
        self._system = lineage.system
        self._end = lineage.listen(self._renewed)

    def __bool__(self) -> bool:
        return bool(self._known)

    def adopt(self, records: Sequence[ReplicaRecord]) -> list[Replica]:
        """Take over what the catalog says; returns those that are not used any more."""
        if self._primary is None:
            return []
        retired = [replica for record, replica in self._known.items() if record not in records]
        self._known = {record: self._known.get(record) or self._make(record) for record in records}
        if self._known and self._following is None:
            self._following = asyncio.create_task(self._follow(self._primary))
        if not self._known and self._following is not None:
            self._following.cancel()
            self._following = None
            # While there are none nobody writes down what readers have seen: later replicas begin behind all of that.
            self._written.forget()
        return retired

    def usable(self, reader: str, *, any_lag: bool = False) -> list[Replica]:
        """Those that may answer `reader`, in the order in which they are to be asked.

        Those of the own zone first; of these each reader has its own, so that a reader is not shown two histories in
        turn, whichever router it asks; one whose connections are all in use comes behind the others. `any_lag`: however
        far behind, those with the newest state first.
        """
        known = [each for each in self._known.values() if each.why_not() is None]
        if any_lag:
            return sorted(known, key=lambda each: -(each.replayed or 0))
        known = [each for each in known if self._is_near(each)]
        return sorted(known, key=lambda each: (each.reader.is_full, *self._distance(reader, each)))

    def complete_at(self, replica: Replica) -> datetime | None:
        """A time of which a replica has everything; None when it is not known."""
        lag_s = self._lag_s(replica)
        return replica.newest if lag_s is None else datetime.now(UTC) - timedelta(seconds=lag_s)

    def states(self) -> list[ReplicaState]:
        """What is known of each, by name."""
        return sorted(map(self._state, self._known.values()), key=lambda each: each.name)

    def _state(self, replica: Replica) -> ReplicaState:
        record, lag_s, why_not = replica.record, self._lag_s(replica), replica.why_not()
        if why_not is None and lag_s is None:
            why_not = "how far it is behind is not known: its primary does not answer"
        if why_not is None and not self._is_near(replica):
            why_not = f"it is {lag_s:.1f} s behind, and {self._rules.lag_max_s:g} s are allowed"
        return ReplicaState(record.name, record.address, record.zone, lag_s, why_not)

    def _lag_s(self, replica: Replica) -> float | None:
        if replica.replayed is None or replica.why_not() is not None:
            return None
        complete_at = self._written.complete_at(replica.replayed)
        return None if complete_at is None else time.monotonic() - complete_at

    def _is_near(self, replica: Replica) -> bool:
        lag_s = self._lag_s(replica)
        return lag_s is not None and lag_s <= self._rules.lag_max_s

    def _distance(self, reader: str, replica: Replica) -> tuple[bool, bytes]:
        elsewhere = self._rules.zone is not None and replica.record.zone != self._rules.zone
        return elsewhere, blake2b(f"{reader}\0{replica.record.name}".encode(), digest_size=8).digest()

    def _renewed(self) -> None:
        """Another primary's positions follow; another server's are counted anew, and floors of before say nothing."""
        self._written.forget()
        if self._lineage.system != self._system:
            self._system, self.floors = self._lineage.system, Floors()

    async def _follow(self, primary: ShardPool) -> None:
        while True:
            asked_at, timeline = time.monotonic(), self._lineage.timeline
            with contextlib.suppress(ShardError):
                async with primary.connection(deadline_in(PATIENCE_S)) as connection:
                    position = await connection.fetchval(WRITTEN)
                if self._lineage.timeline == timeline:  # else it may be of a primary that is none any more
                    self._written.add(asked_at, position)
            await asyncio.sleep(SAMPLE_S)

    async def close(self) -> None:
        """Close all pools."""
        self._end()
        if self._following is not None:
            self._following.cancel()
        pools = () if self._primary is None else (self._primary.close(),)
        await asyncio.gather(*pools, *(each.close() for each in self._known.values()))
