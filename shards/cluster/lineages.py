"""Which server of each shard is believed, kept the same in this router and in the catalog."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import ShardError
from shards.postgres.lineage import Lineage
from shards.shard import ShardRecord

TELL_S: Final = 2.0  # how long readings on a new primary wait for the catalog to hear of it
_LEFT_S: Final = 0.1  # for the answer


class Lineages:
    """By shard. `news`: told when a primary is met that is newer than was known."""

    def __init__(self, catalog: Catalog, news: Callable[[], None]) -> None:
        self._catalog = catalog
        self._news = news
        self._by_shard: dict[str, Lineage] = {}
        self._recorded: dict[str, int] = {}  # the timeline that the catalog has, by shard
        self._waited: dict[str, int] = {}  # the one that readings have waited for
        self._telling = asyncio.Lock()

    def of(self, shard: str) -> Lineage:
        """The lineage that all of the shard's pools share."""
        if shard not in self._by_shard:
            self._by_shard[shard] = Lineage()
            self._by_shard[shard].listen(self._news)
        return self._by_shard[shard]

    def learn(self, record: ShardRecord) -> None:
        """What the catalog says of a shard."""
        self._recorded[record.name] = 0 if record.system is None else record.timeline
        self.of(record.name).learn(record.system, record.timeline)

    def newest(self, record: ShardRecord) -> ShardRecord:
        """A shard as the catalog has it, with the newest primary that was met."""
        met = self.of(record.name)
        return record if met.system is None else replace(record, system=met.system, timeline=met.timeline)

    async def settle(self, shard: str, deadline: float) -> None:
        """Before readings on a new primary are acknowledged, the catalog hears of it.

        A router that starts next, and reaches only the old one, must not take it for the primary. Without the catalog
        readings go on: a timeline is waited for once, for at most `TELL_S`.
        """
        timeline = self.of(shard).timeline
        if timeline <= self._recorded.get(shard, 0) or timeline <= self._waited.get(shard, 0):
            return
        began = time.monotonic()
        wait_s = min(TELL_S, deadline - began - _LEFT_S)
        with contextlib.suppress(ShardError, TimeoutError):
            async with asyncio.timeout(wait_s), self._telling:
                await self.tell(deadline_in(wait_s))
        if wait_s == TELL_S:  # readings that had less time have proved nothing
            self._waited[shard] = timeline

    async def tell(self, deadline: float) -> None:
        """Tell the catalog what it does not know. ShardError when it does not answer."""
        for name, recorded in list(self._recorded.items()):
            met = self.of(name)
            if met.system is not None and met.timeline > recorded:
                await self._catalog.learn_lineage(name, met.system, met.timeline, deadline)
                self._recorded[name] = max(met.timeline, self._recorded[name])
