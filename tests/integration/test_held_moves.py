"""States that nobody foresaw: never guessed, never dropped; held for an operator, with a way out that loses nothing."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio

from shards.clock import deadline_in
from shards.moves import rebalances
from shards.moves.phases import Move, Phase
from shards.moves.placement import PlannedMove
from shards.operations import check
from tests.support.commands import Finished, run_command
from tests.support.ledger import execute, fetch, statuses
from tests.support.moving import Steps, ended, leftovers, owner_of, reached, running, start
from tests.support.moving_cluster import TO_S2, Moving, moving_cluster
from tests.support.readings import ingest, meter


@pytest_asyncio.fixture
async def moving(servers: list[str]) -> AsyncIterator[Moving]:
    async with moving_cluster(servers) as made:
        yield made


async def held(moving: Moving, timeout_s: float = 30) -> dict[str, Any]:
    """The move that waits for an operator."""
    async with asyncio.timeout(timeout_s):
        while True:
            found = await rebalances.latest(moving.catalog, deadline_in(5))
            assert found is not None
            waiting = [move for move in found[1] if move["held"]]
            if waiting:
                return waiting[0]
            await asyncio.sleep(0.02)


async def ops(moving: Moving, *arguments: object, code: int = 0) -> Finished:
    done = await run_command(*arguments, env={"VOLTROUTE_CATALOG_DSN": moving.cluster.catalog_dsn})
    assert done.code == code, (arguments, done.out, done.err)
    return done


async def lost_fence(moving: Moving) -> set[tuple[str, datetime]]:
    """After the cutover the source comes back without its fence's commit, and takes a reading of its own.

    As a replica that was promoted, or a backup that was restored.
    """
    source = moving.cluster.shards["s1"]
    await execute(source, "UPDATE bucket_move SET state = 'copying', fenced_at = NULL")
    for table in await fetch(source, "SELECT name FROM move_table"):
        await execute(source, f"DROP TRIGGER fence ON {table['name']}")
    stray = datetime(2026, 5, 3, tzinfo=UTC)
    insert = (
        "INSERT INTO meter_telemetry_history (timestamp, kwh_consumed_ac, voltage, bucket, meter_id)"
        " VALUES ($1, 1, 230, 0, 'ONLY-ON-THE-OLD-OWNER')"
    )
    await execute(source, insert, stray)
    return {("ONLY-ON-THE-OLD-OWNER", stray)}


@pytest.mark.parametrize("step", ["after adopt", "after cutover"])
async def test_a_source_without_its_fence_is_held_and_resolved_without_loss(moving: Moving, step: str) -> None:
    """In `cutover` and in `cleanup`: at ae7a8c6 the one raised Replaced for ever, the other dropped the source."""
    stray: set[tuple[str, datetime]] = set()

    async def lose(_move: Move) -> None:
        made = await lost_fence(moving)
        await execute(moving.cluster.catalog_dsn, "UPDATE rebalance SET keep_s = 0")
        stray.update(made)
        await asyncio.Event().wait()  # until this runner is gone; the next one finds it so

    before = set(await moving.keys())
    async with running(moving.catalog, Steps(at={step: lose})):
        await start(moving.catalog, [TO_S2], keep_s=3600)
        async with asyncio.timeout(30):
            while not stray:
                await asyncio.sleep(0.02)
    async with running(moving.catalog):
        move = await held(moving)
        assert "s1" in move["held"]
        assert "copying" in move["held"]
        broken = {rule.name: rule.found for rule in await check.check(moving.catalog) if not rule.ok}
        assert "s1: copying, takes writes" in broken["no move waits for an operator"]
        verified = await ops(moving, "rebalance", "verify", code=1)
        assert "1 readings only on s1" in verified.out
        assert f"voltroute rebalance resolve {move['move_id']}" in verified.out
        await ops(moving, "rebalance", "resolve", move["move_id"], "--keep", "target")
        assert await ended(moving.catalog) in {"done", "failed"}
    assert set(await moving.keys()) == before | stray
    assert await owner_of(moving.cluster, 0) == "s2"
    assert (await ingest(moving.client, meter(moving.device(0), 60)))["accepted"] == 1
    await moving.whole()


async def test_readings_that_differ_are_shown_and_kept_until_somebody_decides(moving: Moving) -> None:
    async with running(moving.catalog):
        await start(moving.catalog, [TO_S2], keep_s=3600)
        await reached(moving.catalog, Phase.CLEANUP)
        await execute(
            moving.cluster.shards["s2"],
            "UPDATE meter_telemetry_history SET voltage = 1 WHERE bucket = 0 AND meter_id = $1",
            moving.device(0),
        )
        await execute(moving.cluster.catalog_dsn, "UPDATE rebalance SET keep_s = 0")
        move = await held(moving)
        assert move["held"] == "verification failed: 0 readings only on s1, 0 only on s2, 3 differ"
        await ops(moving, "rebalance", "resolve", move["move_id"], "--keep", "source")
        move = await held(moving)
        assert "3 differ: nothing was dropped; --accept-differences keeps those of s1" in move["held"]
        await ops(moving, "rebalance", "resolve", move["move_id"], "--keep", "source", "--accept-differences")
        await ended(moving.catalog)
    assert await owner_of(moving.cluster, 0) == "s1"
    rows = await fetch(
        moving.cluster.shards["s1"], "SELECT DISTINCT voltage FROM meter_telemetry_history WHERE bucket = 0"
    )
    assert [row["voltage"] for row in rows] == [230.0]
    await moving.whole()


async def test_what_the_new_owner_lacks_is_carried_before_the_old_copy_goes(moving: Moving) -> None:
    """A promoted target without its last commits: the copy that is kept makes it whole again."""
    before, newest = await moving.keys(), await statuses(moving.cluster.shards)
    async with running(moving.catalog):
        await start(moving.catalog, [TO_S2], keep_s=3600)
        await reached(moving.catalog, Phase.CLEANUP)
        lose = "DELETE FROM meter_telemetry_history WHERE bucket = 0 AND timestamp > '2026-05-01T00:01:30Z'"
        await execute(moving.cluster.shards["s2"], lose)
        await execute(moving.cluster.shards["s2"], "DELETE FROM meter_current_status WHERE bucket = 0")
        await execute(moving.cluster.catalog_dsn, "UPDATE rebalance SET keep_s = 0")
        assert await ended(moving.catalog) == "done"
    found = await rebalances.latest(moving.catalog, deadline_in(5))
    assert found is not None
    assert found[1][0]["healed"] > 0
    assert await moving.keys() == before
    assert await statuses(moving.cluster.shards) == newest
    await moving.whole()


async def test_a_default_partition_on_the_target_is_refused_before_anything_happens(moving: Moving) -> None:
    target = moving.cluster.shards["s2"]
    await execute(target, "CREATE TABLE by_hand PARTITION OF meter_telemetry_history DEFAULT")
    insert = (
        "INSERT INTO by_hand (timestamp, kwh_consumed_ac, voltage, bucket, meter_id)"
        " VALUES ('2026-05-02T00:00Z', 1, 230, 0, 'STRAY')"
    )
    await execute(target, insert)
    async with running(moving.catalog):
        await start(moving.catalog, [TO_S2])
        assert await ended(moving.catalog) == "failed"
    found = await rebalances.latest(moving.catalog, deadline_in(5))
    assert found is not None
    assert "by_hand is attached to meter_telemetry_history DEFAULT" in found[1][0]["last_error"]
    shown = await ops(moving, "check", code=1)
    assert "by_hand is attached to meter_telemetry_history DEFAULT on s2" in shown.out
    assert "by_hand is attached" in (await ops(moving, "doctor", code=1)).out
    assert (await ingest(moving.client, meter(moving.device(0), 70)))["accepted"] == 1
    assert await leftovers(moving.cluster) == []


async def test_a_default_partition_that_comes_in_the_middle_strands_no_bucket(moving: Moving) -> None:
    """The target cannot attach: the source opens again by itself, and the move is given up."""

    async def interfere(_move: Move) -> None:
        target = moving.cluster.shards["s2"]
        await execute(target, "CREATE TABLE by_hand PARTITION OF meter_telemetry_history DEFAULT")
        insert = (
            "INSERT INTO by_hand (timestamp, kwh_consumed_ac, voltage, bucket, meter_id)"
            " VALUES ('2026-05-02T00:00Z', 1, 230, 0, 'STRAY')"
        )
        await execute(target, insert)

    before = await moving.keys()
    async with running(moving.catalog, Steps(at={"before adopt": interfere})):
        await start(moving.catalog, [TO_S2])
        assert await ended(moving.catalog) == "failed"
    found = await rebalances.latest(moving.catalog, deadline_in(5))
    assert found is not None
    assert found[1][0]["phase"] == "aborted"
    assert "s2 cannot attach bucket 0" in found[1][0]["last_error"]
    assert (await ingest(moving.client, meter(moving.device(0), 80)))["accepted"] == 1
    assert [key for key in await moving.keys() if key in before] == before
    assert await owner_of(moving.cluster, 0) == "s1"
    await execute(moving.cluster.shards["s2"], "DROP TABLE by_hand")
    await moving.whole()


async def test_a_rebalance_whose_shard_is_gone_for_good_can_be_ended(moving: Moving) -> None:
    arrived = asyncio.Event()

    async def vanish(_move: Move) -> None:
        change = "UPDATE shard SET owner_dsn = replace(owner_dsn, '127.0.0.1', '127.0.0.9') WHERE name = 's2'"
        await execute(moving.cluster.catalog_dsn, change)
        arrived.set()
        await asyncio.Event().wait()

    async with running(moving.catalog, Steps(at={"after entering catchup": vanish})):
        number = await start(moving.catalog, [TO_S2])
        await asyncio.wait_for(arrived.wait(), 30)
    move = (await rebalances.open_moves(moving.catalog, deadline_in(5)))[0]
    async with running(moving.catalog):
        await ops(moving, "rebalance", "cancel")
        await ops(moving, "rebalance", "resolve", move.move_id, "--keep", "source", "--other-is-gone")
        await ended(moving.catalog)
    assert number == 1
    assert (await ingest(moving.client, meter(moving.device(0), 90)))["accepted"] == 1
    assert await fetch(moving.cluster.shards["s1"], "SELECT 1 FROM bucket_move") == []


async def test_membership_and_rebalances_take_turns(moving: Moving) -> None:
    """A shard is not removed beside the start of a rebalance that needs it: at ae7a8c6 nothing could end that."""
    async with moving.catalog.membership(deadline_in(30)) as connection:
        refused = await ops(moving, "shard", "remove", "s3", code=3)
        assert "another command is changing the cluster's shards" in refused.err
        await connection.execute("SELECT 1")
    assert "owns" in (await ops(moving, "shard", "remove", "s3", code=3)).err
    vanished = [PlannedMove(0, "s1", "nowhere")]
    with pytest.raises(Exception, match="does not fit the shard map"):
        await start(moving.catalog, vanished)


@pytest.mark.parametrize("keep", ["source", "target"])
async def test_a_catalog_of_yesterday_is_told_what_the_shards_remember(moving: Moving, keep: str) -> None:
    """Restored from a backup made before the move: the map names the old owner, which is fenced."""
    async with running(moving.catalog):
        await start(moving.catalog, [TO_S2], keep_s=3600)
        await reached(moving.catalog, Phase.CLEANUP)
        await ingest(moving.client, meter(moving.device(0), 30))
        before = await moving.keys()
    for statement in (
        "DELETE FROM move",
        "DELETE FROM rebalance",
        "ALTER TABLE move ALTER COLUMN move_id RESTART",
        "UPDATE bucket_map SET shard_id = (SELECT shard_id FROM shard WHERE name = 's1') WHERE bucket = 0",
        "UPDATE runner SET generation = 1",
    ):
        await execute(moving.cluster.catalog_dsn, statement)
    broken = {rule.name: rule.found for rule in await check.check(moving.catalog) if not rule.ok}
    assert "record of move 1 on s1" in broken["no fence or record without a move"]
    shown = (await ops(moving, "rebalance", "recover")).out
    assert "move 1 of bucket 0, s1 -> s2" in shown
    assert "s1 is fenced as its source; s2 is attached as its target" in shown
    assert "the new owner has everything" in (await ops(moving, "rebalance", "verify")).out
    await execute(moving.cluster.catalog_dsn, "UPDATE rebalance SET keep_s = 0")
    async with running(moving.catalog):
        await ops(moving, "rebalance", "resolve", 1, "--keep", keep)
        await ended(moving.catalog)
    assert await moving.keys() == sorted(set(before))
    assert await owner_of(moving.cluster, 0) == {"source": "s1", "target": "s2"}[keep]
    await moving.whole()
    assert "no shard remembers anything" in (await ops(moving, "rebalance", "recover")).out
    async with running(moving.catalog):
        await start(moving.catalog, [PlannedMove(3, "s1", "s2")])  # its number is one that no shard has seen
        assert await ended(moving.catalog) == "done"


async def test_a_rollback_that_comes_too_late_says_so(moving: Moving) -> None:
    """Asked for when the old copy has just gone: the move ends as done."""

    asked: list[int] = []

    async def ask(_move: Move) -> None:
        if not asked:
            asked.append(await rebalances.roll_back(moving.catalog, None, deadline_in(5)))

    async with running(moving.catalog, Steps(at={"after forget": ask})):
        await start(moving.catalog, [TO_S2])
        assert await ended(moving.catalog) == "done"
    assert asked == [1]
    assert await owner_of(moving.cluster, 0) == "s2"
    await moving.whole()


async def test_nobody_is_shut_for_a_keeper_that_has_nothing(moving: Moving) -> None:
    """The target has no tables yet: it cannot keep the bucket, and the source goes on taking writes."""
    arrived = asyncio.Event()

    async def wait(_move: Move) -> None:
        arrived.set()
        await asyncio.Event().wait()

    async with running(moving.catalog, Steps(at={"before prepare": wait})):
        await start(moving.catalog, [TO_S2])
        await asyncio.wait_for(arrived.wait(), 30)
    (move,) = await rebalances.open_moves(moving.catalog, deadline_in(5))
    await ops(moving, "rebalance", "resolve", move.move_id, "--keep", "target")
    async with running(moving.catalog):
        found = await held(moving)
        assert "s2 has no tables of bucket 0: keep the source" in found["held"]
        assert (await ingest(moving.client, meter(moving.device(0), 40)))["accepted"] == 1
        await ops(moving, "rebalance", "resolve", move.move_id, "--keep", "source")
        await ended(moving.catalog)
    assert await owner_of(moving.cluster, 0) == "s1"
    assert (await ingest(moving.client, meter(moving.device(0), 41)))["accepted"] == 1
    await moving.whole()


async def test_a_catalog_that_forgot_a_finished_move_follows_the_shard_that_has_the_bucket(moving: Moving) -> None:
    async with running(moving.catalog):
        await start(moving.catalog, [TO_S2])
        assert await ended(moving.catalog) == "done"
    await ingest(moving.client, meter(moving.device(0), 30))
    before = await moving.keys()
    yesterday = "UPDATE bucket_map SET shard_id = (SELECT shard_id FROM shard WHERE name = 's1') WHERE bucket = 0"
    await execute(moving.cluster.catalog_dsn, yesterday)
    assert "bucket 0 is on s2 alone: the map says so again" in (await ops(moving, "rebalance", "recover")).out
    assert await owner_of(moving.cluster, 0) == "s2"
    await ingest(moving.client, meter(moving.device(0), 31))
    assert len(await moving.keys()) == len(before) + 1
    await moving.whole()


async def test_a_source_that_is_opened_while_the_target_attaches_is_held(moving: Moving) -> None:
    """By the runner that attached: later on nobody would look at the source before its copy is due to be dropped."""
    stray: set[tuple[str, datetime]] = set()

    async def lose(_move: Move) -> None:
        stray.update(await lost_fence(moving))

    before = set(await moving.keys())
    async with running(moving.catalog, Steps(at={"after adopt": lose})):
        await start(moving.catalog, [TO_S2])
        move = await held(moving)
        assert (move["phase"], move["held"]) == ("cutover", "s1 was opened by hand while s2 attached bucket 0")
        await ops(moving, "rebalance", "resolve", move["move_id"], "--keep", "target")
        await ended(moving.catalog)
    assert set(await moving.keys()) == before | stray
    assert await owner_of(moving.cluster, 0) == "s2"
    await moving.whole()
