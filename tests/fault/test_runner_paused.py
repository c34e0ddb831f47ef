"""The crash matrix: a runner is paused at every committed step of a move, replaced, and woken when others went on."""

import asyncio
import signal

import pytest

from shards.moves.placement import PlannedMove
from tests.support.crash_matrix import BUCKETS, STEPS, crash, move_on, steps_of
from tests.support.loaded import loaded
from tests.support.moving import start
from tests.support.servers import new_cluster


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
