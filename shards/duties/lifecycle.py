"""The leader's duty to take history through its tiers, on all shards, as the policies say; and to keep rollups."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from shards.catalog import kinds as catalogued
from shards.catalog import lifecycle
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import ClusterError, ShardError
from shards.kinds import Kinds
from shards.policy import Policies
from shards.shard import ShardRecord
from shards.tiers.rolling import Summaries
from shards.tiers.runner import Done, Result, Tender, nobody

CATALOG_TIMEOUT_S: Final = 5.0
SHARE: Final = 0.1  # of the time of a backend on each shard; less while readings wait
SHARE_WHEN_BUSY: Final = 0.03


@dataclass(frozen=True)
class Round:
    """What one round did on a shard, or why nothing. `rollups`: it was of them alone."""

    shard: str
    result: Result | None
    rollups: bool = False
    error: str | None = None


@dataclass
class Lifecycle:
    """Looks at every shard every `every_s` seconds; tells `ended` what came of it, and `done` of every step.

    `busy`: whether readings wait; then ingestion gets most of the time. `rollups`: brings only those up to date, which
    another duty does more often: a round that packs for hours keeps none from it.
    """

    catalog: Catalog
    every_s: float
    rollups: bool = False
    busy: Callable[[], bool] = lambda: False
    done: Callable[[str], Done] = field(default=lambda _shard: nobody)
    ended: Callable[[Round], None] = field(default=lambda _round: None)
    left: Callable[[], None] = field(default=lambda: None)
    _summaries: dict[str, Summaries] = field(default_factory=dict)

    async def run(self, _generation: int) -> None:
        """Until cancelled. Who leads no more may end its step: whoever comes next waits for the bucket."""
        try:
            while True:
                with contextlib.suppress(ShardError, ClusterError):
                    await self._round()
                await asyncio.sleep(self.every_s)
        finally:
            self.left()

    async def _round(self) -> None:
        policies = await lifecycle.policies(self.catalog, deadline_in(CATALOG_TIMEOUT_S))
        if policies or not self.rollups:
            kinds = await catalogued.known(self.catalog, deadline_in(CATALOG_TIMEOUT_S))
            records = await self.catalog.shards(deadline_in(CATALOG_TIMEOUT_S))
            await asyncio.gather(*(self._tend(self._tender(record, policies, kinds)) for record in records))

    def _tender(self, record: ShardRecord, policies: Policies, kinds: Kinds) -> Tender:
        summaries = self._summaries.setdefault(record.name, Summaries())
        return Tender(record, policies, kinds, self.done(record.name), self._pause, summaries=summaries)

    async def _tend(self, tender: Tender) -> None:
        name = tender.record.name
        try:
            self.ended(Round(name, await (tender.roll() if self.rollups else tender.run()), self.rollups))
        except (ShardError, ClusterError) as error:
            detail = error.detail if isinstance(error, ShardError) else str(error)
            self.ended(Round(name, None, self.rollups, detail))

    async def _pause(self, seconds: float) -> None:
        share = SHARE_WHEN_BUSY if self.busy() else SHARE
        await asyncio.sleep(seconds * (1 / share - 1))
