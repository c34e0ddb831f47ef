"""Connections to one database, with a deadline on everything and a breaker for when it does not answer."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import asyncpg

from shards.errors import Cause, ShardError, ShardFault, ShardUnavailable, Unusable
from shards.postgres.arrays import teach
from shards.postgres.breaker import Breaker, BreakerState
from shards.postgres.connections import DURABLE, PROMISES, Connection, Pooled, Session, cut, is_open
from shards.postgres.driver import translated
from shards.postgres.hosts import Hosts
from shards.postgres.options import PoolLimits, PoolOptions, PoolUse
from shards.postgres.outage import Outage, is_down, was_answered
from shards.postgres.turns import Turns
from shards.postgres.watch import Watch

if TYPE_CHECKING:
    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]
else:
    Pool = object

_IDENTITY: Final = "SELECT cluster_id::text || ' ' || name FROM shard_identity"
_FULL_PAUSE_S: Final = 0.05
RECENT_S: Final = 5.0  # what failed longer ago may work again: only trying tells


async def _keep_session(_connection: object) -> None:
    """Skip asyncpg's reset between uses: no statement of ours changes session state, and it costs a round trip."""


class ShardPool:
    """Lazily opened pool of one login on one shard. A dead database costs callers one deadline, not the process."""

    def __init__(self, shard: str, dsn: str, limits: PoolLimits, options: PoolOptions | None = None) -> None:
        self.shard = shard
        self.limits = limits
        self._options = options or PoolOptions()
        self._hosts = Hosts(shard, dsn, self._options.lineage, self._options.role)
        self._watch = Watch(self._hosts, self._look)
        self._pool: Pool | None = None
        self._opening = asyncio.Lock()
        self._turns = Turns(limits.max_size)
        self._breaker = _breaker(limits, several=self._hosts.are_several)
        self._outage = Outage(self._hosts.are_several, limits.hold_s)
        self._cause: Cause | None = None
        self._failed_at = 0.0
        self._closed = False
        self._kept: list[Pooled] = []
        self._waiting = 0
        self._aging: asyncio.TimerHandle | None = None
        self._releases: set[asyncio.Task[None]] = set()

    def use(self) -> PoolUse:
        """Connections open and idle, the breaker's state, and why the last use failed."""
        state = self._breaker.state(time.monotonic())
        recent = self._cause is not None and time.monotonic() - self._failed_at < RECENT_S
        told = (self.limits.max_size, state, self._cause, recent or state is BreakerState.OPEN)
        if self._pool is None:
            return PoolUse(0, 0, *told)
        idle = self._pool.get_idle_size() + len(self._kept)
        return PoolUse(self._pool.get_size(), idle, *told)

    @property
    def is_full(self) -> bool:
        """Whether all connections are in use: whoever comes next waits for one."""
        return not self._turns.has_free

    @asynccontextmanager
    async def connection(
        self, deadline: float, tenant: int | None = None, *, turn: int | None = None
    ) -> AsyncIterator[Connection]:
        """A connection until `deadline` (monotonic seconds), or ShardUnavailable: at once when the breaker is open.

        `tenant`: whose rows a reader's connection is for; rows of others are not visible in it. `turn`: the tenant that
        waits for it, where all rows are visible; tenants take turns when all connections are in use.
        The deadline holds for all that is done inside, whatever the server or the wire does: nothing waits longer.
        Whatever fails inside comes out as a ShardError; a connection whose statement did not end is dropped.
        """
        now = time.monotonic()
        if deadline <= now:
            raise ShardUnavailable(self.shard, "no time left before the request's deadline", cause=Cause.BUSY)
        if not self._breaker.allow(now, self.limits.statement_timeout_s):
            wait = self._breaker.retry_after_s(now)
            raise ShardUnavailable(self.shard, "not answering; next try soon", wait, Cause.BREAKER_OPEN)
        try:
            with translated(self.shard):
                async with asyncio.timeout(deadline - now):
                    until = now + min(deadline - now, self.limits.acquire_timeout_s)
                    if not self._turns.take_free():
                        await self._wait_for_turn(turn if tenant is None else tenant, until)
                    try:
                        pool = self._pool or await self._open(until)
                        connection = self._at_hand() or await self._acquire(pool, until)
                        self._watch.began(connection)
                        try:
                            if tenant is not None:
                                await cast("Session", connection).serve(tenant)
                            yield connection
                        except BaseException as error:
                            if isinstance(error, TimeoutError | asyncio.CancelledError | OSError):
                                cut(connection)
                            raise
                        finally:
                            self._watch.ended(connection)
                            if not self._keep(connection):
                                await pool.release(connection)
                    finally:
                        self._turns.give()
        except ShardError as error:
            self._failed(error)
            raise
        self._answered()
        if self._cause is not None:
            self.tell(None)

    async def comes_back(self, error: ShardError, deadline: float) -> bool:
        """Wait a moment for a database that is likely to take work again soon; False, at once, when it is not.

        It is when it was told to stop, or has other hosts: for `hold_s` from the beginning of the outage. Whoever
        repeats a call must be able to repeat what was committed, as nobody has said whether it was.
        """
        until = self._outage.may_end_until(error)
        if until is None or time.monotonic() + _AGAIN_S >= min(until, deadline - _LEFT_S):
            return False
        await asyncio.sleep(_AGAIN_S * random.uniform(0.5, 1.0))
        return True

    def _answered(self) -> None:
        """The database answered (even if it refused the data)."""
        self._breaker.succeeded()
        self._watch.answered()
        self._outage.ends()

    def _failed(self, error: ShardError) -> None:
        """What an error says: of the server's health to the breaker, of the shard's use to whoever logs."""
        if was_answered(error) or not isinstance(error, ShardUnavailable):
            self._answered()  # and the other buckets' readings go through
            if isinstance(error, ShardFault):
                self.tell(error)
            return
        if is_down(error):
            self._breaker.failed(time.monotonic())
            self._outage.begins(error, time.monotonic())
        if error.cause not in _TELLS_NOTHING:
            self.tell(error)

    def tell(self, error: Unusable | None) -> None:
        """The last use failed (None: it did not). Whoever logs hears of changes, not of each request."""
        cause = error.cause if error else None
        self._failed_at = time.monotonic()
        if cause is not self._cause:
            self._cause = cause
            self._options.changed(self.shard, self._options.application_name, error)

    async def _wait_for_turn(self, whose: int | None, until: float) -> None:
        try:
            async with asyncio.timeout(until - time.monotonic()):
                await self._turns.take(whose)
        except TimeoutError:
            if self._pool is None:
                raise  # those before it still wait for the first connection: the database is silent, not busy
            busy = f"all {self.limits.max_size} connections are busy"
            raise ShardUnavailable(self.shard, busy, cause=Cause.BUSY) from None

    async def _open(self, until: float) -> Pool:
        async with asyncio.timeout(until - time.monotonic()), self._opening:
            if self._closed:
                raise ShardUnavailable(self.shard, "the pool is closed")
            if self._pool is None:
                self._pool = await self._connect()
        return self._pool

    async def _connect(self) -> Pool:
        """Open with as many connections as the server has room for: one is enough to go on."""
        size = self.limits.min_size
        while True:
            try:
                return await self._connect_with(size)
            except asyncpg.TooManyConnectionsError:
                if size == 0:
                    raise
                size //= 2

    async def _connect_with(self, min_size: int) -> Pool:
        return await asyncpg.create_pool(
            min_size=min_size,
            max_size=self.limits.max_size,
            max_inactive_connection_lifetime=self.limits.idle_s,
            connect=self._new,
            init=self._vouch,
            connection_class=Session,
            reset=_keep_session,
        )

    async def _new(self, *_args: object, **_kwargs: object) -> Session:
        limits = self.limits
        return await self._hosts.connect(
            limits.connect_timeout_s,
            {
                **PROMISES,
                **(self._options.session or {}),
                "application_name": self._options.application_name,
                # A little less than the client's patience: a server that is only slow says so, a silent one does not.
                "statement_timeout": str(int(limits.statement_timeout_s * 900)),
                "lock_timeout": str(int(limits.lock_timeout_s * 1000)),
                "idle_in_transaction_session_timeout": str(int(limits.statement_timeout_s * 1000)),
                "tcp_keepalives_idle": "10",
                "tcp_keepalives_interval": "5",
                "tcp_keepalives_count": "3",
            },
        )

    async def _look(self) -> None:
        with translated(self.shard):
            await self._hosts.look(self.limits.connect_timeout_s)

    async def _vouch(self, connection: Connection) -> None:
        """A new connection: commits are durable, and the database is the shard that the catalog means."""
        if self._options.writes:
            teach(connection)
        await connection.execute(DURABLE)
        if self._options.identity is not None:
            found = await connection.fetchval(_IDENTITY)
            if found is not None and found != self._options.identity:
                detail = f"behind its DSN is {found!r}, not {self._options.identity!r}: see `voltroute check`"
                raise ShardFault(self.shard, detail)

    # asyncpg's acquire and release make a task each, which costs a third of a small statement. So a connection that
    # nobody waits for is kept at hand for a while; then all go back, and age in asyncpg's pool as ever.

    def _at_hand(self) -> Pooled | None:
        """A kept connection that is still open, the last used one first."""
        while self._kept:
            connection = self._kept.pop()
            if is_open(connection) and not self._watch.is_overtaken(connection):
                return connection
            cut(connection)
            self._hand_back([connection])
        return None

    def _keep(self, connection: Pooled) -> bool:
        """Keep a connection for the next caller; False when it must go back to asyncpg's pool."""
        if self._waiting or self._closed or not is_open(connection):
            return False
        self._kept.append(connection)
        if self._aging is None:
            self._aging = asyncio.get_running_loop().call_later(self.limits.idle_s, self._age)
        return True

    def _age(self) -> None:
        kept, self._kept, self._aging = self._kept, [], None
        self._hand_back(kept)

    def _hand_back(self, connections: list[Pooled]) -> None:
        if self._pool is not None:
            for connection in connections:
                task = asyncio.create_task(_release(self._pool, connection))
                self._releases.add(task)
                task.add_done_callback(self._releases.discard)

    async def _acquire(self, pool: Pool, until: float) -> Pooled:
        self._waiting += 1
        try:
            while True:
                try:
                    connection = await pool.acquire(timeout=max(until - time.monotonic(), 0.001))
                    if not self._watch.is_overtaken(connection):
                        return connection
                    cut(connection)
                    await pool.release(connection)
                except asyncpg.TooManyConnectionsError:
                    # The server has no room for another one: wait for one of those that are in use, if there are any.
                    if pool.get_size() == 0 or time.monotonic() + _FULL_PAUSE_S >= until:
                        raise
                    await asyncio.sleep(_FULL_PAUSE_S * random.uniform(0.5, 1.0))
        finally:
            self._waiting -= 1

    async def close(self, timeout_s: float = 2.0) -> None:
        """Close when the connections in use are back, at the latest after `timeout_s`."""
        self._closed = True
        self._watch.close()
        if self._aging is not None:
            self._aging.cancel()
        self._age()
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await pool.close()
        except TimeoutError:
            pool.terminate()


def _breaker(limits: PoolLimits, *, several: bool) -> Breaker:
    """Where another host may take over any moment, that is looked for more often."""
    return Breaker(cooldown_s=0.25, cooldown_max_s=1.0) if several else Breaker(cooldown_max_s=limits.cooldown_max_s)


_AGAIN_S: Final = 0.1
_LEFT_S: Final = 0.05
# No reason of the whole shard's: a lock may be on one bucket (the caller finds out), or nothing was asked.
_TELLS_NOTHING: Final = frozenset({Cause.LOCKED, Cause.BUSY, Cause.BREAKER_OPEN})


async def _release(pool: Pool, connection: Pooled) -> None:
    with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        await pool.release(connection)
