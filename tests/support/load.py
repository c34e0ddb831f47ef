"""Load on a router, and a record of what it acknowledged."""

import asyncio
import itertools
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import httpx2

from tests.support.readings import START

Key = tuple[str, datetime]


@dataclass
class Recorder:
    """Keys (device, timestamp) of readings that got a 2xx, and the answers by status code."""

    acknowledged: set[Key] = field(default_factory=set)
    statuses: dict[int, int] = field(default_factory=dict)
    broken: int = 0
    longest_s: float = 0.0
    _numbers: Any = field(default_factory=itertools.count)
    _goal: int = 0
    _reached: asyncio.Event = field(default_factory=asyncio.Event)

    async def more(self, count: int, timeout_s: float = 30) -> None:
        """Wait until `count` more readings are acknowledged than now."""
        self._goal = len(self.acknowledged) + count
        self._reached.clear()
        async with asyncio.timeout(timeout_s):
            await self._reached.wait()

    def next_reading(self, devices: int) -> tuple[Key, dict[str, Any]]:
        """A reading that was never made before; each device's are in order of time."""
        number = next(self._numbers)
        device, moment = f"L-{number % devices}", START + timedelta(seconds=number)
        reading = {"meterId": device, "kwhConsumedAc": 0.1, "voltage": 230.0, "timestamp": moment.isoformat()}
        return (device, moment), reading

    async def post(self, client: httpx2.AsyncClient, devices: int = 50, batch: int = 3) -> None:
        """One request; its readings count as acknowledged only when all of them are."""
        made = [self.next_reading(devices) for _ in range(batch)]
        started = time.monotonic()
        try:
            response = await client.post("/v1/ingest/meter", json=[reading for _, reading in made])
        except httpx2.TransportError:
            self.broken += 1
            return
        self.longest_s = max(self.longest_s, time.monotonic() - started)
        self.statuses[response.status_code] = self.statuses.get(response.status_code, 0) + 1
        if response.status_code == 200:
            self.acknowledged.update(key for key, _ in made)
            if len(self.acknowledged) >= self._goal:
                self._reached.set()

    async def run(self, url: str, until: asyncio.Event, workers: int = 16) -> None:
        """Post from `workers` connections at once until told to stop or the router is gone."""

        async def work(client: httpx2.AsyncClient) -> None:
            broken = self.broken
            while not until.is_set() and self.broken == broken:
                await self.post(client)

        async with httpx2.AsyncClient(base_url=url, timeout=20) as client:
            await asyncio.gather(*(work(client) for _ in range(workers)))

    def newest(self) -> dict[str, datetime]:
        """Device -> newest acknowledged timestamp."""
        found: dict[str, datetime] = {}
        for device, moment in self.acknowledged:
            found[device] = max(moment, found.get(device, moment))
        return found
