"""Starting and steering rebalances."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import Refused
from shards.moves import rebalances
from shards.moves.phases import RebalanceState
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


async def _open(catalog: Catalog) -> int:
    found = await rebalances.open_rebalance(catalog, deadline_in(TIMEOUT_S))
    if found is None:
        raise Refused("no rebalance is open")
    return found.rebalance_id


async def pause(catalog: Catalog) -> None:
    """Begin no further move; those under way are finished."""
    number = await _open(catalog)
    note = "paused: no further move begins"
    await rebalances.set_state(catalog, number, RebalanceState.PAUSED, note, deadline_in(TIMEOUT_S))


async def resume(catalog: Catalog) -> None:
    """Continue after a pause."""
    number = await _open(catalog)
    await rebalances.set_state(catalog, number, RebalanceState.RUNNING, "running", deadline_in(TIMEOUT_S))


async def cancel(catalog: Catalog) -> int:
    """End all moves that are not past their fence; returns how many were asked. Cutovers that were made stay."""
    number, deadline = await _open(catalog), deadline_in(TIMEOUT_S)
    asked = await rebalances.abort(catalog, number, "cancelled", deadline)
    await rebalances.set_state(catalog, number, RebalanceState.CANCELLED, None, deadline)
    return asked


async def roll_back(catalog: Catalog, move_id: int | None) -> int:
    """Ask for moves whose old copy is still kept (None: all) to be undone; returns how many. Refused when none is."""
    asked = await rebalances.roll_back(catalog, move_id, deadline_in(TIMEOUT_S))
    if not asked:
        raise Refused("no such move is between its cutover and its cleanup: there is nothing to roll back to")
    return asked
