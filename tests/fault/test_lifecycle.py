"""History goes through its tiers while devices write into all of them, readers read, and whoever does it is killed."""

import asyncio
import contextlib
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tiering import PLACES, as_if_made, soon, tend

# Long proofs: writers that are never out of old time keep a freeze waiting: 20 s, or minutes with three on two cores.
pytestmark = [pytest.mark.long, pytest.mark.timeout(500)]
START = datetime(2026, 5, 1, tzinfo=UTC)
DAYS = 6
DEVICES = 12
FRIENDS = 2  # writers
PERIOD = {"from": (START - timedelta(days=1)).isoformat(), "to": (START + timedelta(days=DAYS + 1)).isoformat()}
Key = tuple[str, datetime]


@dataclass
class Storm:
    """What was sent, and what was acknowledged as new: (device, time) -> kWh."""

    client: httpx2.AsyncClient
    sent: int = 0
    stored: dict[Key, float] = field(default_factory=dict)
    reads: int = 0
    wrong: list[str] = field(default_factory=list)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def reading(self, dice: random.Random) -> Key:
        """A time of the days, on the minute or beside it: repeats happen."""
        minute = timedelta(minutes=dice.randrange(DAYS * 1440), milliseconds=dice.choice((0, 0, 0, 250)))
        return f"V-{dice.randrange(DEVICES)}", START + minute

    async def write(self, seed: int) -> None:
        """Batches of new readings and repeats; every answer is counted against what was known to be stored."""
        dice, known = random.Random(seed), list[Key]()
        while not self.stopping.is_set():
            keys = {self.reading(dice) for _ in range(dice.choice((1, 20, 100)))}
            keys |= {dice.choice(known) for _ in range(len(keys) // 6) if known}
            mine = sorted(keys)
            self.sent += len(mine)
            told = await self.post([_body(key) for key in mine])
            if told is None:
                continue
            repeats = told["duplicates"]
            if told["accepted"] + repeats != len(mine) or told["conflicts"] or told["rejected"]:
                self.wrong.append(f"{len(mine)} sent: {told}")
            self.stored.update((key, _energy(key)) for key in mine)
            known = [*known[-2000:], *mine]
            await asyncio.sleep(0.05)  # old time is not written to without a pause

    async def post(self, readings: list[dict[str, Any]]) -> dict[str, Any] | None:
        answer = await self.client.post("/v1/ingest/vehicle", json=readings)
        if answer.status_code not in {200, 503, 429}:
            self.wrong.append(answer.text)
        return answer.json() if answer.status_code == 200 else None

    async def read(self) -> None:
        """A count of everything lies between what was acknowledged before and what was sent until after."""
        while not self.stopping.is_set():
            before = len(self.stored)
            answer = await self.client.get("/v1/analytics/fleet", params=PERIOD)
            if answer.status_code == 200:
                self.reads += 1
                count = answer.json()["dataPoints"]
                if not before <= count <= self.sent:
                    self.wrong.append(f"{count} readings between {before} and {self.sent}")
            await asyncio.sleep(0.02)

    async def check(self) -> None:
        """Every acknowledged reading is there once, with its value, and nothing else."""
        there: dict[Key, float] = {}
        for number in range(DEVICES):
            cursor = None
            while True:
                params = {"limit": 1000, **({"cursor": cursor} if cursor else {})}
                page = (await self.client.get(f"/v1/vehicles/V-{number}/history", params=params)).json()
                for item in page["items"]:
                    key = (item["vehicleId"], datetime.fromisoformat(item["timestamp"]))
                    assert key not in there, key
                    there[key] = item["kwhDeliveredDc"]
                cursor = page["next"]
                if cursor is None:
                    break
        lost = {key: value for key, value in self.stored.items() if there.get(key) != value}
        assert lost == {}, (len(lost), len(self.stored))
        assert all(value == _energy(key) for key, value in there.items())
        total = (await self.client.get("/v1/analytics/fleet", params=PERIOD)).json()
        assert total["dataPoints"] == len(there)
        assert total["totalEnergyDeliveredDc"] == pytest.approx(sum(there.values()))
        assert "rollups" in total["tiers"]


def _energy(key: Key) -> float:
    return (hash_of(key) % 7000) / 10_000


def hash_of(key: Key) -> int:
    return int(key[1].timestamp() * 4) * 31 + int(key[0][2:]) * 7


def _body(key: Key) -> dict[str, Any]:
    return {
        "vehicleId": key[0],
        "timestamp": key[1].isoformat(),
        "soc": hash_of(key) % 1000 / 10,
        "kwhDeliveredDc": _energy(key),
        "batteryTemp": 20 + hash_of(key) % 90 / 10,
    }


@asynccontextmanager
async def storm(cluster: TestCluster) -> AsyncIterator[Storm]:
    """Devices write and somebody reads inside; what they saw is checked at the end."""
    async with in_process(cluster, runner=False) as client:
        made = Storm(client)
        async with asyncio.TaskGroup() as group:
            for seed in range(FRIENDS):
                group.create_task(made.write(seed))
            group.create_task(made.read())
            try:
                yield made
            finally:
                made.stopping.set()
        assert made.wrong == []
        await made.check()
        assert made.reads > 0


@asynccontextmanager
async def aged(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=4) as cluster:
        await as_if_made(cluster, START.date(), "day")
        yield cluster


async def killed(cluster: TestCluster, place: str, times: int) -> int:
    """The lifecycle in a process that kills itself at a place; its exit code (0: it never came there)."""
    command = (sys.executable, "-m", "tests.support.tending", cluster.catalog_dsn, place, str(times))
    process = await asyncio.create_subprocess_exec(*command)
    try:
        async with asyncio.timeout(120):
            return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("place", PLACES)
async def test_killed_at_any_place_nothing_is_lost_and_a_rerun_converges(
    servers: list[str], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon(monkeypatch)
    async with aged(servers) as cluster, storm(cluster) as beside:
        await _some(beside, 2000)
        if "merge" in place:
            await tend(cluster)
            await _some(beside, 500)
        for times in (1, 2):
            assert await killed(cluster, place, times) == -signal.SIGKILL
            await _some(beside, 200)
        await tend(cluster)
        await _some(beside, 200)
        await tend(cluster)


async def _some(beside: Storm, more: int) -> None:
    """Wait until so many more readings are acknowledged."""
    goal = len(beside.stored) + more
    async with asyncio.timeout(60):
        while len(beside.stored) < goal:
            await asyncio.sleep(0.02)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(6))
async def test_a_storm_of_kills(servers: list[str], seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    soon(monkeypatch)
    dice = random.Random(seed)
    async with aged(servers) as cluster, storm(cluster) as beside:
        await _some(beside, 1000)
        for _ in range(8):
            with contextlib.suppress(TimeoutError):
                await killed(cluster, dice.choice(PLACES), dice.randrange(1, 9))
            await _some(beside, 50)
        await tend(cluster)
