"""Source, target and catalog are killed in every phase of a move, under load: the move goes on."""

import asyncio

import pytest

from shards.catalog.database import Catalog
from shards.moves.phases import Move
from shards.moves.placement import PlannedMove
from tests.support.loaded import loaded
from tests.support.moving import Steps, ended, running, start
from tests.support.processes import Breakable, breakable
from tests.support.servers import TestCluster

BUCKETS = 4
PHASES = ["after claim", "before leaf", "after pass", "inside fence", "after fence", "after adopt", "after dropping"]


def as_test_cluster(own: Breakable) -> TestCluster:
    state = own.cluster.state
    return TestCluster(own.cluster.catalog_dsn, state.shard_dsns(), state.bucket_count)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("victim", ["source", "target", "catalog"])
async def test_a_server_killed_in_any_phase_is_waited_for(victim: str) -> None:
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
