"""Redis or Valkey as the store: one attempt, one time limit, and a pause after a failure: nobody queues for it.

Whatever goes wrong with it is Away: what is committed is not answered with an error because of it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, urlsplit

from router.statuses.lease import Away
from shards.errors import InvalidArgument, MachineError

PAUSE_S: Final = 0.5
KEYS_A_COMMAND: Final = 500  # some 100 us of the server's time, in which it serves nobody else
CONNECTIONS_MAX: Final = 32
LEASE_S: Final = 5.0  # of one whose reader went away: until then nobody else keeps the value
_FILL: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
    local left = ARGV[3] + redis.call('PTTL', KEYS[1])
    if left > 0 then redis.call('SET', KEYS[1], ARGV[2], 'PX', left) end
end
"""
# Of a URL; others would be passed on, and change what is relied on here.
_OPTIONS: Final = frozenset(
    {"db", "ssl_ca_certs", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname", "ssl_keyfile"}
)
Result = TypeVar("Result")


class RedisStore:
    """`ttl_s`: that a value is kept, from its lease on. `changed`: told why it is away, and None when it is back."""

    def __init__(self, url: str, timeout_s: float, ttl_s: float, changed: Callable[[str | None], None]) -> None:
        try:
            from redis import asyncio as aredis  # noqa: PLC0415 - an extra
            from redis import backoff, exceptions  # noqa: PLC0415
            from redis.asyncio.retry import Retry  # noqa: PLC0415
        except ImportError:
            raise MachineError("VOLTROUTE_REDIS_URL needs redis: pip install 'voltroute[redis]'") from None
        self._refusals = (exceptions.ResponseError,)
        self._is_refused = False
        self._timeout_s = timeout_s
        lease_s = min(LEASE_S, ttl_s)
        self._lease_ms = max(int(lease_s * 1000), 1)
        self._longer_ms = int((ttl_s - lease_s) * 1000)  # than its lease a value is kept
        self._changed = changed
        self._away_until = 0.0
        self._is_away = False
        try:
            if {name for name, _ in parse_qsl(urlsplit(url).query)} - _OPTIONS:
                raise ValueError  # noqa: TRY301 - as one that cannot be parsed
            pool = aredis.BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS_MAX,
                timeout=timeout_s,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(backoff.NoBackoff(), 0),
                protocol=2,
            )
            pool.make_connection()  # type: ignore[no-untyped-call]  # connects to nothing yet: what is wrong with the options is said now
        except (ValueError, TypeError, AttributeError):
            raise InvalidArgument(
                "VOLTROUTE_REDIS_URL: a URL looks like redis://user:password@host:6379/0, rediss:// with TLS; "
                f"of options it takes {', '.join(sorted(_OPTIONS))}"
            ) from None
        self._client: Any = aredis.Redis.from_pool(pool)
        self._fill: Any = self._client.register_script(_FILL)

    @property
    def is_away(self) -> bool:
        """It did not answer the last time, or refuses to delete."""
        return self._is_away or self._is_refused

    async def take(self, key: str, lease: bytes) -> bytes | None:
        """See Store."""
        return await self._ask(lambda: self._client.set(key, lease, px=self._lease_ms, nx=True, get=True))

    async def fill(self, key: str, lease: bytes, value: bytes) -> None:
        """See Store."""
        await self._ask(lambda: self._fill(keys=[key], args=[lease, value, self._longer_ms]))

    async def forget(self, keys: list[str]) -> None:
        """See Store."""
        pipeline = self._client.pipeline(transaction=False)
        for at in range(0, len(keys), KEYS_A_COMMAND):
            pipeline.delete(*keys[at : at + KEYS_A_COMMAND])
        await self._ask(pipeline.execute, deletes=True)

    async def probe(self) -> None:
        """Ask whether it is back."""
        await self._ask(self._client.ping)

    async def close(self) -> None:
        """Let go of its connections."""
        await self._client.aclose()
        await self._client.connection_pool.disconnect()

    async def _ask(self, command: Callable[[], Awaitable[Result]], *, deletes: bool = False) -> Result:
        if time.monotonic() < self._away_until:
            raise Away
        try:
            async with asyncio.timeout(self._timeout_s):
                result = await command()
        except self._refusals as error:  # it is full, or a replica: it answers, and need not be left alone
            if deletes and not self._is_refused:
                self._is_refused = True
                self._changed(str(error))
            raise Away(str(error)) from None
        except Exception as error:  # noqa: BLE001 - see above
            self._away_until = time.monotonic() + PAUSE_S
            if not self._is_away:
                self._is_away = True
                self._changed(str(error) or "no answer in time")
            raise Away(str(error)) from None
        was_away = self.is_away
        self._is_away = False
        self._is_refused = self._is_refused and not deletes
        if was_away and not self.is_away:
            self._changed(None)
        return result
