"""Rolling up a test cluster's readings."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import asyncpg
import pytest

from shards.kinds import KINDS
from shards.storage import sums
from shards.tiers import rolling
from tests.support.servers import TestCluster

NOW = "SELECT clock_timestamp()"


async def roll(cluster: TestCluster, buckets: Iterable[int] = range(8)) -> int:
    """Add all that was ingested so far: nobody writes, so that the shard's clock is a mark."""
    added = 0
    for dsn in cluster.shards.values():
        session = await asyncpg.connect(dsn)
        mark = await session.fetchval(NOW)
        for kind in KINDS:
            for bucket in await rolling.buckets(session, kind):
                is_behind = bucket in buckets
                while is_behind:
                    count, is_behind = await rolling.roll(session, kind, bucket, mark)
                    added += count
                while bucket in buckets and await rolling.count_again(session, kind, bucket, hot=True):
                    pass
        await session.close()
    return added


@contextmanager
def without_rollups(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sums are read from readings, as if there were no rollups."""

    async def never(*_: object) -> bool:
        return False

    with monkeypatch.context() as patched:
        patched.setattr(sums, "are_rolled", never)
        yield
