"""One leader for everything that runs in the background, by a lease. Duties are registered by whoever makes the leader."""

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from shards.catalog import lease
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import ClusterError, ShardError

LEASE_S: Final = 4.0
RENEW_S: Final = 1.0
STAND_BY_S: Final = 1.0


class Duty(Protocol):
    """Something that the leader does for as long as it leads."""

    async def run(self, generation: int) -> None:
        """Work until cancelled, in the name of this generation."""


@dataclass
class Leader:
    """Stands for election, and does its duties while it leads."""

    catalog: Catalog
    name: str
    duties: Sequence[Duty]
    generation: int = 0
    leads: bool = False

    async def run(self) -> None:
        """Until cancelled. A catalog that is unreachable only makes it wait."""
        while True:
            with contextlib.suppress(ShardError, ClusterError):
                await self._stand()
            await asyncio.sleep(STAND_BY_S * random.uniform(0.5, 1.0))

    async def _stand(self) -> None:
        asked_at = time.monotonic()
        generation = await lease.acquire(self.catalog, self.name, LEASE_S, deadline_in(LEASE_S))
        if generation is None:
            return
        self.generation, self.leads = generation, True
        working = asyncio.create_task(self._work(generation))
        try:
            await self._keep(generation, asked_at + LEASE_S, working)
        finally:
            self.leads = False
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            # Only after the work has ended: the next leader may begin at once.
            with contextlib.suppress(ShardError):
                await asyncio.shield(lease.release(self.catalog, generation, deadline_in(RENEW_S)))

    async def _keep(self, generation: int, valid_until: float, working: asyncio.Task[None]) -> None:
        """Renew until the lease is lost, or a duty fails. `valid_until` counts from before the request was sent."""
        while not working.done():
            await asyncio.wait({working}, timeout=min(RENEW_S, max(valid_until - time.monotonic(), 0)))
            asked_at = time.monotonic()
            if asked_at >= valid_until:
                return
            with contextlib.suppress(ShardError):
                if not await lease.renew(self.catalog, generation, LEASE_S, valid_until):
                    return
                valid_until = asked_at + LEASE_S
        working.result()

    async def _work(self, generation: int) -> None:
        async with asyncio.TaskGroup() as group:
            for duty in self.duties:
                group.create_task(duty.run(generation))
