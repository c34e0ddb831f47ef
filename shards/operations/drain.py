"""Emptying a shard, and letting it have buckets again."""

import asyncio
from typing import Final

from shards.catalog.database import Catalog, set_state
from shards.clock import deadline_in
from shards.errors import Refused
from shards.moves import rebalances
from shards.moves.placement import THRESHOLD_DEFAULT
from shards.operations.plan import plan_now
from shards.operations.rebalance import PREFLIGHT_TIMEOUT_S, Pace, start_within
from shards.shard import ShardState

TIMEOUT_S: Final = 30.0


async def drain(catalog: Catalog, name: str, pace: Pace) -> int | None:
    """Move everything off a shard, and plan nothing onto it from now on: the rebalance's number, None when it is empty.

    Refused when there is no such shard, nowhere to move to, or a rebalance is open; ShardError when a shard that must
    be asked is away. Then nothing was changed.
    """
    async with catalog.membership(deadline_in(TIMEOUT_S)) as connection:
        if await rebalances.open_rebalance(catalog, deadline_in(TIMEOUT_S)) is not None:
            raise Refused("a rebalance is open: when it has ended, give this command again")
    await _mark(catalog, name, ShardState.DRAINING)
    try:
        planned = await plan_now(catalog, "bytes", THRESHOLD_DEFAULT, {})
        moves = planned.plan.moves
        if not moves:
            return None
        async with catalog.membership(deadline_in(PREFLIGHT_TIMEOUT_S)) as connection:
            return await start_within(catalog, connection, moves, f"drain of {name}", pace)
    except BaseException:
        # Also when a shard is away, or Ctrl-C came: one that is left draining would be emptied by the next rebalance.
        await asyncio.shield(_mark(catalog, name, ShardState.ACTIVE))
        raise


async def undo(catalog: Catalog, name: str) -> None:
    """Let a shard have buckets again. Refused when there is no such shard."""
    await _mark(catalog, name, ShardState.ACTIVE)


async def _mark(catalog: Catalog, name: str, state: ShardState) -> None:
    async with catalog.membership(deadline_in(TIMEOUT_S)) as connection:
        if not await set_state(connection, name, state):
            raise Refused(f"there is no shard {name}")
