"""A router's statuses in Redis: read through it, and deleted from it with every batch that was committed."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import lru_cache
from importlib import metadata
from typing import Final

from router.metrics import STATUS_CACHE_FAILURES, STATUS_READS
from router.statuses.lease import Away, Form, Found, Fresh, Outcome, read
from router.statuses.owed import Owed
from router.statuses.store import KEYS_A_COMMAND, PAUSE_S, RedisStore
from shards.cluster.live import Cluster
from shards.kinds import Kind, Row

OWED_MAX: Final = 100_000


@lru_cache(1024)
def _mark(kind: Kind, shard: str, system: int | None) -> bytes:
    """Of a kind's statuses: other fields, another release or another server, and they mean something else."""
    told = [metadata.version("voltroute"), shard, str(system), kind.id_name, *map(repr, kind.in_status)]
    return hashlib.blake2b("\n".join(told).encode(), digest_size=8).digest()


class StatusCache:
    """`ttl_s`: what a status may be older than an acknowledged one at most, if a router could not reach the store."""

    def __init__(self, store: RedisStore, cluster: Cluster, ttl_s: float) -> None:
        self._store = store
        self._cluster = cluster
        self._owed = Owed(ttl_s, OWED_MAX)

    @property
    def is_up(self) -> bool:
        """It answered the last time."""
        return not self._store.is_away

    @property
    def owed(self) -> int:
        """Keys that could not be deleted yet."""
        return len(self._owed)

    async def read(self, kind: Kind, tenant: int, device_id: str, ask: Callable[[], Awaitable[Fresh]]) -> Found:
        """The newest status of a device, as `ask` puts it. Raises what that raises."""
        key = self._key(tenant, kind, device_id)
        if self._owed.holds(key, time.monotonic()):
            found = Found((await ask()).value, Outcome.BYPASS)
        else:
            found = await read(self._store, key, self._form(tenant, kind, device_id), ask)
        STATUS_READS.labels(found.outcome.value).inc()
        return found

    async def written(self, kind: Kind, rows: Sequence[Row]) -> None:
        """These rows are committed, and about to be acknowledged; also those that were there before."""
        keys = [self._key(tenant, kind, device) for tenant, device in {(row[1], row[2]) for row in rows}]
        try:
            await self._store.forget(keys)
        except Away:
            STATUS_CACHE_FAILURES.inc()
            self._owed.add(keys, time.monotonic())

    async def run(self) -> None:
        """Until cancelled: delete what could not be, and see whether the store is back."""
        while True:
            await asyncio.sleep(PAUSE_S)
            await self._settle()

    async def _settle(self) -> None:
        try:
            while some := self._owed.some(KEYS_A_COMMAND, time.monotonic()):
                await self._store.forget(list(some))
                self._owed.paid(some)
            if self._store.is_away:
                await self._store.probe()
        except Away:
            return

    async def close(self) -> None:
        """Let go of the store."""
        await self._settle()
        await self._store.close()

    def _form(self, tenant: int, kind: Kind, device_id: str) -> Form:
        """By the server that is believed now, before it is asked."""
        shard_map = self._cluster.map
        shard = shard_map.owner(shard_map.bucket(tenant, device_id))
        lineage = self._cluster.lineage(shard)
        return Form(_mark(kind, shard, lineage.system), lineage.timeline)

    def _key(self, tenant: int, kind: Kind, device_id: str) -> str:
        return f"voltroute:{self._cluster.cluster_id}:{tenant}:{kind.name}:{device_id}"


def seal(as_of: datetime | None, answer: bytes) -> bytes:
    """An answer, and of when it is."""
    return (as_of.isoformat() if as_of else "").encode() + b"\n" + answer


def unseal(value: bytes) -> tuple[datetime | None, bytes]:
    """The same again."""
    when, _, answer = value.partition(b"\n")
    return (datetime.fromisoformat(when.decode()) if when else None), answer
