"""The crash matrix: runner, source, target and catalog are killed at every committed step of a move, under load."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.moves import rebalances
from shards.moves.phases import Move, Phase
from shards.moves.placement import PlannedMove
from shards.operations import check as invariants
from tests.support.ledger import execute, fetch, statuses, stored
from tests.support.load import Recorder
from tests.support.moving import Steps, ended, leftovers, reached, running, start
from tests.support.processes import Breakable, breakable
from tests.support.routers import router_process
from tests.support.servers import TestCluster, new_cluster

BUCKETS = 4
STEPS = [
    "before claim", "after claim", "before prepare", "after prepare", "after entering backfill", "before leaf",
    "after leaf", "before entering catchup", "after entering catchup", "before pass", "after pass", "after mark",
    "before entering verify", "after entering verify", "before entering fence", "after entering fence", "inside fence",
    "after fence", "before entering cutover", "after entering cutover", "before adopt", "after adopt", "after cutover",
    "after dropping", "before detach", "after detach", "after drop", "after forget", "before entering done",
    "after entering done",
]  # fmt: skip
STEPS_OF_ABORT = ["before give up", "after give up", "after drop", "after forget", "before entering aborted"]
STEPS_OF_ROLLBACK = ["after reverse fence", "before return", "after return", "before detach", "after drop"]
PHASES = ["after claim", "before leaf", "after pass", "inside fence", "after fence", "after adopt", "after dropping"]


@dataclass
class Loaded:
    """A cluster under load, and what its router acknowledged."""

    cluster: TestCluster
    catalog: Catalog
    recorder: Recorder

    async def owner(self, bucket: int) -> str:
        sql = "SELECT s.name FROM bucket_map JOIN shard AS s USING (shard_id) WHERE bucket = $1"
        return str((await fetch(self.cluster.catalog_dsn, sql, bucket))[0]["name"])

    async def next_move(self, bucket: int = 0) -> PlannedMove:
        source = await self.owner(bucket)
        names = list(self.cluster.shards)
        return PlannedMove(bucket, source, names[(names.index(source) + 1) % len(names)])

    async def one_writer(self) -> None:
        """Whatever was interrupted: never two shards that accept writes of one bucket."""
        rules = await invariants.check(self.catalog)
        assert [rule for rule in rules if not rule.ok and rule.name.startswith("at most one")] == []

    async def whole(self) -> None:
        assert await leftovers(self.cluster) == []
        assert [rule for rule in await invariants.check(self.catalog) if not rule.ok] == []

    async def nothing_lost(self) -> None:
        rows = [(device, moment) for _, device, moment in await stored(self.cluster.shards)]
        assert len(rows) == len(set(rows))
        assert self.recorder.acknowledged <= set(rows)
        newest = dict(sorted(rows))  # of a device's readings the last one stays
        assert await statuses(self.cluster.shards) == newest


@asynccontextmanager
async def loaded(cluster: TestCluster) -> AsyncIterator[Loaded]:
    """Load from before the block to its end, through a router that runs no moves; then nothing may be lost."""
    catalog, recorder, until = Catalog(cluster.catalog_dsn), Recorder(), asyncio.Event()
    async with router_process(cluster.catalog_dsn, VOLTROUTE_RUNNER="false", VOLTROUTE_LOG_LEVEL="error") as router:
        load = asyncio.create_task(recorder.run(router.url, until, workers=2))
        await recorder.more(100)
        under = Loaded(cluster, catalog, recorder)
        try:
            yield under
            await recorder.more(20)
        finally:
            until.set()
            await load
        await under.nothing_lost()
        await catalog.close()


async def crash(dsn: str, step: str) -> int:
    """Run a runner that kills itself at `step`; how its process ended."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.support.crashing", dsn, step)
    async with asyncio.timeout(60):
        return await process.wait()


@pytest.mark.timeout(400)
async def test_a_runner_killed_at_any_step_is_replaced_and_nothing_is_lost(servers: list[str]) -> None:
    """Several clusters at once, because most of the time goes by waiting for processes."""
    await asyncio.gather(*(kill_at(servers, STEPS[part::3]) for part in range(3)))


async def kill_at(servers: list[str], steps: list[str]) -> None:
    async with new_cluster(servers, shards=3, buckets=BUCKETS) as cluster, loaded(cluster) as under:
        for step in steps:
            move = await under.next_move()
            await start(under.catalog, [move])
            assert await crash(cluster.catalog_dsn, step) == -signal.SIGKILL, step
            await under.one_writer()
            async with running(under.catalog):
                assert await ended(under.catalog) == "done", step
            assert await under.owner(0) == move.target, step
            await under.whole()
        assert set(under.recorder.statuses) == {200}


@pytest.mark.timeout(400)
async def test_a_runner_killed_while_undoing_leaves_nothing(servers: list[str]) -> None:
    await asyncio.gather(kill_giving_up(servers), kill_rolling_back(servers))


async def kill_giving_up(servers: list[str]) -> None:
    async with new_cluster(servers, shards=3, buckets=BUCKETS) as cluster, loaded(cluster) as under:
        for step in STEPS_OF_ABORT:
            move = await under.next_move()
            number = await start(under.catalog, [move])
            assert await crash(cluster.catalog_dsn, "after entering catchup") == -signal.SIGKILL
            assert await rebalances.abort(under.catalog, number, "cancelled", deadline_in(5)) == 1
            assert await crash(cluster.catalog_dsn, step) == -signal.SIGKILL, step
            async with running(under.catalog):
                assert await ended(under.catalog) == "cancelled", step
            assert await under.owner(0) == move.source
            await under.whole()


async def kill_rolling_back(servers: list[str]) -> None:
    async with new_cluster(servers, shards=3, buckets=BUCKETS) as cluster, loaded(cluster) as under:
        for step in STEPS_OF_ROLLBACK:
            move = await under.next_move()
            await start(under.catalog, [move], keep_s=3600)
            async with running(under.catalog):
                await reached(under.catalog, Phase.CLEANUP)
            await under.recorder.more(20)
            assert await rebalances.roll_back(under.catalog, None, deadline_in(5)) == 1
            await execute(cluster.catalog_dsn, "UPDATE rebalance SET keep_s = 0")
            assert await crash(cluster.catalog_dsn, step) == -signal.SIGKILL, step
            await under.one_writer()
            async with running(under.catalog):
                assert await ended(under.catalog) == "cancelled", step
            assert await under.owner(0) == move.source
            await under.whole()


def as_test_cluster(own: Breakable) -> TestCluster:
    state = own.cluster.state
    return TestCluster(own.cluster.catalog_dsn, state.shard_dsns(), state.bucket_count)


@pytest.mark.timeout(400)
async def test_a_server_killed_in_any_phase_is_waited_for() -> None:
    """The server comes back after a second; the move goes on, and what was acknowledged is there."""
    await asyncio.gather(*map(kill_in_every_phase, ("source", "target", "catalog")))


async def kill_in_every_phase(victim: str) -> None:
    async with breakable(shards=3, buckets=BUCKETS, durable=True) as own, loaded(as_test_cluster(own)) as under:
        for phase in PHASES:
            move = await under.next_move()
            server = {"source": move.source, "target": move.target, "catalog": "catalog"}[victim]
            killed: list[str] = []

            async def kill(_move: Move, server: str = server, killed: list[str] = killed) -> None:
                if not killed:
                    killed.append(server)
                    own.server(server).kill()

            steps = Steps(at={phase: kill})
            async with running(under.catalog, steps):
                await start_patiently(under.catalog, move)
                assert await ended_patiently(under.catalog) == "done", (victim, phase, steps.errors)
            assert killed == [server]
            assert await under.owner(0) == move.target
            await under.whole()


async def start_patiently(catalog: Catalog, move: PlannedMove) -> None:
    """Start when the catalog is there (it may have been killed a moment ago)."""
    async with asyncio.timeout(30):
        while True:
            try:
                await start(catalog, [move])
            except Exception:  # noqa: BLE001 - whatever a server that is starting says
                await asyncio.sleep(0.1)
            else:
                return


async def ended_patiently(catalog: Catalog) -> str:
    async with asyncio.timeout(90):
        while True:
            try:
                return await ended(catalog)
            except Exception as error:
                if isinstance(error, TimeoutError):
                    raise
                await asyncio.sleep(0.1)
