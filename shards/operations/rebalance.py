"""Starting and steering rebalances."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import Refused
from shards.moves import rebalances
from shards.moves.phases import Rebalance, RebalanceState
from shards.moves.placement import PlannedMove
from shards.postgres.pools import Connection

TIMEOUT_S: Final = 10.0
KEEP_DEFAULT_S: Final = 60.0
PARALLEL_DEFAULT: Final = 2


@dataclass(frozen=True)
class Pace:
    """How moves are carried out: side by side, bytes a second of each, and how long old copies are kept."""

    parallel_max: int = PARALLEL_DEFAULT
    bytes_per_s_max: int | None = None
    keep_s: float = KEEP_DEFAULT_S


async def start(catalog: Catalog, moves: Sequence[PlannedMove], reason: str, pace: Pace) -> int | None:
    """Hand moves to the runner; the rebalance's number, None when there are none. Refused when one is open already."""
    if not moves:
        return None
    async with catalog.membership(deadline_in(TIMEOUT_S)) as connection:
        return await start_within(connection, moves, reason, pace)


async def start_within(connection: Connection, moves: Sequence[PlannedMove], reason: str, pace: Pace) -> int:
    """The same, inside `Catalog.membership`."""
    return await rebalances.start(
        connection,
        moves,
        reason,
        parallel_max=pace.parallel_max,
        bytes_per_s_max=pace.bytes_per_s_max,
        keep_s=pace.keep_s,
    )


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
