"""A load: everything is read and checked, sorted out, and then placed, a bucket's month at a time.

What is before a bucket's packed horizon is packed here and handed over; the rest is written as any reading. A unit that
cannot be placed now (its bucket is in a move, its shard is away) is tried again after the others.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, Self, TypeAlias

import numpy as np

from shards.bulk.checking import Checker
from shards.bulk.past import pack_past
from shards.bulk.placing import place
from shards.bulk.readings import Ints, Readings
from shards.bulk.session import Outcome, Session, moments
from shards.bulk.sources import File, Foreign
from shards.bulk.spool import Spool, Unit
from shards.clock import deadline_in
from shards.cluster.live import Cluster
from shards.errors import ClusterError, ShardError
from shards.kinds import VALUES_AT, Kind, Row
from shards.postgres.connections import Connection
from shards.postgres.driver import translated
from shards.postgres.sessions import SessionLimits, owner_session
from shards.shard import ShardRecord
from shards.storage import parts
from shards.tiers.holding import held, patiently
from shards.tiers.state import shape_on
from shards.tiers.watching import Watch, watch_nothing
from shards.together import together

APPLICATION: Final = "voltroute mover of loads"  # as a mover's, it inserts nothing that a move's mark must wait for
LIMITS: Final = SessionLimits(statement_timeout_s=120.0, lock_timeout_s=2.0)
PORTION: Final = 200_000  # readings in a transaction
WRITTEN: Final = 2_000  # of those that are not packed, in a batch
WRITE_TIMEOUT_S: Final = 30.0
PAUSE_S: Final = 1.0  # before what could not be placed is tried again
PATIENCE_S: Final = 600.0  # in which nothing could be placed at all
_STATE: Final = """
SELECT EXISTS (SELECT FROM owned_bucket WHERE bucket = $1)
    AND NOT EXISTS (SELECT FROM bucket_move WHERE bucket = $1) AS here,
    (SELECT packed_until FROM tier WHERE bucket = $1 AND kind = $2) AS packed_until,
    (SELECT sealed_until FROM tier WHERE bucket = $1 AND kind = $2) AS sealed_until
"""
_FAILURES: Final = (ShardError, ClusterError, OSError, TimeoutError)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# Told how many readings were read, or placed, so far.
Told: TypeAlias = Callable[[str, int], None]


class _NotNow(ClusterError):
    """A unit is to be tried again later."""


@dataclass
class Load:
    """One kind of a tenant. `parallel`: units that are placed at once on each shard."""

    cluster: Cluster
    kind: Kind
    tenant: int
    spool: Spool
    parallel: int = 1
    verify: bool = False
    partial: bool = False  # what was read are parts of readings
    told: Told = lambda _what, _count: None
    watch: Watch = watch_nothing
    outcome: Outcome = field(default_factory=Outcome)
    failed: dict[str, str] = field(default_factory=dict)
    _begun: dict[Unit, "_Begun"] = field(default_factory=dict)
    _busy: dict[int, str] = field(default_factory=dict)  # buckets, and the shard of each
    _placed: int = 0
    _progressed: float = field(default_factory=time.monotonic)

    async def read(self, sources: Sequence[File | Foreign], checker: Checker) -> None:
        """Everything into the spool. BadRow and InvalidArgument: nothing of the load is stored then."""
        for source in sources:
            async for batch in source.batches():
                self.spool.add(await asyncio.to_thread(checker.check, batch))
                self.spool.tell(checker.taken())
                self.told("read", self.spool.state.readings)
        await asyncio.to_thread(self.spool.finish)

    async def run(self) -> Outcome:
        """Place what was read; `failed` says of what is left why. ShardError when the catalog does not answer."""
        counted = self.spool.state.counts
        self.outcome.add(Outcome(**counted))
        await self.cluster.refresh()
        waiting = deque(self.spool.units())
        self._progressed = time.monotonic()
        workers = max(self.parallel * len(self.cluster.shards), 1)
        await together(self._work(waiting) for _ in range(workers))
        if not self.failed:
            self.spool.remove()
        return self.outcome

    @property
    def _summed(self) -> Kind | None:
        return self.kind if parts.are_whole(self.kind) else None

    async def _work(self, waiting: deque[Unit]) -> None:
        """Units until none is left. Sessions are kept from one to the next."""
        async with _Sessions() as sessions:
            while waiting:
                unit = next((each for each in waiting if self._may_begin(each)), None)
                if unit is None:
                    await asyncio.sleep(0.02)
                    continue
                waiting.remove(unit)
                self._busy[unit.bucket] = self.cluster.map.owner(unit.bucket)
                try:
                    await self._place(unit, sessions)
                    self._progressed = time.monotonic()
                    self.failed.pop(unit.file, None)
                except _FAILURES as error:
                    await sessions.forget()
                    self.failed[unit.file] = _detail(error)
                    if self._may_heal(error):
                        waiting.append(unit)
                        await asyncio.sleep(PAUSE_S)
                        await self._look_again()
                finally:
                    del self._busy[unit.bucket]

    def _may_begin(self, unit: Unit) -> bool:
        """Two of one bucket would wait for each other; of one shard, as many as somebody said."""
        owner = self.cluster.map.owner(unit.bucket)
        return unit.bucket not in self._busy and [*self._busy.values()].count(owner) < self.parallel

    def _may_heal(self, error: Exception) -> bool:
        heals = isinstance(error, _NotNow) or (isinstance(error, ShardError) and error.retryable)
        return heals and time.monotonic() - self._progressed < PATIENCE_S

    async def _look_again(self) -> None:
        try:
            await self.cluster.refresh()
        except _FAILURES:
            return

    async def _place(self, unit: Unit, sessions: "_Sessions") -> None:
        shard = self.cluster.shard(self.cluster.map.owner(unit.bucket))
        async with sessions.of(shard.record) as connection:
            shape = await shape_on(connection, self.kind.name)
            where = (connection, self.kind, shape, unit.bucket, self.tenant, self._summed is not None, self.watch)
            session = Session(*where)
            await _horizons(session)  # before anything is read: a bucket that is not here is waited for
            done = await self._loaded(unit)
            session.outcome = done.outcome
            try:
                await self._pack(session, unit, done)
            except BaseException:
                if not done.is_begun:  # nothing is lost by reading it again
                    del self._begun[unit]
                raise
        while len(done.left):
            some = _rows((unit.bucket, self.tenant), done.whole.at(done.left[:WRITTEN]))
            await self._write(shard.record.name, some, done.outcome)
            done.left = done.left[WRITTEN:]
        self.outcome.add(done.outcome)
        self.spool.state.counts = asdict(self.outcome)
        self.spool.done(unit)
        del self._begun[unit]
        self._placed += len(done.whole)
        self.told("placed", self._placed)

    async def _loaded(self, unit: Unit) -> "_Begun":
        """A unit's readings, and what was done of it before it failed."""
        if unit not in self._begun:
            some = await asyncio.to_thread(self.spool.load, unit)
            if self.partial:
                whole, conflicts = some.merged()
                whole, duplicates = self._complete(whole), 0
            else:
                whole, duplicates, conflicts = await asyncio.to_thread(some.without_repeats)
            portions = deque(await asyncio.to_thread(lambda: list(whole.portions(PORTION))))
            self._begun[unit] = _Begun(whole, portions, Outcome(duplicates=duplicates, conflicts=conflicts))
        return self._begun[unit]

    def _complete(self, whole: Readings) -> Readings:
        """Readings that lack nothing; the others are told as bad rows."""
        lacking = {name: ~values.present for name, values in zip(self.kind.values, whole.values, strict=True)}
        wrong = {each.column: lacking[each.column] for each in self.kind.fields if each.required}
        if self.kind.alternatives is not None:
            one, other = self.kind.alternatives
            wrong[one] = lacking[one] == lacking[other]
        bad = np.zeros(len(whole), np.bool_)
        for name, flags in wrong.items():
            for at in np.flatnonzero(flags & ~bad).tolist():
                moment = next(moments(whole.times[at : at + 1]))
                device = whole.devices[whole.device[at]]
                self.spool.tell([f"{device} at {moment:%Y-%m-%dT%H:%M:%S.%fZ}: {name} is missing"])
            bad |= flags
        return whole.at(~bad) if bad.any() else whole

    async def _pack(self, session: Session, unit: Unit, done: "_Begun") -> None:
        """Place what is before the horizon. The bucket is held for each portion, so that others have their turn."""
        is_prepared = False
        while done.portions:
            async with held(session.connection, session.bucket) as is_ours:
                if not is_ours:
                    raise _NotNow("another step of its lifecycle is under way")
                if not is_prepared:
                    await patiently(
                        partial(pack_past, session.connection, unit.bucket, self.kind, session.keyed, self.watch)
                    )
                    await session.prepare([unit.month])
                    is_prepared = True
                await self._portion(session, done, *await _horizons(session))

    async def _portion(self, session: Session, done: "_Begun", packed_until: datetime, sealed_until: datetime) -> None:
        """The first one. An error leaves of it what nothing became yet: it counts once, however often it is tried."""
        places = done.portions[0]
        columns = [
            self.kind.values.index(each.name) if each.name in self.kind.values else None
            for each in session.shape.columns
        ]
        some = done.whole.at(places).arranged(columns)
        old = some.times < _us(sealed_until)
        packs = np.flatnonzero(~old & (some.times < _us(packed_until)))
        left, kept = np.ones(len(packs), np.bool_), np.ones(len(places), np.bool_)
        try:
            if len(packs):
                await place(session, some.at(packs), packed_until, left, verify=self.verify)
        finally:
            kept[packs[~left]] = False
            done.is_begun |= not left.all()
            done.portions[0] = places[kept]
        done.is_begun = True
        session.outcome.too_old += int(old.sum())
        done.left = np.append(done.left, places[kept & ~old])
        done.portions.popleft()

    async def _write(self, shard: str, rows: list[Row], outcome: Outcome) -> None:
        """Rows whose time is not packed, as a router would; repeats are told apart in the same way."""
        written = await self.cluster.write(shard, self.kind, rows, deadline_in(WRITE_TIMEOUT_S))
        await self.watch("after write of loaded")
        if written.new is None:
            outcome.accepted += len(rows)
            return
        values = {row[1:VALUES_AT]: row[VALUES_AT:] for row in rows}
        others = values.keys() - written.new - written.too_old
        conflicts = sum(key in written.stored and written.stored[key] != values[key] for key in others)
        outcome.add(Outcome(len(written.new), len(others) - conflicts, conflicts, len(written.too_old)))


class _Sessions:
    """One a shard, opened when it is needed."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._open: dict[str, Connection] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.forget()

    async def forget(self) -> None:
        """Whatever is open is not used any more."""
        self._open = {}
        await self._stack.aclose()

    @asynccontextmanager
    async def of(self, record: ShardRecord) -> AsyncIterator[Connection]:
        """As the shard's owner; what the driver raises comes out as a ShardError."""
        with translated(record.name):
            if record.name not in self._open:
                opening = owner_session(record, LIMITS, APPLICATION)
                self._open[record.name] = await self._stack.enter_async_context(opening)
            yield self._open[record.name]


@dataclass
class _Begun:
    """A unit: what is to be packed of it yet, and what was found not to be (places in `whole`)."""

    whole: Readings
    portions: deque[Ints]
    outcome: Outcome
    is_begun: bool = False  # something of it is stored
    left: Ints = field(default_factory=lambda: np.zeros(0, np.int64))


async def _horizons(session: Session) -> tuple[datetime, datetime]:
    """Up to where the bucket is packed, and sealed."""
    found = (await session.connection.fetch(_STATE, session.bucket, session.kind.name))[0]
    if not found["here"]:
        raise _NotNow("the bucket is in a move, or not here any more")
    return max(found["packed_until"] or _EPOCH, _EPOCH), max(found["sealed_until"] or _EPOCH, _EPOCH)


def _us(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _rows(place: tuple[int, int], some: Readings) -> list[Row]:
    """As writers have them."""
    columns = [values.listed() for values in some.values]
    devices = [some.devices[each] for each in some.device.tolist()]
    return [(*place, *row) for row in zip(devices, moments(some.times), *columns, strict=True)]


def _detail(error: Exception) -> str:
    return error.detail if isinstance(error, ShardError) else str(error) or type(error).__name__
