"""Connections to one database, with a deadline on everything and a breaker for when it does not answer."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import asyncpg

from shards.errors import BucketUnavailable, Cause, ShardError, ShardFault, ShardUnavailable, Unusable
from shards.postgres.arrays import teach
from shards.postgres.breaker import Breaker, BreakerState
from shards.postgres.driver import translated
from shards.postgres.turns import Turns

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.pool.PoolConnectionProxy[asyncpg.Record] | asyncpg.Connection[asyncpg.Record]
    _Pooled: TypeAlias = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]
    _Base: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Connection = Pool = _Pooled = object
    _Base = asyncpg.Connection

# What our statements rest on, whatever the database, the role or the server sets.
PROMISES: Final[Mapping[str, str]] = {
    "timezone": "UTC",
    "datestyle": "ISO, YMD",
    "search_path": "public",
    "default_transaction_isolation": "read committed",
    "extra_float_digits": "1",
    "row_security": "on",
}
# An acknowledged reading is on disk. Only "off" breaks that: a stronger setting than "on" is an operator's choice.
DURABLE: Final = """
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'
"""
_IDENTITY: Final = "SELECT cluster_id::text || ' ' || name FROM shard_identity"
_SERVE: Final = "SELECT set_config('voltroute.tenant', $1, false)"
_FULL_PAUSE_S: Final = 0.05
RECENT_S: Final = 5.0  # what failed longer ago may work again: only trying tells


@dataclass(frozen=True)
class PoolLimits:
    """Size and patience of a pool. All timeouts are in seconds."""

    min_size: int = 5
    max_size: int = 20
    idle_s: float = 30.0
    connect_timeout_s: float = 2.0
    acquire_timeout_s: float = 2.0
    statement_timeout_s: float = 10.0
    lock_timeout_s: float = 1.0
    cooldown_max_s: float = 5.0


@dataclass(frozen=True)
class PoolUse:
    """Connections of a pool at this moment.

    `cause`: why the last use failed; None when it did not. `failing`: it failed just now, or would not be tried.
    """

    open: int
    idle: int
    max_size: int
    breaker: BreakerState
    cause: Cause | None
    failing: bool


@dataclass(frozen=True)
class PoolOptions:
    """A pool's sessions. `identity`: "cluster name" of the shard behind the DSN, if known. `writes`: of readings."""

    application_name: str = "voltroute"
    session: Mapping[str, str] | None = None
    identity: str | None = None
    changed: Callable[[str, str, Unusable | None], None] = lambda _shard, _login, _error: None
    writes: bool = False


async def _keep_session(_connection: object) -> None:
    """Skip asyncpg's reset between uses: no statement of ours changes session state, and it costs a round trip."""


class _Session(_Base):
    """A connection that knows which tenant's rows its server lets it read."""

    _tenant: int | None = None

    async def serve(self, tenant: int) -> None:
        """From here on the session reads rows of `tenant` alone."""
        if self._tenant != tenant:
            self._tenant = None  # unknown until the server has confirmed the new one
            await self.execute(_SERVE, str(tenant))
            self._tenant = tenant


class ShardPool:
    """Lazily opened pool of one login on one shard. A dead database costs callers one deadline, not the process."""

    def __init__(self, shard: str, dsn: str, limits: PoolLimits, options: PoolOptions | None = None) -> None:
        self.shard = shard
        self.limits = limits
        self._dsn = dsn
        self._options = options or PoolOptions()
        self._pool: Pool | None = None
        self._opening = asyncio.Lock()
        self._turns = Turns(limits.max_size)
        self._breaker = Breaker(cooldown_max_s=limits.cooldown_max_s)
        self._cause: Cause | None = None
        self._failed_at = 0.0
        self._closed = False
        self._kept: list[_Pooled] = []
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
                        try:
                            if tenant is not None:
                                await cast("_Session", connection).serve(tenant)
                            yield connection
                        except BaseException as error:
                            if isinstance(error, TimeoutError | asyncio.CancelledError | OSError):
                                cut(connection)
                            raise
                        finally:
                            if not self._keep(connection):
                                await pool.release(connection)
                    finally:
                        self._turns.give()
        except ShardError as error:
            self._failed(error)
            raise
        self._breaker.succeeded()
        if self._cause is not None:
            self.tell(None)

    def _failed(self, error: ShardError) -> None:
        """What an error says: of the server's health to the breaker, of the shard's use to whoever logs."""
        if isinstance(error, BucketUnavailable) or not isinstance(error, ShardUnavailable):
            self._breaker.succeeded()  # it answered; and the other buckets' readings go through
            if isinstance(error, ShardFault):
                self.tell(error)
            return
        if error.cause not in _SAYS_NOTHING:
            self._breaker.failed(time.monotonic())
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
        limits = self.limits
        return await asyncpg.create_pool(
            self._dsn,
            min_size=min_size,
            max_size=limits.max_size,
            max_inactive_connection_lifetime=limits.idle_s,
            timeout=limits.connect_timeout_s,
            init=self._vouch,
            connection_class=_Session,
            reset=_keep_session,
            server_settings={
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

    def _at_hand(self) -> _Pooled | None:
        """A kept connection that is still open, the last used one first."""
        while self._kept:
            connection = self._kept.pop()
            if _is_open(connection):
                return connection
            self._hand_back([connection])
        return None

    def _keep(self, connection: _Pooled) -> bool:
        """Keep a connection for the next caller; False when it must go back to asyncpg's pool."""
        if self._waiting or self._closed or not _is_open(connection):
            return False
        self._kept.append(connection)
        if self._aging is None:
            self._aging = asyncio.get_running_loop().call_later(self.limits.idle_s, self._age)
        return True

    def _age(self) -> None:
        kept, self._kept, self._aging = self._kept, [], None
        self._hand_back(kept)

    def _hand_back(self, connections: list[_Pooled]) -> None:
        if self._pool is not None:
            for connection in connections:
                task = asyncio.create_task(_release(self._pool, connection))
                self._releases.add(task)
                task.add_done_callback(self._releases.discard)

    async def _acquire(self, pool: Pool, until: float) -> _Pooled:
        self._waiting += 1
        try:
            while True:
                try:
                    return await pool.acquire(timeout=max(until - time.monotonic(), 0.001))
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


# Says nothing about the health of the database: PostgreSQL answered, or was never asked.
_SAYS_NOTHING: Final = frozenset({Cause.CANCELLED, Cause.LOCKED, Cause.BUSY, Cause.BREAKER_OPEN})
# No reason of the whole shard's: a lock may be on one bucket (the caller finds out), or nothing was asked.
_TELLS_NOTHING: Final = frozenset({Cause.LOCKED, Cause.BUSY, Cause.BREAKER_OPEN})


def cut(connection: Connection) -> None:
    """Close a connection without a word to its server, unless it is closed already."""
    if _is_open(connection):
        connection.terminate()


def _is_open(connection: Connection) -> bool:
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:  # asyncpg took it back when the server closed it
        return False


async def _release(pool: Pool, connection: _Pooled) -> None:
    with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        await pool.release(connection)
