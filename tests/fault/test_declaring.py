"""A kind is declared under load, while buckets move, a shard stops and one router knows nothing of it."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from shards.catalog.database import Catalog
from shards.errors import ClusterError, Refused, ShardError
from shards.kinds import KINDS, Kind
from shards.moves.phases import Move, Phase
from shards.moves.placement import PlannedMove
from shards.operations import check, kinds
from shards.readymade import EXTENSIONS, READY_MADE
from tests.support.declaring import silently
from tests.support.ledger import fetch
from tests.support.moving import Steps, ended, leftovers, reached, running, start
from tests.support.processes import Breakable, breakable
from tests.support.readings import START
from tests.support.routers import RouterProcess, router_process
from tests.support.servers import TestCluster, new_cluster

CHARGER = READY_MADE["charger"]
KINDS_OF_LOAD = (*KINDS, CHARGER)
PATIENT = {"VOLTROUTE_RUNNER": "false", "VOLTROUTE_INGEST_TIMEOUT_S": "30", "VOLTROUTE_MAP_POLL_S": "0.2"}
DEVICES = 20
PAUSE_S = 0.05  # of a device between two readings: a machine that is busy with its load moves no bucket
Key = tuple[str, str, datetime]


def reading(kind: Kind, number: int) -> tuple[Key, dict[str, Any]]:
    """One that was never made before; whose device has every field now and then."""
    device, moment = f"{kind.name}-{number % DEVICES}", START + timedelta(seconds=number)
    values: dict[str, Any]
    if kind is CHARGER:
        values = {"kwhDelivered": 0.25} if number % 3 else {"registerKwh": float(number)}
        optional = {"powerKw": 11.0, "chargeState": "charging", "voltage": 400.0, "cableTemp": 31.5, "currentA": 16.0}
        values |= dict(itertools.islice(optional.items(), number % 6))
    else:
        values = (
            {"kwhConsumedAc": 0.25} if kind.name == "meter" else {"soc": 50, "kwhDeliveredDc": 0.2, "batteryTemp": 20}
        )
    return (kind.name, device, moment), {kind.id_name: device, "timestamp": moment.isoformat(), **values}


@dataclass
class Fleet:
    """Devices of some kinds that post as devices do: what a shard could not take is sent again until it is taken."""

    url: str
    kinds: tuple[Kind, ...]
    stored: set[Key] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, numbers: Iterable[int]) -> None:
        async with httpx2.AsyncClient(base_url=self.url, timeout=60) as client:
            for number in numbers:
                made = [reading(kind, number * 5 + at) for kind in self.kinds for at in range(5)]
                await self._until_taken(client, made)
                if self.stop.is_set():
                    return
                await asyncio.sleep(PAUSE_S)

    async def _until_taken(self, client: httpx2.AsyncClient, made: list[tuple[Key, dict[str, Any]]]) -> None:
        while True:
            response = await client.post("/v1/ingest", json=[each for _, each in made])
            if response.status_code == 200 and not response.json()["errors"]:
                self.stored.update(key for key, _ in made)
                return
            if response.status_code != 503:
                self.refused.append(f"{response.status_code} {response.text}")
                return
            await asyncio.sleep(0.1)

    async def more(self, count: int, timeout_s: float = 60) -> None:
        """Wait until so many more readings are stored."""
        goal = len(self.stored) + count
        async with asyncio.timeout(timeout_s):
            while len(self.stored) < goal and not self.refused:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def posting(url: str, sent: tuple[Kind, ...], first: int) -> AsyncIterator[Fleet]:
    """A fleet at work inside the block; its numbers begin at `first`."""
    fleet = Fleet(url, sent)
    task = asyncio.create_task(fleet.run(itertools.count(first)))
    try:
        yield fleet
    finally:
        fleet.stop.set()
        await task


async def takes(router: RouterProcess, kind: Kind) -> None:
    """Wait until the router has heard of a kind."""
    async with asyncio.timeout(30), httpx2.AsyncClient(base_url=router.url, timeout=10) as client:
        while (await client.get(f"/v1/{kind.plural}/NOBODY/status")).json()["detail"].startswith("GET"):
            await asyncio.sleep(0.05)


async def ledger(shards: dict[str, str], sent: tuple[Kind, ...]) -> list[Key]:
    found = []
    for dsn in shards.values():
        for kind in sent:
            sql = f"SELECT {kind.id_column} AS device, timestamp FROM {kind.history}"
            found += [(kind.name, row["device"], row["timestamp"]) for row in await fetch(dsn, sql)]
    return found


async def statuses(shards: dict[str, str], kind: Kind, column: str) -> dict[str, Any]:
    found = {}
    for dsn in shards.values():
        for row in await fetch(dsn, f"SELECT {kind.id_column} AS device, {column} AS value FROM {kind.status}"):
            found[row["device"]] = row["value"]
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def own() -> AsyncIterator[Breakable]:
    async with breakable(shards=3, buckets=8) as made:
        yield made


@pytest.mark.timeout(300)
async def test_a_kind_is_made_under_load_while_buckets_move_and_a_shard_stops(own: Breakable) -> None:
    """Nobody's readings are refused, two routers write what they know, and the ledger of all three kinds is exact."""
    dsn, shards = own.cluster.catalog_dsn, own.cluster.state.shard_dsns()
    cluster, catalog = TestCluster(dsn, shards, 8), Catalog(dsn)
    moves = [PlannedMove(bucket, f"shard-{bucket % 3 + 1}", f"shard-{(bucket + 1) % 3 + 1}") for bucket in (0, 1, 2)]
    # The old one polls so seldom that it never hears of anything, as a router of a release before would not.
    async with (
        router_process(dsn, **PATIENT) as router,
        router_process(dsn, **{**PATIENT, "VOLTROUTE_MAP_POLL_S": "3000"}) as old,
        running(catalog),
        posting(router.url, KINDS, 0) as seed,
        posting(old.url, KINDS, 1_000_000) as others,
    ):
        await seed.more(100)
        await start(catalog, moves, keep_s=2)
        with own.killed("shard-2"):
            with pytest.raises((ClusterError, ShardError)):
                await kinds.create(catalog, CHARGER, silently)
            async with httpx2.AsyncClient(base_url=router.url, timeout=10) as client:
                assert (await client.post("/v1/ingest/charger", json={})).status_code == 404
        await _until_done(lambda: kinds.resume(catalog, silently))
        await takes(router, CHARGER)
        async with posting(router.url, KINDS_OF_LOAD, 2_000_000) as all_three:
            await all_three.more(300)
            await ended(catalog)
            back = [PlannedMove(move.bucket, move.target, move.source) for move in moves]
            await start(catalog, back)
            await all_three.more(300)
            await ended(catalog)
            await kinds.add(catalog, "charger", EXTENSIONS["vehicle"]["driving"], silently)
            await all_three.more(100)
        await others.more(50)
        fleets = (seed, others, all_three)
    assert [fleet.refused for fleet in fleets] == [[], [], []]
    acknowledged = set().union(*(fleet.stored for fleet in fleets))
    rows = await ledger(shards, KINDS_OF_LOAD)
    assert len(rows) == len(set(rows))
    assert set(rows) == acknowledged  # each request was repeated until it was taken
    await _statuses_are_exact(shards, rows)
    assert await leftovers(cluster) == []
    assert [each for each in await check.check(catalog) if not each.ok] == []
    await catalog.close()


async def _until_done(work: Any) -> None:
    """A shard that was killed comes back by itself."""
    async with asyncio.timeout(90):
        while True:
            try:
                await work()
            except (ClusterError, ShardError, Refused):
                await asyncio.sleep(0.2)
            else:
                return


async def _statuses_are_exact(shards: dict[str, str], rows: list[Key]) -> None:
    """Of each device the newest reading, and of each value that it keeps the newest one."""
    for kind in KINDS_OF_LOAD:
        newest: dict[str, datetime] = {}
        for name, device, moment in rows:
            if name == kind.name:
                newest[device] = max(moment, newest.get(device, moment))
        assert await statuses(shards, kind, "last_updated") == newest
    for kept in CHARGER.kept:
        wanted: dict[str, datetime] = {}
        for dsn in shards.values():
            sql = f"SELECT charger_id, max(timestamp) AS at FROM {CHARGER.history} "
            sql += f"WHERE {kept.column} IS NOT NULL GROUP BY 1"
            wanted |= {row["charger_id"]: row["at"] for row in await fetch(dsn, sql)}
        found = await statuses(shards, CHARGER, kept.time_column)
        assert {device: at for device, at in found.items() if at is not None} == wanted


LONG = [pytest.param(step, marks=pytest.mark.long) for step in ("after claim", "before leaf", "before detach")]


@pytest.mark.parametrize("step", ["after prepare", "after pass", "inside fence", "after fence", *LONG])
async def test_a_change_of_kinds_in_the_middle_of_a_move(servers: list[str], step: str) -> None:
    """Whatever a move is doing: it goes on with what both sides have, and carries what is written from then on."""
    async with new_cluster(servers, shards=3, buckets=4) as cluster:
        catalog, changed = Catalog(cluster.catalog_dsn), asyncio.Event()

        async def change() -> None:
            await kinds.create(catalog, CHARGER, silently)
            # A name that could be taken for the status of the other one.
            odd = replace(
                CHARGER, name="status_charger", id_name="oddId", id_column="odd_id", path="odd", plural="odds"
            )
            await kinds.create(catalog, odd, silently)
            await kinds.add(catalog, "meter", EXTENSIONS["meter"]["grid"], silently)

        async def begin(_move: Move) -> None:
            if not changing:
                changing.append(asyncio.create_task(change()))
                # Where the move holds what the change needs, the change waits for it.
                await asyncio.wait(changing, timeout=1.0)

        changing: list[asyncio.Task[None]] = []
        async with router_process(cluster.catalog_dsn, **PATIENT) as router, posting(router.url, KINDS, 0) as fleet:
            await fleet.more(50)
            async with running(catalog, Steps(at={step: begin})):
                await start(catalog, [PlannedMove(0, "s1", "s2")], keep_s=1)
                await reached(catalog, Phase.DONE)
                await asyncio.gather(*changing)
                changed.set()
                await takes(router, CHARGER)
                async with posting(router.url, KINDS_OF_LOAD, 2_000_000) as after:
                    await after.more(60)
                    await ended(catalog)
                    await start(catalog, [PlannedMove(0, "s2", "s3")])
                    assert await ended(catalog) == "done"
                    await after.more(20)
        assert (fleet.refused, after.refused) == ([], [])
        rows = await ledger(cluster.shards, KINDS_OF_LOAD)
        assert set(rows) == fleet.stored | after.stored
        assert len(rows) == len(set(rows))
        await _statuses_are_exact(cluster.shards, rows)
        assert [each for each in await check.check(catalog) if not each.ok] == []
        await catalog.close()
