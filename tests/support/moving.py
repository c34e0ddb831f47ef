"""Moves under test: a runner in this process, what it passes, and whether anything is left behind."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.duties.leader import Leader
from shards.moves import fingerprints, rebalances
from shards.moves.phases import ENDED, Move, Phase
from shards.moves.placement import PlannedMove
from shards.moves.runner import Moves, Watcher
from shards.postgres.connections import Connection
from shards.storage.roots import stored_kinds
from shards.storage.tables import attached_tables
from tests.support.ledger import fetch
from tests.support.servers import TestCluster

WAIT_S = 90  # a limit for what hangs, on a machine that is busy with something else
LEASE_S = 1.0  # a killed runner is replaced after this
LEFTOVERS = """
SELECT 'bucket_move ' || bucket AS what FROM bucket_move
UNION ALL SELECT 'copied_leaf ' || name FROM copied_leaf
UNION ALL SELECT 'trigger on ' || tgrelid::regclass FROM pg_trigger WHERE tgname = 'fence'
UNION ALL SELECT 'detach pending ' || inhrelid::regclass FROM pg_inherits WHERE inhdetachpending
UNION ALL
SELECT 'table ' || c.relname FROM pg_class AS c
WHERE c.relname ~ '^[a-z0-9_]+_(current_status|telemetry_(history|late|packed))_b[0-9]{4}'
  AND c.relkind IN ('r', 'p') AND NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = c.oid)
UNION ALL
SELECT 'owned without tables ' || bucket FROM owned_bucket AS o
WHERE (SELECT count(*) FROM bucket_table AS b WHERE b.bucket = o.bucket AND b.role = 'history')
    <> (SELECT count(*) FROM root_table)
UNION ALL SELECT 'move_table ' || name FROM move_table
UNION ALL
SELECT 'statuses of ' || bucket FROM (
    SELECT bucket FROM meter_current_status UNION SELECT bucket FROM vehicle_current_status
) AS s
WHERE NOT EXISTS (SELECT FROM owned_bucket AS o WHERE o.bucket = s.bucket)
UNION ALL
SELECT 'horizon of ' || bucket FROM tier AS t
WHERE NOT EXISTS (SELECT FROM owned_bucket AS o WHERE o.bucket = t.bucket)
UNION ALL
SELECT 'packed leaf of ' || bucket FROM packed_leaf AS p
WHERE NOT EXISTS (SELECT FROM owned_bucket AS o WHERE o.bucket = p.bucket)
UNION ALL
SELECT 'comment on ' || objoid::regclass FROM pg_description WHERE description LIKE 'voltroute move%'
"""


@dataclass
class Steps:
    """The steps that a runner passes; `at` is called at each and may stop it there."""

    names: list[str] = field(default_factory=list)
    at: dict[str, Callable[[Move], Any]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    async def __call__(self, move: Move, name: str) -> None:
        self.names.append(name)
        action = self.at.get(name)
        if action is not None:
            await action(move)

    def failed(self, _move: Move, error: Exception) -> None:
        self.errors.append(f"{type(error).__name__}: {error}")
        print("move failed:", self.errors[-1])  # pytest shows it when the test fails


@asynccontextmanager
async def running(catalog: Catalog, steps: Steps | None = None) -> AsyncIterator[Leader]:
    """A leader that carries out moves, at work inside the block."""
    steps = steps or Steps()
    runner = Leader(catalog, "test", [Moves(catalog, Watcher(step=steps, failed=steps.failed))], lease_s=LEASE_S)
    task = asyncio.create_task(runner.run())
    try:
        yield runner
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def start(catalog: Catalog, moves: Sequence[PlannedMove], *, keep_s: float = 0, parallel_max: int = 4) -> int:
    """As an operator does, but without looking first whether it can be done: tests are about what happens then."""
    async with catalog.membership(deadline_in(10)) as connection:
        return await rebalances.start(
            connection, moves, "test", parallel_max=parallel_max, bytes_per_s_max=None, keep_s=keep_s
        )


async def reached(catalog: Catalog, *phases: Phase, timeout_s: float = WAIT_S) -> list[dict[str, Any]]:
    """Wait until all moves of the newest rebalance are in one of these phases; returns them."""
    found = None
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                found = await rebalances.latest(catalog, deadline_in(10))
                assert found is not None
                if all(move["phase"] in phases for move in found[1]):
                    return found[1]
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"the moves did not reach {[phase.value for phase in phases]}: {found}")


async def ended(catalog: Catalog, timeout_s: float = WAIT_S) -> str:
    """Wait until the newest rebalance has ended; its state."""
    await reached(catalog, *ENDED, timeout_s=timeout_s)
    async with asyncio.timeout(timeout_s):
        while True:
            found = await rebalances.latest(catalog, deadline_in(10))
            assert found is not None
            if found[0].ended_at is not None:
                return found[0].state
            await asyncio.sleep(0.02)


async def fingerprint(connection: Connection, bucket: int, hashed: str) -> fingerprints.Fingerprints:
    """Of a bucket's meter readings on a shard, by one of the two ways of hashing."""
    meters = (await stored_kinds(connection))[0]
    return await fingerprints.history(connection, await attached_tables(connection, bucket), meters, hashed)


async def leftovers(cluster: TestCluster) -> list[str]:
    """Whatever moves left on the shards; empty when all is as it should be."""
    found = []
    for name, dsn in cluster.shards.items():
        found += [f"{name}: {record['what']}" for record in await fetch(dsn, LEFTOVERS)]
    return found


async def owner_of(cluster: TestCluster, bucket: int) -> str:
    """The owner by the map, which must be the only shard that says it owns the bucket."""
    sql = "SELECT s.name FROM bucket_map JOIN shard AS s USING (shard_id) WHERE bucket = $1"
    by_map = str((await fetch(cluster.catalog_dsn, sql, bucket))[0]["name"])
    own = "SELECT 1 FROM owned_bucket WHERE bucket = $1"
    says = [name for name, dsn in cluster.shards.items() if await fetch(dsn, own, bucket)]
    assert says == [by_map]
    return by_map
