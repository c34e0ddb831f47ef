"""Moves that the catalog knows nothing of any more: restored from an older backup, it forgot what the shards remember.

Each record that belongs to no open move becomes a held move again, so that an operator can verify and resolve it.
"""

import asyncio
from typing import Final

from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import Refused, ShardError
from shards.moves import decisions, rebalances
from shards.moves.decisions import Orphan
from shards.moves.phases import Phase, Role
from shards.operations.rebalance import KEEP_DEFAULT_S
from shards.postgres.sessions import BRIEF, owner_session
from shards.shard import ShardRecord

TIMEOUT_S: Final = 30.0
_RECORDS: Final = "SELECT move_id, bucket, role, state FROM bucket_move"


async def recover(catalog: Catalog) -> list[Orphan]:
    """Held moves made from the shards' own records. Refused when a shard is silent, or a rebalance is open."""
    async with catalog.membership(deadline_in(TIMEOUT_S)) as connection:
        records = await catalog.shards(deadline_in(TIMEOUT_S))
        open_ = {(move.move_id, move.bucket) for move in await rebalances.open_moves(catalog, deadline_in(TIMEOUT_S))}
        found = await asyncio.gather(*map(_ask, records))
        orphans: dict[tuple[int, int], dict[Role, tuple[str, str]]] = {}
        for part in found:
            for move_id, bucket, role, side in part:
                if (move_id, bucket) not in open_:
                    orphans.setdefault((move_id, bucket), {})[role] = side
        if not orphans:
            return []
        if open_:
            raise Refused("a rebalance is open: let it end, or cancel it, first")
        names = [record.name for record in records]
        made = [_orphan(key, sides, names) for key, sides in sorted(orphans.items())]
        await decisions.readopt(connection, made, KEEP_DEFAULT_S)
        return made


async def _ask(record: ShardRecord) -> list[tuple[int, int, Role, tuple[str, str]]]:
    try:
        async with owner_session(record, BRIEF) as connection:
            rows = await connection.fetch(_RECORDS)
    except ShardError as error:
        raise Refused(f"{record.name} does not answer ({error.detail}): what it remembers is not known") from None
    return [(r["move_id"], r["bucket"], Role(r["role"]), (record.name, r["state"])) for r in rows]


def _orphan(key: tuple[int, int], sides: dict[Role, tuple[str, str]], names: list[str]) -> Orphan:
    """The move as the shards tell it; a side that remembers nothing is taken to be any other shard."""
    known = {role: sides[role][0] for role in sides}
    other = next(name for name in names if name not in known.values())
    told = "; ".join(f"{name} is {state} as its {role}" for role, (name, state) in sorted(sides.items()))
    source, target = known.get(Role.SOURCE, other), known.get(Role.TARGET, other)
    return Orphan(*key, source, target, Phase.CLEANUP, f"the catalog had forgotten this move: {told}")
