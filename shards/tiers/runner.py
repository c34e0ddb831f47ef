"""Carrying out what is due on one shard: whoever does it, the leader or an operator, holds a bucket for each step."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import product
from typing import Final, TypeAlias

import asyncpg

from shards.bins import DAY, floor
from shards.errors import ClusterError, ShardError
from shards.kinds import BUILT_IN, LATE, Kind, Kinds
from shards.policy import Policies
from shards.postgres.connections import Connection
from shards.postgres.dsn import login_of
from shards.postgres.sessions import MOVER, SessionLimits, owner_session
from shards.shard import ShardRecord
from shards.storage import parts
from shards.storage.marks import low_water
from shards.storage.roots import stored_kinds
from shards.tiers import rolling, steps, tablespaces
from shards.tiers.due import Step, Tiers, due
from shards.tiers.holding import held, patiently
from shards.tiers.rolling import Summaries
from shards.tiers.state import look, look_again
from shards.tiers.steps import Kept
from shards.tiers.watching import Watch, watch_nothing

APPLICATION: Final = f"{MOVER} of tiers"  # as a mover's, it inserts nothing that a move's mark must wait for
# A detach waits for old statements; given up, it is finished by the next one.
LIMITS: Final = SessionLimits(statement_timeout_s=60.0, lock_timeout_s=2.0)
COUNT_S: Final = 5.0  # of a bucket's round, for counting again what a release before rolled up, or what came late
_NOW: Final = "SELECT clock_timestamp()"
_FAILURES: Final = (ClusterError, ShardError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError)

# Told of every step that was done: bucket, kind, step, how much (readings, leaves or days), seconds.
Done: TypeAlias = Callable[[int, str, Step, int, float], None]
# Waits between transactions, given how long the last one took.
Pause: TypeAlias = Callable[[float], Awaitable[None]]


def nobody(_bucket: int, _kind: str, _step: Step, _count: int, _seconds: float) -> None:
    """Nobody wants to know."""


async def no_pause(_seconds: float) -> None:
    """At full speed."""


@dataclass
class Result:
    """What became of one shard: how much each step did, what waits for a reader, and bucket and kind -> what failed."""

    done: dict[Step, int] = field(default_factory=dict)
    waiting: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def with_(self, other: "Result") -> "Result":
        """Both together."""
        done = {step: self.done.get(step, 0) + other.done.get(step, 0) for step in (*self.done, *other.done)}
        return Result(done, self.waiting + other.waiting, self.failed | other.failed)


@dataclass(frozen=True)
class Tender:
    """Does what is due of a shard."""

    record: ShardRecord
    policies: Policies
    kinds: Kinds = BUILT_IN
    done: Done = nobody
    pause: Pause = no_pause
    watch: Watch = watch_nothing
    summaries: Summaries = field(default_factory=Summaries)

    async def look(self) -> list[Tiers]:
        """The tiers of every bucket that is in no move, with the step that is due."""
        async with owner_session(self.record, LIMITS, APPLICATION) as connection:
            now: datetime = await connection.fetchval(_NOW)
            found = await self._look(connection)
        told = (each for each in found if self.policies.of(each.kind, each.bucket) is not None or each.undropped)
        return [replace(tiers, step=self._due(tiers, now)) for tiers in told]

    async def run(self, *, rollups: bool = True) -> Result:
        """Steps until nothing is due. A bucket that fails keeps no other from its own. ShardError: nothing answered.

        `rollups`: they are brought up to date first.
        """
        result = Result()
        async with owner_session(self.record, LIMITS, APPLICATION) as connection:
            if rollups:
                await self._roll(connection, result)
            await tablespaces.sweep(connection, self.policies)
            now = await connection.fetchval(_NOW)
            for tiers in [each for each in await self._look(connection) if self._due(each, now) is not None]:
                try:
                    await patiently(partial(self._tend, connection, tiers, result))
                except _FAILURES as error:
                    if connection.is_closed():
                        raise
                    _note(result, tiers, error)
        return result

    async def roll(self) -> Result:
        """Rollups alone, of every bucket: what was ingested since the last time is added."""
        result = Result()
        async with owner_session(self.record, LIMITS, APPLICATION) as connection:
            await self._roll(connection, result)
        return result

    async def _roll(self, connection: Connection, result: Result) -> None:
        """A bucket that fails keeps no other from its own, and is told."""
        stored = {kind.name for kind in await stored_kinds(connection)}
        for kind in self.kinds:
            if kind.name not in {policy.kind for policy in self.policies}:
                continue
            if kind.name not in stored or not parts.are_whole(kind):
                continue
            try:
                mark, _ = await low_water(connection, login_of(self.record.reader_dsn))
            except ClusterError as error:  # what cannot be added is read one by one: it holds up nothing else
                result.failed[f"rollups of {kind}"] = str(error)
                continue
            await self.summaries.extend(connection, kind)
            buckets = await rolling.buckets(connection, kind)
            mine = [bucket for bucket in buckets if self.policies.of(kind.name, bucket) is not None]
            works = (
                partial(self._roll_one, connection, kind, mark, result),
                partial(self._drop_old, connection, kind, mark),
                partial(self._count_again, connection, kind),  # last: nobody waits for it
            )
            for work, bucket in product(works, mine):
                try:
                    await work(bucket)
                except _FAILURES as error:
                    if connection.is_closed():
                        raise
                    result.failed[f"bucket {bucket} of {kind}"] = _detail(error)

    async def _roll_one(self, connection: Connection, kind: Kind, mark: datetime, result: Result, bucket: int) -> None:
        """As many slices as it takes, the bucket held for each."""
        is_behind = True
        while is_behind:
            started = time.monotonic()
            async with held(connection, bucket) as is_ours:
                if not is_ours:
                    return
                count, is_behind = await rolling.roll(connection, kind, bucket, mark, self.watch)
            seconds = time.monotonic() - started
            if count:
                result.done[Step.ROLL] = result.done.get(Step.ROLL, 0) + count
                self.done(bucket, kind.name, Step.ROLL, count, seconds)
            await self.watch("after roll")
            await self.pause(seconds)

    async def _count_again(self, connection: Connection, kind: Kind, bucket: int) -> None:
        """For a while: the next round goes on."""
        key, began, is_behind = (bucket, kind.name), time.monotonic(), True
        while is_behind and time.monotonic() - began < COUNT_S:
            started = time.monotonic()
            async with held(connection, bucket) as is_ours:
                if not is_ours:
                    return
                hot = key not in self.summaries.counted
                is_behind = await rolling.count_again(connection, kind, bucket, hot=hot)
            if not is_behind:
                self.summaries.counted.add(key)
            await self.pause(time.monotonic() - started)

    async def _drop_old(self, connection: Connection, kind: Kind, now: datetime, bucket: int) -> None:
        """Rollups that are older than the policy keeps them, by whole days."""
        policy = self.policies.of(kind.name, bucket)
        kept = None if policy is None else policy.rollups
        if kept is None:
            return
        async with held(connection, bucket) as is_ours:
            if is_ours:
                await rolling.drop_old(connection, kind, bucket, floor(now - kept, DAY))

    async def _look(self, connection: Connection, of: Tiers | None = None) -> list[Tiers]:
        if of is not None:
            return await look_again(connection, of, of.kind + LATE)
        stored = {kind.name for kind in await stored_kinds(connection)}
        return await look(connection, {name: name + LATE for name in stored})

    def _due(self, tiers: Tiers, now: datetime) -> Step | None:
        """Without a policy nothing begins; but of what readers were told that it goes, moves wait until it is gone."""
        policy = self.policies.of(tiers.kind, tiers.bucket)
        if policy is None:
            return Step.DROP if tiers.undropped else None
        return due(tiers, policy, now)

    async def _tend(self, connection: Connection, tiers: Tiers, result: Result) -> None:
        """Steps of one kind of a bucket, each looked at anew while it is held."""
        waits = False
        while True:
            async with held(connection, tiers.bucket) as is_ours:
                if not is_ours:
                    return
                now = await connection.fetchval(_NOW)
                found = await self._look(connection, tiers)
                if not found:
                    return
                # What somebody may still read holds up nothing else.
                step = self._due(replace(found[0], undropped=0) if waits else found[0], now)
                if step is None:
                    return
                started = time.monotonic()
                kept = await Kept.of(connection, found[0], self.watch, self._summed(tiers.kind))
                count, seen = await self._step(kept, step, now)
                result.waiting += seen
                if step is Step.PLACE and seen:
                    return
                waits = waits or seen > 0
                seconds = time.monotonic() - started
                result.done[step] = result.done.get(step, 0) + count
                self.done(tiers.bucket, tiers.kind, step, count, seconds)
            await self.pause(seconds)

    def _summed(self, name: str) -> Kind | None:
        kind = self.kinds.by_name.get(name)
        return kind if kind is not None and parts.are_whole(kind) else None

    async def _step(self, kept: Kept, step: Step, now: datetime) -> tuple[int, int]:
        """Do it; returns how much was done, and how many leaves somebody may still read."""
        count, seen = 1, 0
        if step is Step.FREEZE:
            policy = self.policies.of(kept.tiers.kind, kept.tiers.bucket)
            leaf = None if policy is None else kept.tiers.to_freeze(policy, now)
            if leaf is not None:
                await steps.freeze(kept, leaf)
        elif step is Step.PACK:
            count = await self._pack(kept)
        elif step is Step.DROP:
            count, seen = await steps.drop(kept)
        elif step is Step.PLACE:
            count, seen = await self._place(kept)
        else:
            count = await steps.merge_some(kept)
        return count, seen

    async def _place(self, kept: Kept) -> tuple[int, int]:
        policy = self.policies.of(kept.tiers.kind, kept.tiers.bucket)
        leaf = None if policy is None else kept.tiers.to_place(policy.tablespace)
        if policy is None or policy.tablespace is None or leaf is None:
            return 0, 0
        return await tablespaces.place_some(kept, leaf, policy.tablespace)

    async def _pack(self, kept: Kept) -> int:
        """Some devices of the frozen leaf, or, when none is left, its publishing; how many readings were packed."""
        leaf = kept.tiers.to_pack
        if leaf is None:
            await steps.pass_gap(kept)
            return 0
        count = await steps.pack_some(kept, leaf)
        if not count:
            await steps.publish(kept, leaf)
        return count


def _note(result: Result, tiers: Tiers, error: Exception) -> None:
    result.failed[f"bucket {tiers.bucket} of {tiers.kind}"] = _detail(error)


def _detail(error: Exception) -> str:
    return error.detail if isinstance(error, ShardError) else str(error) or type(error).__name__
