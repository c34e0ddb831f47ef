"""Devices that post without end, and remember what was acknowledged."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import httpx2

from tests.support.readings import START, meter

ENOUGH = 20  # answers after what happened
LIMIT_S = 60


class Devices:
    """Some that post one reading after the other, and remember which were acknowledged."""

    def __init__(self, client: httpx2.AsyncClient, count: int = 6) -> None:
        self.acknowledged: set[tuple[str, datetime]] = set()
        self.statuses: list[int] = []
        self.ended = False
        self._client = client
        self._count = count
        self._more = asyncio.Event()

    @asynccontextmanager
    async def posting(self) -> AsyncIterator[None]:
        """They post inside, and end with an answer each."""
        running = asyncio.create_task(self.run())
        try:
            yield
        finally:
            self.ended = True
            await running

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                group.create_task(self._post(f"DEV-{number}"))

    async def more(self, count: int = ENOUGH, limit_s: float = LIMIT_S) -> None:
        """Wait until so many more are acknowledged, and one of each device, so that every shard has written."""
        before = len(self.acknowledged), Counter(device for device, _ in self.acknowledged)
        async with asyncio.timeout(limit_s):
            while not self._has_more(*before, count):
                self._more.clear()
                await self._more.wait()

    def _has_more(self, total: int, each: Counter[str], count: int) -> bool:
        now = Counter(device for device, _ in self.acknowledged)
        return now.total() >= total + count and all(now[f"DEV-{n}"] > each[f"DEV-{n}"] for n in range(self._count))

    async def _post(self, device: str) -> None:
        for number in itertools.count():
            body = meter(device, number)
            while not self.ended:
                answer = await self._client.post("/v1/ingest", json=body, timeout=LIMIT_S)
                self.statuses.append(answer.status_code)
                if answer.status_code == 200:
                    break
                await asyncio.sleep(0.05)
            if self.ended:
                return
            self.acknowledged.add((device, START + timedelta(minutes=number)))
            self._more.set()
