"""The leader's duty to take months that are old enough out of their shards, as the policies say."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from shards.archive.runner import Archiver
from shards.archive.store import Archive
from shards.catalog import archive as ledger
from shards.catalog import kinds as catalogued
from shards.catalog import lifecycle
from shards.catalog.archive import State
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import ClusterError, ShardError
from shards.policy import Policies
from shards.tiers.runner import Done, Result, nobody

CATALOG_TIMEOUT_S: Final = 5.0
SHARE: Final = 0.2  # of the time of a backend on each shard; less while readings wait
SHARE_WHEN_BUSY: Final = 0.03


@dataclass(frozen=True)
class Round:
    """What one round took out of a shard, or why nothing."""

    shard: str
    result: Result | None
    error: str | None = None


@dataclass
class Archiving:
    """Looks at every shard every `every_s` seconds; tells `ended` what came of it, and `done` of every month.

    `busy`: whether readings wait.
    """

    catalog: Catalog
    every_s: float
    busy: Callable[[], bool] = lambda: False
    done: Callable[[str], Done] = field(default=lambda _shard: nobody)
    ended: Callable[[Round], None] = field(default=lambda _round: None)
    left: Callable[[], None] = field(default=lambda: None)

    async def run(self, _generation: int) -> None:
        """Until cancelled. Whoever leads next goes on where the ledger says."""
        try:
            while True:
                with contextlib.suppress(ShardError):  # the catalog is away: the next round
                    await self._round()
                await asyncio.sleep(self.every_s)
        finally:
            self.left()

    async def _round(self) -> None:
        deadline = deadline_in(CATALOG_TIMEOUT_S)
        policies = await self._policies()
        entries = await ledger.entries(self.catalog, deadline)
        if not any(each.archive or each.drop for each in policies) and all(
            each.state in {State.DROPPED, State.EXPIRED} for each in entries
        ):
            return
        kinds = await catalogued.known(self.catalog, deadline)
        records = await self.catalog.shards(deadline)
        try:
            archive = await Archive.of(self.catalog, (await self.catalog.info(deadline)).cluster_id)
        except ClusterError as error:
            for record in records:
                self.ended(Round(record.name, None, str(error)))
            return
        archivers = (
            Archiver(record, archive, self._policies, kinds, self.done(record.name), self._pause) for record in records
        )
        await asyncio.gather(*(self._archive(each) for each in archivers))

    async def _policies(self) -> Policies:
        return await lifecycle.policies(self.catalog, deadline_in(CATALOG_TIMEOUT_S))

    async def _archive(self, archiver: Archiver) -> None:
        try:
            self.ended(Round(archiver.record.name, await archiver.run()))
        except (ShardError, ClusterError) as error:
            detail = error.detail if isinstance(error, ShardError) else str(error)
            self.ended(Round(archiver.record.name, None, detail))

    async def _pause(self, seconds: float) -> None:
        share = SHARE_WHEN_BUSY if self.busy() else SHARE
        await asyncio.sleep(seconds * (1 / share - 1))
