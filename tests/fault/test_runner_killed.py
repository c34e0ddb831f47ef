"""The crash matrix: runners are killed, or paused and replaced, at every committed step of a move, under load."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest

from shards.clock import deadline_in
from shards.moves import rebalances
from shards.moves.phases import Phase
from shards.moves.placement import PlannedMove
from tests.support.ledger import execute
from tests.support.loaded import Loaded, loaded
from tests.support.moving import ended, reached, running, start
from tests.support.processes import eventually
from tests.support.servers import new_cluster

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
STEPS_OF_ROLLBACK = [
    "after reverse fence", "before return", "after return", "after dropping", "before detach", "after drop",
]  # fmt: skip
# Those at which something that a later move has could be harmed; the others take `make test-fault`.
OFTEN = {"inside fence", "after fence", "before adopt", "after dropping", "before detach", "after detach"}


def steps_of(steps: list[str]) -> list[object]:
    """Every step a test of its own; those that rarely matter are long proofs."""
    return [step if step in OFTEN else pytest.param(step, marks=pytest.mark.long) for step in steps]


@asynccontextmanager
async def crash(dsn: str, how: str, step: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A runner that was killed or stopped at `step`; it is gone at the end of the block."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.support.crashing", dsn, how, step)
    try:
        if how == "kill":
            async with asyncio.timeout(60):
                assert await process.wait() == -signal.SIGKILL, step
        else:
            await eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def move_on(under: Loaded, move: PlannedMove, *, state: str = "done") -> None:
    async with running(under.catalog):
        assert await ended(under.catalog) == state
    assert await under.owner(0) == (move.target if state == "done" else move.source)


@pytest.mark.parametrize("step", steps_of(STEPS))
async def test_a_runner_killed_at_any_step_is_replaced_and_nothing_is_lost(servers: list[str], step: str) -> None:
    async with new_cluster(servers, shards=3, buckets=BUCKETS) as cluster, loaded(cluster) as under:
        move = await under.next_move()
        await start(under.catalog, [move])
        async with crash(cluster.catalog_dsn, "kill", step):
            await under.one_writer()
        await move_on(under, move)
        await under.whole()
        assert set(under.recorder.statuses) == {200}


@pytest.mark.parametrize("step", steps_of(STEPS))
async def test_a_runner_paused_at_any_step_harms_nothing_when_it_wakes(servers: list[str], step: str) -> None:
    """It is replaced, its move ends, the bucket moves back and takes new readings; then it goes on where it stood."""
    async with new_cluster(servers, shards=3, buckets=BUCKETS) as cluster, loaded(cluster) as under:
        move = await under.next_move()
        await start(under.catalog, [move])
        async with crash(cluster.catalog_dsn, "stop", step) as paused:
            await move_on(under, move)
            back = PlannedMove(0, move.target, move.source)
            await start(under.catalog, [back])
            await move_on(under, back)
            await under.recorder.more(100)
            paused.send_signal(signal.SIGCONT)
            async with asyncio.timeout(60):
                assert await paused.wait() == 0
        await under.recorder.more(100)
        await under.whole()


@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("step", steps_of(STEPS_OF_ABORT))
async def test_a_runner_ended_while_giving_up_leaves_nothing(servers: list[str], step: str, how: str) -> None:
    async with new_cluster(servers, shards=3, buckets=BUCKETS) as cluster, loaded(cluster) as under:
        move = await under.next_move()
        number = await start(under.catalog, [move])
        async with crash(cluster.catalog_dsn, "kill", "after entering catchup"):
            assert await rebalances.abort(under.catalog, number, "cancelled", deadline_in(5)) == 1
        async with crash(cluster.catalog_dsn, how, step) as process:
            await move_on(under, move, state="cancelled")
            await start(under.catalog, [move])
            await move_on(under, move)
            await wake(process, how)
        await under.whole()


@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("step", steps_of(STEPS_OF_ROLLBACK))
async def test_a_runner_ended_while_rolling_back_loses_nothing(servers: list[str], step: str, how: str) -> None:
    async with new_cluster(servers, shards=3, buckets=BUCKETS) as cluster, loaded(cluster) as under:
        move = await under.next_move()
        await start(under.catalog, [move], keep_s=3600)
        async with running(under.catalog):
            await reached(under.catalog, Phase.CLEANUP)
        await under.recorder.more(20)
        assert await rebalances.roll_back(under.catalog, None, deadline_in(5)) == 1
        await execute(cluster.catalog_dsn, "UPDATE rebalance SET keep_s = 0")
        async with crash(cluster.catalog_dsn, how, step) as process:
            await under.one_writer()
            await move_on(under, move, state="cancelled")
            await start(under.catalog, [move])
            await move_on(under, move)
            await wake(process, how)
        await under.whole()


async def wake(process: asyncio.subprocess.Process, how: str) -> None:
    """Let a paused runner go on, until it has noticed that it was replaced."""
    if how == "stop":
        process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(60):
            assert await process.wait() == 0
