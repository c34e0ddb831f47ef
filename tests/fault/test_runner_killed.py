"""The crash matrix: a runner is killed at every committed step of a move, under load, and replaced."""

import pytest

from tests.support.crash_matrix import BUCKETS, STEPS, crash, move_on, steps_of
from tests.support.loaded import loaded
from tests.support.moving import start
from tests.support.servers import new_cluster


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
