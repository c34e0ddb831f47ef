"""Careful devices: one reading after the other, and what is not acknowledged again, to any router."""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeAlias

import orjson

from bench.http1 import Connection, ConnectionLost, connect, get, post
from bench.workload import JSON, Readings

Request: TypeAlias = Callable[[str], bytes]  # of a router's URL
PAUSE_S: Final = (0.02, 0.08)  # between two readings of a device
AGAIN_S: Final = (0.05, 0.2)
PATIENCE_S: Final = 20.0  # longer than any deadline of a router
LOOKS: Final = 0.1  # of readings after which the device's status is asked for


@dataclass
class Heard:
    """What all devices were told. `acknowledged`: a reading's number -> when (monotonic seconds)."""

    acknowledged: dict[int, float] = field(default_factory=dict)
    sent: set[int] = field(default_factory=set)
    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0  # connections
    silent: int = 0  # requests without an answer for PATIENCE_S
    looked: int = 0
    stale: list[float] = field(default_factory=list)  # of statuses: for how long something newer was acknowledged
    _more: asyncio.Event = field(default_factory=asyncio.Event)  # replaced whenever there is one

    def acknowledge(self, number: int) -> None:
        """A reading is stored."""
        self.acknowledged[number] = time.monotonic()
        self._more.set()
        self._more = asyncio.Event()

    async def until(self, enough: Callable[[], bool]) -> None:
        """Wait until what was acknowledged is enough."""
        while not enough():
            await self._more.wait()


class Device:
    """One of them; its readings are `number`, `number + devices`, and so on."""

    def __init__(self, urls: list[str], readings: Readings, number: int, heard: Heard, chance: random.Random) -> None:
        self._urls = urls
        self._readings = readings
        self._number = number
        self._heard = heard
        self._chance = chance
        self._connection: Connection | None = None
        self._url = urls[0]

    async def run(self, ended: asyncio.Event) -> None:
        """Until it is told to end; then its last reading was acknowledged."""
        for number in itertools.count(self._number, self._readings.devices):
            await self._store(number)
            if self._chance.random() < LOOKS:
                await self._look(number)
            if ended.is_set():
                break
            await asyncio.sleep(self._chance.uniform(*PAUSE_S))
        if self._connection is not None:
            self._connection.close()

    async def _store(self, number: int) -> None:
        body, path = self._readings.body(number), self._readings.kind.path
        self._heard.sent.add(number)
        while True:
            if await self._ask(lambda url: post(url, path, body, JSON)) is not None:
                break
            await asyncio.sleep(self._chance.uniform(*AGAIN_S))
        self._heard.acknowledge(number)

    async def _look(self, number: int) -> None:
        """Its status, which is not of before that reading."""
        device, heard = self._readings.device(number), self._heard
        answer = await self._ask(lambda url: get(url, f"/v1/{self._readings.kind.name}s/{device}/status"))
        if answer is None:
            return
        heard.looked += 1
        told = datetime.fromisoformat(orjson.loads(answer)["lastUpdated"])
        missed = number
        while missed >= 0 and self._readings.moment(missed) > told:
            missed -= self._readings.devices
        if missed != number:  # since when the first one that it does not show is acknowledged
            heard.stale.append(time.monotonic() - heard.acknowledged[missed + self._readings.devices])

    async def _ask(self, request: Request) -> bytes | None:
        """The body of a 200; None for anything else, and the next one goes to any router."""
        heard = self._heard
        try:
            async with asyncio.timeout(PATIENCE_S):
                if self._connection is None:
                    self._url = self._chance.choice(self._urls)
                    self._connection = await connect(self._url)
                answer = await self._connection.request(request(self._url))
        except (ConnectionLost, OSError):
            heard.lost += 1
        except TimeoutError:
            heard.silent += 1
        else:
            heard.statuses[answer.status] += 1
            if answer.status == 200:
                return answer.body
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        return None
