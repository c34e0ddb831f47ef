"""One leader for everything that runs in the background, by a lease. Whoever makes the leader registers its duties."""

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


class Duty(Protocol):
    """Something that the leader does for as long as it leads."""

    async def run(self, generation: int) -> None:
        """Work until cancelled, in the name of this generation."""


@dataclass
class Leader:
    """Stands for election, and does its duties while it leads. Renews, and asks, four times a lease."""

    catalog: Catalog
    name: str
    duties: Sequence[Duty]
    lease_s: float = LEASE_S
    generation: int = 0
    leads: bool = False

    @property
    def _renew_s(self) -> float:
        return self.lease_s / 4

    async def run(self) -> None:
        """Until cancelled. A catalog that is unreachable only makes it wait."""
        while True:
            with contextlib.suppress(ShardError, ClusterError):
                await self._stand()
            await asyncio.sleep(self._renew_s * random.uniform(0.5, 1.0))

    async def _stand(self) -> None:
        asked_at = time.monotonic()
        generation = await lease.acquire(self.catalog, self.name, self.lease_s, deadline_in(self.lease_s))
        if generation is None:
            return
        self.generation, self.leads = generation, True
        working = asyncio.create_task(self._work(generation))
        try:
            await self._keep(generation, asked_at + self.lease_s, working)
        finally:
            self.leads = False
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            # Only after the work has ended: the next leader may begin at once.
            with contextlib.suppress(ShardError):
                await asyncio.shield(lease.release(self.catalog, generation, deadline_in(self._renew_s)))

    async def _keep(self, generation: int, valid_until: float, working: asyncio.Task[None]) -> None:
        """Renew until the lease is lost, or a duty fails. `valid_until` counts from before the request was sent."""
        while not working.done():
            await asyncio.wait({working}, timeout=min(self._renew_s, max(valid_until - time.monotonic(), 0)))
            asked_at = time.monotonic()
            if asked_at >= valid_until:
                return
            with contextlib.suppress(ShardError):
                if not await lease.renew(self.catalog, generation, self.lease_s, valid_until):
                    return
                valid_until = asked_at + self.lease_s
        working.result()

    async def _work(self, generation: int) -> None:
        async with asyncio.TaskGroup() as group:
            for duty in self.duties:
                group.create_task(duty.run(generation))
