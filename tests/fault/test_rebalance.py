"""Shards come and go under load; routers that stand still; wires that are cut. Nothing is lost, nothing is doubled."""

import asyncio
import random
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
import pytest_asyncio

from shards.buckets import bucket_of
from shards.catalog.database import Catalog
from shards.kinds import METER
from shards.moves.phases import Move, Phase
from shards.moves.placement import PlannedMove
from tests.support.commands import Finished, run_command, up
from tests.support.ledger import execute, fetch, statuses, stored
from tests.support.moving import Steps, ended, leftovers, reached, running, start
from tests.support.processes import eventually, servers_in
from tests.support.proxy import wire
from tests.support.readings import START, ingest, meter
from tests.support.routers import router_process
from tests.support.servers import new_cluster, scratch_folder

KWH = 0.25
NDJSON = {"Content-Type": "application/x-ndjson"}
CLOSED = datetime(2020, 6, 1, tzinfo=UTC)
CLOSED_WINDOW = "/v1/analytics/fleet?from=2020-05-01T00:00:00Z&to=2020-12-31T00:00:00Z"
LIVE_WINDOW = "/v1/analytics/fleet?from=2021-01-01T00:00:00Z&to=2027-12-31T00:00:00Z"
CLOSED_READINGS = 4_000
WATCHED_TIMEOUT_S = 400

Key = tuple[str, datetime]


def reading(key: Key) -> dict[str, Any]:
    return {"meterId": key[0], "kwhConsumedAc": KWH, "voltage": 230.0, "timestamp": key[1].isoformat()}


# Batches. On a machine that is busy with something else the storm is slower, and leaves time for what it is to meet.
IN_FLIGHT_MAX = 4


@dataclass
class Storm:
    """Batches with duplicates, late readings of old months, out of order; what was sent, and what was acknowledged."""

    url: str
    sent: set[Key] = field(default_factory=set)
    acknowledged: set[Key] = field(default_factory=set)
    answers: dict[int, int] = field(default_factory=dict)
    longest_s: float = 0.0
    refused: list[str] = field(default_factory=list)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    _number: int = 0

    def batch(self, size: int = 100, devices: int = 500) -> list[Key]:
        keys = []
        for _ in range(size):
            self._number += 1
            moment = START + timedelta(seconds=self._number // devices * 60 + self._number % 60)
            if self._number % 20 == 0:
                moment -= timedelta(days=400)  # before the cluster's first month
            keys.append((f"S-{self._number % devices}", moment))
        keys += random.sample(keys, size // 20)
        random.shuffle(keys)
        return keys

    async def run(self, batches_per_s: float) -> None:
        async with httpx2.AsyncClient(base_url=self.url, timeout=30) as client, asyncio.TaskGroup() as group:
            due = asyncio.get_running_loop().time()
            room = asyncio.Semaphore(IN_FLIGHT_MAX)
            while not self.stop.is_set():
                await room.acquire()
                task = group.create_task(self._post(client, self.batch()))
                task.add_done_callback(lambda _: room.release())
                due += 1 / batches_per_s  # by the clock, so that a slow moment does not lower the rate
                await asyncio.sleep(max(due - asyncio.get_running_loop().time(), 0))

    async def _post(self, client: httpx2.AsyncClient, keys: list[Key]) -> None:
        self.sent.update(keys)
        body = b"\n".join(orjson.dumps(reading(key)) for key in keys)
        started = asyncio.get_running_loop().time()
        response = await client.post("/v1/ingest/meter", content=body, headers=NDJSON)
        self.longest_s = max(self.longest_s, asyncio.get_running_loop().time() - started)
        self.answers[response.status_code] = self.answers.get(response.status_code, 0) + 1
        if response.status_code != 200:
            self.refused.append(f"{response.status_code} {response.json()['detail']}")
        if response.status_code == 200:
            assert response.json()["rejected"] == 0
            self.acknowledged.update(keys)


async def read_all_along(storm: Storm, url: str) -> int:
    """Ask for sums until the storm ends: those of a closed window exactly, those of a live one within what was sent."""
    asked = 0
    async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
        while not storm.stop.is_set():
            closed = await client.get(CLOSED_WINDOW)
            assert closed.status_code == 200, closed.text
            body = closed.json()
            assert (body["isPartial"], body["meterDataPoints"]) == (False, CLOSED_READINGS)
            assert body["totalEnergyConsumedAc"] == CLOSED_READINGS * KWH
            least = len(storm.acknowledged)
            live = (await client.get(LIVE_WINDOW)).json()
            assert live["isPartial"] is False
            assert least <= live["meterDataPoints"] <= len(storm.sent)
            asked += 2
    return asked


@pytest_asyncio.fixture
async def folder() -> AsyncIterator[Path]:
    made = scratch_folder()
    yield made / "data"
    await eventually(lambda: not servers_in(made))
    shutil.rmtree(made, ignore_errors=True)


@pytest.mark.timeout(900)
async def test_a_shard_is_added_and_another_removed_under_load(folder: Path) -> None:
    async def command(*arguments: object) -> Finished:
        done = await run_command(*arguments, "--data", folder, timeout_s=WATCHED_TIMEOUT_S)
        assert done.code == 0, done.err
        return done

    async with up(folder, "--shards", "4", "--buckets", "16") as running_up:
        async with httpx2.AsyncClient(base_url=running_up.url, timeout=30) as client:
            keys = [(f"C-{n % 200}", CLOSED + timedelta(minutes=n // 200)) for n in range(CLOSED_READINGS)]
            body = b"\n".join(orjson.dumps(reading(key)) for key in keys)
            assert (await client.post("/v1/ingest/meter", content=body, headers=NDJSON)).status_code == 200
        storm = Storm(running_up.url)
        load = asyncio.create_task(storm.run(batches_per_s=25))
        reads = asyncio.create_task(read_all_along(storm, running_up.url))
        await command("shard", "add", "shard-5")
        planned = (await command("rebalance", "plan", "--json")).json
        assert {move["target"] for move in planned["moves"]} == {"shard-5"}
        grown = await command("rebalance", "start", "--watch", "--keep", "2")
        drained = await command("shard", "drain", "shard-2", "--watch", "--keep", "2")
        await command("shard", "remove", "shard-2")
        storm.stop.set()
        await load
        assert await reads > 10
        for done in (grown, drained):
            assert "0 acknowledged readings missing (verified" in done.out.replace("\n", " ")
        assert set(storm.answers) == {200}, storm.refused[:5]
        await command("check")
        shards = {entry["name"]: entry["dsn"] for entry in await listed(folder)}
        assert set(shards) == {"shard-1", "shard-3", "shard-4", "shard-5"}
        assert not (folder / "shard-2").exists()
        rows = [(device, moment) for _, device, moment in await stored(shards)]
        assert len(rows) == len(set(rows))
        assert set(rows) == storm.acknowledged | set(keys)
        assert await statuses(shards) == dict(sorted(rows))
    async with up(folder) as again:
        assert [entry["name"] for entry in again.ready["shards"]] == ["shard-1", "shard-3", "shard-4", "shard-5"]
        async with httpx2.AsyncClient(base_url=again.url, timeout=30) as client:
            assert (await client.get(CLOSED_WINDOW)).json()["meterDataPoints"] == CLOSED_READINGS


async def listed(folder: Path) -> list[dict[str, Any]]:
    done = await run_command("shard", "list", "--json", "--show-secrets", "--data", folder)
    found: list[dict[str, Any]] = done.json
    return found


async def test_a_router_that_stood_still_over_a_cutover_lands_nothing_on_the_old_owner(servers: list[str]) -> None:
    async with new_cluster(servers, shards=3, buckets=8) as cluster:
        catalog = Catalog(cluster.catalog_dsn)
        device = cluster.devices_of("s1", 1)[0]
        bucket = bucket_of(device, 8)
        async with (
            router_process(cluster.catalog_dsn, VOLTROUTE_RUNNER="false") as router,
            httpx2.AsyncClient(base_url=router.url, timeout=60) as client,
        ):
            await ingest(client, meter(device, 1))
            router.process.send_signal(signal.SIGSTOP)
            queued = [asyncio.create_task(ingest(client, meter(device, minute))) for minute in range(2, 22)]
            async with running(catalog):
                await start(catalog, [PlannedMove(bucket, "s1", "s2")], keep_s=3600)
                await reached(catalog, Phase.CLEANUP)
                frozen = await fetch(cluster.shards["s1"], f"SELECT count(*) FROM {METER.history}")
                router.process.send_signal(signal.SIGCONT)
                answers = await asyncio.gather(*queued)
                assert [answer["accepted"] for answer in answers] == [1] * 20
                assert await fetch(cluster.shards["s1"], f"SELECT count(*) FROM {METER.history}") == frozen
                await execute(cluster.catalog_dsn, "UPDATE rebalance SET keep_s = 0")
                assert await ended(catalog) == "done"
        rows = [(shard, moment) for shard, name, moment in await stored(cluster.shards) if name == device]
        assert len(rows) == 21
        assert {shard for shard, _ in rows} == {"s2"}
        assert await leftovers(cluster) == []
        await catalog.close()


async def test_a_cut_wire_between_runner_and_shard_is_mended_by_itself(servers: list[str]) -> None:
    steps = ["before leaf", "after pass", "inside fence", "after fence", "before detach"]
    await asyncio.gather(*(cut_the_wire(servers, step) for step in steps))


async def cut_the_wire(servers: list[str], step: str) -> None:
    async with new_cluster(servers, shards=3, buckets=8) as cluster, wire(cluster.shards["s1"]) as line:
        catalog = Catalog(cluster.catalog_dsn)
        change = "UPDATE shard SET owner_dsn = $1 WHERE name = 's1'"
        await execute(cluster.catalog_dsn, change, line.dsn)
        async with (
            router_process(cluster.catalog_dsn, VOLTROUTE_RUNNER="false") as router,
            httpx2.AsyncClient(base_url=router.url, timeout=60) as client,
        ):
            devices = cluster.devices_of("s1", 20)
            await ingest(client, [meter(device, minute) for device in devices for minute in range(20)])
            cut: list[str] = []

            async def tear(_move: Move) -> None:
                if not cut:
                    cut.append(step)
                    line.cut()
                    asyncio.get_running_loop().call_later(0.5, line.mend)

            steps = Steps(at={step: tear})
            async with running(catalog, steps):
                await start(catalog, [PlannedMove(bucket_of(devices[0], 8), "s1", "s2")])
                assert await ended(catalog) == "done", steps.errors
            assert cut
            assert (await ingest(client, meter(devices[0], 99)))["accepted"] == 1
        assert await leftovers(cluster) == []
        assert len(await stored(cluster.shards)) == 401
        await catalog.close()
