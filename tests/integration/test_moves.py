"""Moves of buckets with data: what arrives, what is left, and everything that may happen meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from shards.catalog import lease
from shards.clock import deadline_in
from shards.kinds import KINDS
from shards.moves import fingerprints, rebalances
from shards.moves.phases import Move, Phase, RebalanceState
from shards.moves.placement import PlannedMove
from shards.operations import check as invariants
from shards.storage.partitions import month_of, next_month
from tests.support.ledger import execute, fetch, statuses, stored
from tests.support.moving import Steps, ended, fingerprint, owner_of, reached, running, start
from tests.support.moving_cluster import TO_S2, Moving, moving_cluster
from tests.support.readings import ingest, meter

EVERYTHING = "/v1/analytics/fleet?from=2000-01-01T00:00:00Z"


@pytest_asyncio.fixture
async def moving(servers: list[str]) -> AsyncIterator[Moving]:
    async with moving_cluster(servers) as made:
        yield made


async def test_buckets_move_with_everything_in_them(moving: Moving) -> None:
    before, newest = await moving.keys(), await statuses(moving.cluster.shards)
    steps = Steps()
    async with running(moving.catalog, steps):
        await start(moving.catalog, [TO_S2, PlannedMove(2, "s3", "s1"), PlannedMove(3, "s1", "s3")])
        assert await ended(moving.catalog) == "done"
    assert steps.errors == []
    assert [await owner_of(moving.cluster, bucket) for bucket in (0, 2, 3)] == ["s2", "s1", "s3"]
    assert await moving.keys() == before
    assert await statuses(moving.cluster.shards) == newest
    await moving.whole()
    device = moving.device(0)
    answer = await ingest(moving.client, [meter(device, 3), meter(device, 4)])
    assert (answer["accepted"], answer["duplicates"]) == (1, 1)
    fleet = (await moving.client.get(EVERYTHING)).json()
    assert (fleet["isPartial"], fleet["dataPoints"], fleet["meterDataPoints"]) == (False, 180, 181)
    details = await reached(moving.catalog, Phase.DONE)
    assert sum(move["rows_verified"] for move in details) == sum(move["rows_done"] for move in details)
    assert all(move["pause_ms"] > 0 for move in details)
    status = (await moving.client.get("/v1/rebalance")).json()
    assert (status["rebalance"]["state"], len(status["moves"])) == ("done", 3)


async def test_the_same_bucket_there_and_back(moving: Moving) -> None:
    before = await moving.keys()
    async with running(moving.catalog):
        for source, target in (("s1", "s2"), ("s2", "s3"), ("s3", "s1")):
            await start(moving.catalog, [PlannedMove(0, source, target)])
            assert await ended(moving.catalog) == "done"
    assert await moving.keys() == before
    await moving.whole()


async def test_a_transaction_that_is_open_across_the_fence_loses_nothing(moving: Moving) -> None:
    """A writer that began before everything and commits late: the fence waits for it, and its reading is carried."""
    writer = next(r for r in await moving.catalog.shards(deadline_in(5)) if r.name == "s1").writer_dsn
    connection = await asyncpg.connect(writer)
    transaction = connection.transaction()
    await transaction.start()
    insert = (
        "INSERT INTO meter_telemetry_history (timestamp, kwh_consumed_ac, voltage, bucket, meter_id)"
        " VALUES ('2026-05-02T00:00Z', 1, 230, 0, 'LATE-COMMIT')"
    )
    waiting = asyncio.Event()

    async def meet(_move: Move) -> None:
        waiting.set()

    steps = Steps(at={"after entering fence": meet})
    async with running(moving.catalog, steps):
        await start(moving.catalog, [TO_S2])
        await connection.execute(insert)
        await asyncio.wait_for(waiting.wait(), 30)
        async with asyncio.timeout(30):
            while not steps.errors:  # the fence gave up waiting at least once, and let the other writers go on
                await asyncio.sleep(0.01)
        answer = await ingest(moving.client, meter(moving.device(0), 9))
        assert answer["accepted"] == 1
        await transaction.commit()
        assert await ended(moving.catalog) == "done"
    await connection.close()
    assert ("s2", "LATE-COMMIT") in {(shard, device) for shard, device, _ in await stored(moving.cluster.shards)}
    assert all("lock timeout" in error for error in steps.errors), steps.errors
    await moving.whole()


@pytest.mark.parametrize("step", ["after entering catchup", "after entering fence"])
async def test_late_readings_and_a_new_month_in_the_middle_of_a_move(moving: Moving, step: str) -> None:
    """After the backfill: a reading into an old month, one into a month that has no partition yet."""
    device = moving.device(0)
    future = month_of(datetime.now(UTC))
    for _ in range(4):
        future = next_month(future)

    async def write(_move: Move) -> None:
        old = {**meter(device), "timestamp": "2019-03-01T00:00:00Z"}
        assert (await ingest(moving.client, old))["accepted"] == 1
        made = await fetch(moving.cluster.shards["s1"], "SELECT ensure_leaves(0::smallint, $1::date[])", [future])
        assert made[0][0] == 2
        insert = (
            "INSERT INTO meter_telemetry_history (timestamp, kwh_consumed_ac, voltage, bucket, meter_id)"
            " VALUES ($1, 1, 230, 0, 'NEXT-MONTH')"
        )
        await execute(moving.cluster.shards["s1"], insert, datetime(future.year, future.month, 2, tzinfo=UTC))

    before = set(await moving.keys())
    async with running(moving.catalog, Steps(at={step: write})):
        await start(moving.catalog, [TO_S2])
        assert await ended(moving.catalog) == "done"
    new = {(name, moment.year) for name, moment in set(await moving.keys()) - before}
    assert new == {(device, 2019), ("NEXT-MONTH", future.year)}
    assert await owner_of(moving.cluster, 0) == "s2"
    await moving.whole()


async def test_long_readers_hold_up_neither_fence_nor_writers(moving: Moving) -> None:
    """A reader that is open over the whole move delays the drop of the old copy, and nothing else."""
    reader = await asyncpg.connect(moving.cluster.shards["s1"])
    transaction = reader.transaction(isolation="repeatable_read")
    await transaction.start()
    total = await reader.fetchval("SELECT count(*) FROM meter_telemetry_history")
    async with running(moving.catalog):
        await start(moving.catalog, [TO_S2])
        await reached(moving.catalog, Phase.CLEANUP, Phase.DONE)
        for minute in range(10, 20):
            assert (await ingest(moving.client, meter(moving.device(0), minute)))["accepted"] == 1
            assert (await ingest(moving.client, meter(moving.device(1), minute)))["accepted"] == 1
        assert await reader.fetchval("SELECT count(*) FROM meter_telemetry_history") == total
        assert (await reached(moving.catalog, Phase.CLEANUP))[0]["phase"] == Phase.CLEANUP
        await transaction.rollback()
        assert await ended(moving.catalog) == "done"
    await reader.close()
    await moving.whole()


async def tampered(moving: Moving, step: str, statement: str) -> tuple[str, dict[str, Any]]:
    """A move during which somebody changes the target's copy; how it ended."""

    async def tamper(_move: Move) -> None:
        made = await fetch(moving.cluster.shards["s2"], "SELECT root, name FROM move_table")
        await execute(moving.cluster.shards["s2"], statement.format(**{r["root"]: r["name"] for r in made}))

    async def late(_move: Move) -> None:
        """What was ingested just before the fence is what the comparison inside it looks at."""
        await ingest(moving.client, meter(moving.device(0), 29))

    async with running(moving.catalog, Steps(at={step: tamper, "after entering fence": late})):
        await start(moving.catalog, [TO_S2])
        state = await ended(moving.catalog)
    found = await rebalances.latest(moving.catalog, deadline_in(5))
    assert found is not None
    return state, found[1][0]


async def test_one_flipped_value_is_found(moving: Moving) -> None:
    before = await moving.keys()
    flip = (
        "UPDATE {meter_telemetry_history} SET voltage = voltage + 0.5 WHERE ctid ="
        " (SELECT ctid FROM {meter_telemetry_history} LIMIT 1)"
    )
    await execute_ago(moving)
    state, move = await tampered(moving, "after entering verify", flip)
    assert (state, move["phase"]) == ("failed", "aborted")
    assert "verification failed: meter readings differ" in move["last_error"]
    assert await owner_of(moving.cluster, 0) == "s1"
    assert await moving.keys() == before
    await moving.whole()


async def execute_ago(moving: Moving) -> None:
    """Let all readings be older than the mark, so that the verification before the fence is the one that looks."""
    for kind in KINDS:
        sql = f"UPDATE {kind.history} SET ingested_at = ingested_at - interval '1 hour'"
        await execute(moving.cluster.shards["s1"], sql)


async def test_a_swapped_row_is_found_though_the_count_is_right(moving: Moving) -> None:
    table = "{vehicle_telemetry_history}"
    swap = (
        f"UPDATE {table} SET timestamp = timestamp + interval '7 seconds'"
        f" WHERE ctid = (SELECT ctid FROM {table} LIMIT 1)"
    )
    await execute_ago(moving)
    state, move = await tampered(moving, "after entering verify", swap)
    assert (state, move["phase"]) == ("failed", "aborted")
    assert "vehicle readings" in move["last_error"]
    await moving.whole()


async def test_a_fault_in_the_last_delta_is_found_in_the_fence(moving: Moving) -> None:
    flip = "UPDATE {meter_telemetry_history} SET kwh_consumed_ac = 99"
    state, move = await tampered(moving, "inside fence", flip)
    assert (state, move["phase"]) == ("failed", "aborted")
    assert (await ingest(moving.client, meter(moving.device(0), 30)))["accepted"] == 1
    await moving.whole()


async def test_the_old_copy_is_not_dropped_when_the_new_one_is_not_whole(moving: Moving) -> None:
    """Damage after the cutover: the second comparison keeps the old copy, and a rollback brings it back."""
    async with running(moving.catalog):
        await start(moving.catalog, [TO_S2], keep_s=3600)
        await reached(moving.catalog, Phase.CLEANUP)
        await execute(moving.cluster.shards["s2"], "UPDATE meter_telemetry_history SET voltage = 1 WHERE bucket = 0")
        await execute(moving.cluster.catalog_dsn, "UPDATE rebalance SET keep_s = 0")
        async with asyncio.timeout(30):
            while not (found := (await reached(moving.catalog, Phase.CLEANUP))[0]["last_error"]):
                await asyncio.sleep(0.02)
        assert "verification failed" in found
        status = (await moving.client.get("/v1/rebalance")).json()
        assert status["idle"].startswith("bucket 0 waits for you: see `voltroute rebalance status`")
        assert await rebalances.roll_back(moving.catalog, None, deadline_in(5)) == 1
        assert (await reached(moving.catalog, Phase.ROLLBACK, Phase.CLEANUP))[0]["bucket"] == 0


async def test_both_ways_of_comparing_find_a_difference(moving: Moving) -> None:
    """Within a major version rows are hashed as they are, across versions by their text."""
    async with running(moving.catalog):
        await start(moving.catalog, [TO_S2], keep_s=3600)
        await reached(moving.catalog, Phase.CLEANUP)
    sides = [await asyncpg.connect(moving.cluster.shards[name]) for name in ("s1", "s2")]
    flip = "UPDATE meter_telemetry_history SET voltage = {} WHERE bucket = 0 AND meter_id = $1"
    for side in sides:
        await side.execute(flip.format("0"), moving.device(0))
    try:
        for same in (True, False):
            if not same:
                await sides[1].execute(flip.format("NULL"), moving.device(0))  # which PostgreSQL hashes as 0
            for hashed in (fingerprints.SAME_MAJOR, fingerprints.ANY_MAJOR):
                one, other = [await fingerprint(side, 0, hashed) for side in sides]
                assert (one == other) is same
                assert sum(rows for rows, _, _ in one.values()) == sum(rows for rows, _, _ in other.values()) > 0
    finally:
        for side in sides:
            await side.close()


async def test_rollback_brings_back_what_was_written_since(moving: Moving) -> None:
    device = moving.device(0)
    async with running(moving.catalog):
        await start(moving.catalog, [TO_S2], keep_s=3600)
        await reached(moving.catalog, Phase.CLEANUP)
        assert await owner_of_writes(moving, 0) == "s2"
        await ingest(moving.client, [meter(device, 50), {**meter(device), "timestamp": "2018-01-01T00:00:00Z"}])
        before, newest = set(await moving.keys()), await statuses_of_owner(moving, device)
        assert await rebalances.roll_back(moving.catalog, None, deadline_in(5)) == 1
        await execute(moving.cluster.catalog_dsn, "UPDATE rebalance SET keep_s = 0")
        assert await ended(moving.catalog) == "cancelled"
    assert await owner_of(moving.cluster, 0) == "s1"
    assert set(await moving.keys()) == before
    assert (await statuses(moving.cluster.shards))[device] == newest
    assert (await ingest(moving.client, meter(device, 51)))["accepted"] == 1
    await moving.whole()


async def owner_of_writes(moving: Moving, bucket: int) -> str:
    sql = "SELECT s.name FROM bucket_map JOIN shard AS s USING (shard_id) WHERE bucket = $1"
    return str((await fetch(moving.cluster.catalog_dsn, sql, bucket))[0]["name"])


async def statuses_of_owner(moving: Moving, device: str) -> datetime:
    answer = (await moving.client.get(f"/v1/meters/{device}/status")).json()
    return datetime.fromisoformat(answer["lastUpdated"])


async def test_cancel_drops_what_was_copied(moving: Moving) -> None:
    before = await moving.keys()
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def hold(_move: Move) -> None:
        arrived.set()
        await go_on.wait()

    async with running(moving.catalog, Steps(at={"after entering catchup": hold})):
        number = await start(moving.catalog, [TO_S2])
        await asyncio.wait_for(arrived.wait(), 30)
        assert await rebalances.abort(moving.catalog, number, "cancelled", deadline_in(5)) == 1
        go_on.set()
        assert await ended(moving.catalog) == "cancelled"
    assert await owner_of(moving.cluster, 0) == "s1"
    assert await moving.keys() == before
    await moving.whole()


async def test_an_abort_loses_against_the_fence(moving: Moving) -> None:
    """Asked to abort when the source has decided: the move is finished instead."""

    async def cancel(move: Move) -> None:
        await rebalances.abort(moving.catalog, move.rebalance_id, "cancelled", deadline_in(5))

    async with running(moving.catalog, Steps(at={"after fence": cancel})):
        await start(moving.catalog, [TO_S2])
        assert await ended(moving.catalog) == "done"
    assert await owner_of(moving.cluster, 0) == "s2"
    await moving.whole()


async def test_a_paused_rebalance_begins_nothing(moving: Moving) -> None:
    number = await start(moving.catalog, [TO_S2])
    await rebalances.set_state(moving.catalog, number, RebalanceState.PAUSED, None, deadline_in(5))
    steps = Steps()
    async with running(moving.catalog, steps):
        async with asyncio.timeout(30):
            while await lease.holder(moving.catalog, deadline_in(5)) is None:
                await asyncio.sleep(0.02)
        assert (await reached(moving.catalog, Phase.PLANNED))[0]["bucket"] == 0
        assert steps.names == []
        await rebalances.set_state(moving.catalog, number, RebalanceState.RUNNING, None, deadline_in(5))
        assert await ended(moving.catalog) == "done"


async def test_two_runners_one_leader(moving: Moving) -> None:
    steps = [Steps(), Steps()]
    async with running(moving.catalog, steps[0]) as first, running(moving.catalog, steps[1]) as second:
        await start(moving.catalog, [TO_S2, PlannedMove(2, "s3", "s1")])
        assert await ended(moving.catalog) == "done"
        assert first.leads != second.leads
        assert [bool(each.names) for each in steps] == [first.leads, second.leads]
    await moving.whole()


async def test_a_move_that_cannot_be_made_says_why(moving: Moving) -> None:
    await execute(moving.cluster.shards["s2"], "CREATE TABLE meter_telemetry_history_b0000 (a int)")
    async with running(moving.catalog):
        await start(moving.catalog, [TO_S2, PlannedMove(3, "s1", "s2")])
        assert await ended(moving.catalog) == "failed"
    found = await rebalances.latest(moving.catalog, deadline_in(5))
    assert found is not None
    reasons = [move["last_error"] for move in found[1]]
    assert reasons[0].startswith("s2 has tables that voltroute did not make: meter_telemetry_history_b0000 is attached")
    assert reasons[1] == "the rebalance failed"
    broken = [rule for rule in await invariants.check(moving.catalog) if not rule.ok]
    assert [rule.name for rule in broken] == ["no table that voltroute did not make"]
    await execute(moving.cluster.shards["s2"], "DROP TABLE meter_telemetry_history_b0000")
    await moving.whole()
