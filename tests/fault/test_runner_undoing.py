"""The crash matrix of giving up and of rolling back: runners are killed, or paused and replaced, at every step."""

import pytest

from shards.clock import deadline_in
from shards.moves import rebalances
from shards.moves.phases import Phase
from tests.support.crash_matrix import BUCKETS, STEPS_OF_ABORT, STEPS_OF_ROLLBACK, crash, move_on, steps_of, wake
from tests.support.ledger import execute
from tests.support.loaded import loaded
from tests.support.moving import reached, running, start
from tests.support.servers import new_cluster


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
