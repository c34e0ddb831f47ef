"""Comparing what two shards hold of one bucket, row by row, before anybody decides about it."""

from typing import Final

from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import MoveError, ShardError
from shards.moves import rebalances
from shards.moves.cleanup import compare_kept
from shards.moves.phases import Phase
from shards.operations.finding import Finding

TIMEOUT_S: Final = 10.0
_COMPARED: Final = frozenset({Phase.CUTOVER, Phase.CLEANUP, Phase.ROLLBACK, Phase.ROLLBACK_CLEANUP})


async def verify(catalog: Catalog) -> list[Finding]:
    """Every old copy that is still kept beside its new owner, as they are now."""
    deadline = deadline_in(TIMEOUT_S)
    records = {record.name: record for record in await catalog.shards(deadline)}
    found = []
    for move in await rebalances.open_moves(catalog, deadline):
        if move.phase not in _COMPARED and not move.held:
            continue
        name = f"bucket {move.bucket}"
        remedy = f"voltroute rebalance resolve {move.move_id} --keep source|target"
        try:
            seen = await compare_kept(records[move.source], records[move.target], move)
        except (MoveError, ShardError, KeyError) as error:
            detail = f"{error} is no shard any more" if isinstance(error, KeyError) else str(error)
            found.append(Finding(name, ok=False, found=detail, remedy=remedy))
            continue
        words = "the new owner has everything" if seen.is_superset else seen.words(move.source, move.target)
        found.append(Finding(name, seen.is_superset, words, remedy))
    return found
