"""Which shard stores a device, by what the shards say and the documented hash."""

from collections.abc import Mapping
from typing import Final

import asyncpg
import mmh3

_OWNED: Final = "SELECT bucket FROM owned_bucket"


async def owners(shards: Mapping[str, str]) -> dict[int, str]:
    """Bucket -> shard, as the shards themselves say."""
    found: dict[int, str] = {}
    for name, dsn in shards.items():
        connection = await asyncpg.connect(dsn)
        found |= {row["bucket"]: name for row in await connection.fetch(_OWNED)}
        await connection.close()
    return found


def bucket_of(device: str, bucket_count: int) -> int:
    """The bucket of a device, by the documented rule."""
    return mmh3.hash(device, 0, signed=False) % bucket_count
