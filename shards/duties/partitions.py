"""The leader's duty to keep partitions ahead of time on every shard."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import ClusterError, ShardError
from shards.postgres.sessions import BRIEF, owner_session
from shards.shard import ShardRecord
from shards.storage.partitions import Extended, extend_runway

CATALOG_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True)
class Round:
    """What one round did on a shard: what was made and what failed, or why nothing was done."""

    shard: str
    extended: Extended | None
    error: str | None = None


@dataclass
class Partitions:
    """Looks at every shard every `every_s` seconds, and tells `done` what came of it; `left` when it leads no more."""

    catalog: Catalog
    every_s: float
    done: Callable[[Round], None] = field(default=lambda _round: None)
    left: Callable[[], None] = field(default=lambda: None)

    async def run(self, _generation: int) -> None:
        """Until cancelled; a shard that is unreachable is reported and left for the next round."""
        try:
            while True:
                pause = self.every_s if await self._round() else 1.0
                await asyncio.sleep(pause)
        finally:
            self.left()

    async def _round(self) -> bool:
        """Whether the catalog said which shards there are."""
        try:
            info = await self.catalog.info(deadline_in(CATALOG_TIMEOUT_S))
            records = await self.catalog.shards(deadline_in(CATALOG_TIMEOUT_S))
        except (ShardError, ClusterError):
            return False
        for made in await asyncio.gather(*(extend(record, info.leaf_width) for record in records)):
            self.done(made)
        return bool(records)


async def extend(record: ShardRecord, width: str) -> Round:
    """Make the coming partitions of one shard. A bucket that cannot have them does not keep others from it."""
    try:
        async with owner_session(record, BRIEF) as connection:
            return Round(record.name, await extend_runway(connection, datetime.now(UTC), width))
    except ShardError as error:
        return Round(record.name, None, error.detail)
