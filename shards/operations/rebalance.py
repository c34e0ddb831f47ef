"""Starting and steering rebalances."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shards.catalog import tenants
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import Refused, ShardError
from shards.moves import preflight, rebalances
from shards.moves.phases import Move, Phase, Rebalance, RebalanceState
from shards.moves.placement import PlannedMove
from shards.moves.preflight import Unfit
from shards.postgres.connections import Connection

TIMEOUT_S: Final = 10.0
PREFLIGHT_TIMEOUT_S: Final = 60.0
CHECKED_AT_ONCE: Final = 4
REASONS_SHOWN: Final = 3
KEEP_DEFAULT_S: Final = 60.0
PARALLEL_DEFAULT: Final = 2


@dataclass(frozen=True)
class Pace:
    """How moves are carried out: side by side, bytes a second of each, and how long old copies are kept."""

    parallel_max: int = PARALLEL_DEFAULT
    bytes_per_s_max: int | None = None
    keep_s: float = KEEP_DEFAULT_S


async def start(catalog: Catalog, moves: Sequence[PlannedMove], reason: str, pace: Pace) -> int | None:
    """Hand moves to the runner; the rebalance's number, None when there are none.

    Refused when one is open already, or one of the moves could not be made as things are now.
    """
    if not moves:
        return None
    async with catalog.membership(deadline_in(PREFLIGHT_TIMEOUT_S)) as connection:
        return await start_within(catalog, connection, moves, reason, pace)


async def start_within(
    catalog: Catalog, connection: Connection, moves: Sequence[PlannedMove], reason: str, pace: Pace
) -> int:
    """The same, inside `Catalog.membership`. Refused for a bucket that is pinned to other shards."""
    pins = await tenants.pins(catalog, deadline_in(TIMEOUT_S))
    for move in moves:
        if move.target not in pins.get(move.bucket, (move.target,)):
            raise Refused(f"bucket {move.bucket} is pinned to {', '.join(pins[move.bucket])}, not to {move.target}")
    number = await rebalances.start(
        connection,
        moves,
        reason,
        parallel_max=pace.parallel_max,
        bytes_per_s_max=pace.bytes_per_s_max,
        keep_s=pace.keep_s,
    )
    # Before anybody can see it: what is refused here was never there.
    await _preflight(catalog, moves)
    return number


async def _preflight(catalog: Catalog, moves: Sequence[PlannedMove]) -> None:
    """What each move checks again when it begins, now, when somebody reads the answer."""
    records = {record.name: record for record in await catalog.shards(deadline_in(TIMEOUT_S))}
    gate = asyncio.Semaphore(CHECKED_AT_ONCE)

    async def check(each: PlannedMove) -> str | None:
        move = Move(0, 0, each.bucket, each.source, each.target, Phase.PLANNED)
        async with gate:
            try:
                await preflight.check(records[each.source], records[each.target], move)
            except (Unfit, ShardError) as error:
                return str(error)
        return None

    reasons = sorted({reason for reason in await asyncio.gather(*map(check, moves)) if reason})
    if reasons:
        more = f" (and {len(reasons) - REASONS_SHOWN} more)" if len(reasons) > REASONS_SHOWN else ""
        raise Refused(f"nothing was started: {'; '.join(reasons[:REASONS_SHOWN])}{more}")


async def _open(catalog: Catalog) -> Rebalance:
    found = await rebalances.open_rebalance(catalog, deadline_in(TIMEOUT_S))
    if found is None:
        raise Refused("no rebalance is open")
    return found


async def _steer(catalog: Catalog, state: RebalanceState, note: str | None) -> Rebalance:
    found = await _open(catalog)
    if not await rebalances.set_state(catalog, found.rebalance_id, state, note, deadline_in(TIMEOUT_S)):
        raise Refused(f"rebalance {found.rebalance_id} is {found.state}: it does not become {state}")
    return found


async def pause(catalog: Catalog) -> None:
    """Begin no further move; those under way are finished."""
    await _steer(catalog, RebalanceState.PAUSED, "paused: no further move begins")


async def resume(catalog: Catalog) -> None:
    """Continue after a pause."""
    await _steer(catalog, RebalanceState.RUNNING, "running")


async def cancel(catalog: Catalog) -> int:
    """End all moves that are not past their fence; returns how many were asked. Cutovers that were made stay."""
    found = await _open(catalog)
    asked = await rebalances.abort(catalog, found.rebalance_id, "cancelled", deadline_in(TIMEOUT_S))
    await _steer(catalog, RebalanceState.CANCELLED, None)
    return asked


async def roll_back(catalog: Catalog, move_id: int | None) -> int:
    """Ask for moves whose old copy is still kept (None: all) to be undone; returns how many. Refused when none is."""
    asked = await rebalances.roll_back(catalog, move_id, deadline_in(TIMEOUT_S))
    if not asked:
        raise Refused("no such move is between its cutover and its cleanup: there is nothing to roll back to")
    return asked
