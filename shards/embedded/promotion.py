"""A replica becomes its shard's primary: the old one stops first, and what it had is compared before it is too late."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from shards.embedded.server import Server
from shards.embedded.standby import control, is_replica
from shards.embedded.state import Promotion, State, asked_to_promote, promoted
from shards.errors import Cause, MachineError, Refused, ShardError, ShardUnavailable
from shards.postgres.lineage import Role
from shards.postgres.sessions import BRIEF, open_session

BEHIND_MAX: Final = 64 * 2**20  # bytes; readings wait while a replica replays what it lacks
CATCH_UP_S: Final = 3.0
PROMOTE_S: Final = 20
_WRITTEN: Final = "SELECT (pg_current_wal_lsn() - '0/0')::bigint"
_REPLAYED: Final = "SELECT (pg_last_wal_replay_lsn() - '0/0')::bigint"
_PROMOTE: Final = f"SELECT pg_promote(true, {PROMOTE_S})"


class Promoting:
    """One promotion. `stop`, `start`: of a server, by its name; they return when it is down, or was told to start."""

    def __init__(
        self,
        state: State,
        shard: str,
        server: Callable[[str], Server],
        stop: Callable[[str], Awaitable[None]],
        start: Callable[[str], Awaitable[None]],
    ) -> None:
        self._state = state
        self._shard = shard
        self._promotion = state.promotions[shard]
        self._old, self._new = state.primary(shard), self._promotion.server
        self._server = server
        self._stop = stop
        self._start = start

    async def run(self) -> bool:
        """Whether the new primary has all that the old one wrote. Refused, the old one as it was, when it has not."""
        if not self._promotion.force:
            await self._check()
        try:
            await self._stop(self._old)
            complete = await self._has_caught_up()
        except Exception as error:  # whatever it is: the old one must not stay down
            await self._start(self._old)
            raise Refused(f"{self._new} was not promoted: {error}") from error
        if not (complete or self._promotion.force):
            await self._start(self._old)
            raise Refused(f"{self._new} did not get all that {self._old} wrote within {CATCH_UP_S:g} s")
        try:
            await self._ask_replica(_PROMOTE)
        except ShardError as error:  # it may happen yet: the old one must not run beside it
            raise Refused(
                f"{self._new} does not say whether it was promoted ({error.detail}), and {self._old} stays stopped: "
                "start the cluster again, which finds out"
            ) from None
        return complete

    async def _check(self) -> None:
        """Before anything stops: how long would it take?"""
        try:
            async with open_session(self._old, self._dsn(self._old), BRIEF) as connection:
                written = await connection.fetchval(_WRITTEN)
        except ShardError as error:
            raise Refused(
                f"{self._old} does not answer, so nobody knows what {self._new} lacks ({error.detail}); --force "
                "promotes it with what it has"
            ) from None
        try:
            behind = written - (await self._ask_replica(_REPLAYED) or 0)
        except ShardError as error:
            raise Refused(f"{self._new} does not answer: {error.detail}") from None
        if behind > BEHIND_MAX:
            raise Refused(
                f"{self._new} is {behind / 2**20:.0f} MiB behind {self._old}: readings would wait too long; let it "
                "catch up, or --force"
            )

    async def _has_caught_up(self) -> bool:
        """Whether the replica has the old primary's last word, which it wrote when it stopped."""
        last = await asyncio.to_thread(control, self._server(self._old))
        if not last.ended_well:
            return False
        deadline = time.monotonic() + CATCH_UP_S
        while (await self._ask_replica(_REPLAYED) or 0) <= last.checkpoint:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    async def _ask_replica(self, sql: str) -> int | None:
        async with open_session(self._new, self._dsn(self._new), BRIEF, role=Role.ANY) as connection:
            found = await connection.fetchval(sql)
        if found is False:
            raise ShardUnavailable(self._new, f"was not promoted within {PROMOTE_S} s", cause=Cause.SILENT)
        return None if found is None else int(found)

    def _dsn(self, server: str) -> str:
        return self._state.superuser_dsn(server, "postgres")


def refused(state: State, shard: str, promotion: Promotion, why: str) -> State:
    """The same cluster, in which a promotion was not done."""
    return asked_to_promote(state, shard, replace(promotion, refused=why))


def finished(state: State, server: Callable[[str], Server]) -> State:
    """The state with what became of promotions during which everything ended; no server runs.

    What the servers have written says who the primary is, whatever the state says: one that was promoted is on a newer
    timeline, and is no replica any more. The old one must not be started as a primary.
    """
    for shard in state.shard_names:
        asked = state.promotions.get(shard)
        newest = _newest(state, shard, server)
        if newest is not None:
            is_complete = asked is not None and asked.server == newest and not asked.force
            state = promoted(state, shard, newest, aside=not is_complete)
        elif asked is not None and asked.refused is None:
            state = refused(state, shard, asked, "the cluster was stopped before it was done")
    return state


def _newest(state: State, shard: str, server: Callable[[str], Server]) -> str | None:
    """The server that was promoted, when it is not the one that the state names."""
    timelines = {}
    for name in (state.primary(shard), *state.replicas(shard)):
        with contextlib.suppress(MachineError):  # it has no data yet
            if not is_replica(server(name)):
                timelines[name] = control(server(name)).timeline
    newest = max(timelines, key=lambda name: (timelines[name], name == state.primary(shard)), default=None)
    return None if newest == state.primary(shard) else newest
