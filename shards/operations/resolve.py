"""What an operator decides about a held move. The leader carries it out; nothing is dropped before a comparison."""

from typing import Final

from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import Refused
from shards.moves import decisions, rebalances
from shards.moves.phases import Move, Role

TIMEOUT_S: Final = 10.0


async def retry(catalog: Catalog, move_id: int) -> None:
    """Let a held move be tried again, after its reason was removed."""
    await _find(catalog, move_id)
    await decisions.let_go(catalog, move_id, deadline_in(TIMEOUT_S))


async def keep(catalog: Catalog, move_id: int, keeper: Role, *, forced: bool = False, alone: bool = False) -> None:
    """One side keeps the bucket, with every reading of both.

    `forced`: where both have a reading with one key and other values, the keeper's stays. `alone`: the other shard is
    gone for good; what only it had is lost. Refused when the move has ended.
    """
    await _find(catalog, move_id)
    await decisions.decide(catalog, move_id, keeper, deadline_in(TIMEOUT_S), forced=forced, alone=alone)


async def _find(catalog: Catalog, move_id: int) -> Move:
    moves = await rebalances.open_moves(catalog, deadline_in(TIMEOUT_S))
    for move in moves:
        if move.move_id == move_id:
            return move
    there = ", ".join(str(move.move_id) for move in moves) or "none"
    raise Refused(f"no move {move_id} is open (open: {there})")
