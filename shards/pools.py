"""Connections to one database, with a deadline on everything and a breaker for when it does not answer."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

from shards.breaker import Breaker, BreakerState
from shards.driver import translated
from shards.errors import ShardError, ShardUnavailable

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.pool.PoolConnectionProxy[asyncpg.Record] | asyncpg.Connection[asyncpg.Record]
    _Pooled: TypeAlias = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]
else:
    Connection = Pool = _Pooled = object


@dataclass(frozen=True)
class PoolLimits:
    """Size and patience of a pool. All timeouts are in seconds."""

    min_size: int = 5
    max_size: int = 20
    idle_s: float = 30.0
    connect_timeout_s: float = 2.0
    acquire_timeout_s: float = 2.0
    statement_timeout_s: float = 10.0


@dataclass(frozen=True)
class PoolUse:
    """Connections of a pool at this moment."""

    open: int
    idle: int
    max_size: int
    breaker: BreakerState


async def _keep_session(_connection: object) -> None:
    """Skip asyncpg's reset between uses: no statement of ours changes session state, and it costs a round trip."""


class ShardPool:
    """Lazily opened pool of one login on one shard. A dead database costs callers one deadline, not the process."""

    def __init__(
        self,
        shard: str,
        dsn: str,
        limits: PoolLimits,
        application_name: str = "voltroute",
        session: Mapping[str, str] | None = None,
    ) -> None:
        self.shard = shard
        self.limits = limits
        self._dsn = dsn
        self._session = {"application_name": application_name, **(session or {})}
        self._pool: Pool | None = None
        self._opening = asyncio.Lock()
        self._breaker = Breaker()
        self._closed = False
        self._kept: list[_Pooled] = []
        self._waiting = 0
        self._aging: asyncio.TimerHandle | None = None
        self._releases: set[asyncio.Task[None]] = set()

    def use(self) -> PoolUse:
        """Connections open and idle, and the breaker's state."""
        state = self._breaker.state(time.monotonic())
        if self._pool is None:
            return PoolUse(0, 0, self.limits.max_size, state)
        idle = self._pool.get_idle_size() + len(self._kept)
        return PoolUse(self._pool.get_size(), idle, self.limits.max_size, state)

    @asynccontextmanager
    async def connection(self, deadline: float) -> AsyncIterator[Connection]:
        """A connection, or ShardUnavailable: at once when the breaker is open, else by `deadline` (monotonic seconds).

        Whatever fails inside comes out as a ShardError; a connection whose statement did not end is dropped.
        """
        now = time.monotonic()
        patience = min(deadline - now, self.limits.acquire_timeout_s)
        if patience <= 0:
            raise ShardUnavailable(self.shard, "no time left before the request's deadline")
        if not self._breaker.allow(now, self.limits.statement_timeout_s):
            raise ShardUnavailable(self.shard, "not answering; next try soon", self._breaker.retry_after_s(now))
        try:
            with translated(self.shard):
                pool = await self._open(patience)
                connection = self._at_hand() or await self._acquire(pool, patience)
                try:
                    yield connection
                except BaseException as error:
                    if isinstance(error, TimeoutError | asyncio.CancelledError | OSError):
                        connection.terminate()
                    raise
                finally:
                    if not self._keep(connection):
                        await pool.release(connection)
        except ShardUnavailable as error:
            if not isinstance(error.__cause__, asyncpg.QueryCanceledError | _PoolBusy):
                self._breaker.failed(time.monotonic())
            raise
        except ShardError:
            self._breaker.succeeded()
            raise
        self._breaker.succeeded()

    async def _open(self, patience: float) -> Pool:
        if self._pool is not None:
            return self._pool
        async with asyncio.timeout(patience), self._opening:
            if self._closed:
                raise ShardUnavailable(self.shard, "the pool is closed")
            if self._pool is None:
                self._pool = await self._connect()
        return self._pool

    async def _connect(self) -> Pool:
        limits = self.limits
        return await asyncpg.create_pool(
            self._dsn,
            min_size=limits.min_size,
            max_size=limits.max_size,
            max_inactive_connection_lifetime=limits.idle_s,
            timeout=limits.connect_timeout_s,
            reset=_keep_session,
            server_settings={
                **self._session,
                "timezone": "UTC",
                "statement_timeout": str(int(limits.statement_timeout_s * 1000)),
                "idle_in_transaction_session_timeout": str(int(limits.statement_timeout_s * 1000)),
            },
        )

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

    async def _acquire(self, pool: Pool, patience: float) -> _Pooled:
        self._waiting += 1
        try:
            return await pool.acquire(timeout=patience)
        except TimeoutError:
            if pool.get_size() == self.limits.max_size:
                busy = f"all {self.limits.max_size} connections are busy"
                raise ShardUnavailable(self.shard, busy) from _PoolBusy()
            raise
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


def _is_open(connection: _Pooled) -> bool:
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:  # asyncpg took it back when the server closed it
        return False


async def _release(pool: Pool, connection: _Pooled) -> None:
    with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        await pool.release(connection)


class _PoolBusy(Exception):
    """Marks a refusal that says nothing about the health of the database."""
