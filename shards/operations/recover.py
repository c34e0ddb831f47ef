"""What a catalog that was restored from an older backup has forgotten, and the shards remember.

Each record that belongs to no open move becomes a held move again, so that an operator can verify and resolve it. A
bucket that its owner by the map has not, and exactly one other shard has, without any record, is that shard's: the move
was finished. The map follows.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shards.catalog.database import Catalog
from shards.catalog.shard_map import ShardMap
from shards.clock import deadline_in
from shards.errors import Refused, ShardError
from shards.moves import decisions, rebalances
from shards.moves.decisions import Orphan
from shards.moves.phases import Phase, Role
from shards.operations.rebalance import KEEP_DEFAULT_S
from shards.postgres.sessions import BRIEF, owner_session
from shards.postgres.transactions import transaction
from shards.shard import ShardRecord

TIMEOUT_S: Final = 30.0
_RECORDS: Final = "SELECT move_id, bucket, role, state FROM bucket_move"
_OWNED: Final = "SELECT coalesce(array_agg(bucket), '{}') FROM owned_bucket"


@dataclass(frozen=True)
class Recovered:
    """Held moves that were made from shards' records; buckets that the map now gives to the shard that has them."""

    moves: list[Orphan]
    buckets: dict[int, str]


@dataclass(frozen=True)
class _Memory:
    """What one shard remembers: (move, bucket, role, state), and which buckets it owns."""

    name: str
    records: list[tuple[int, int, Role, str]]
    owned: frozenset[int]


async def recover(catalog: Catalog) -> Recovered:
    """What the shards remember, written down again. Refused when a shard is silent, or a rebalance is open."""
    async with catalog.membership(deadline_in(TIMEOUT_S)) as connection:
        records = await catalog.shards(deadline_in(TIMEOUT_S))
        open_ = {(move.move_id, move.bucket) for move in await rebalances.open_moves(catalog, deadline_in(TIMEOUT_S))}
        memories = await asyncio.gather(*map(_ask, records))
        shard_map = await catalog.shard_map(deadline_in(TIMEOUT_S))
        orphans: dict[tuple[int, int], dict[Role, tuple[str, str]]] = {}
        for each in memories:
            for move_id, bucket, role, state in each.records:
                if (move_id, bucket) not in open_:
                    orphans.setdefault((move_id, bucket), {})[role] = (each.name, state)
        buckets = _elsewhere(shard_map, memories) if shard_map else {}
        if not orphans and not buckets:
            return Recovered([], {})
        if open_:
            raise Refused("a rebalance is open: let it end, or cancel it, first")
        names = [record.name for record in records]
        made = [_orphan(key, sides, names) for key, sides in sorted(orphans.items())]
        if made:
            await decisions.readopt(connection, made, KEEP_DEFAULT_S)
        await decisions.follow(connection, buckets)
        return Recovered(made, buckets)


def _elsewhere(shard_map: ShardMap, memories: Sequence[_Memory]) -> dict[int, str]:
    """Bucket -> the one shard that has it, where the map means another one, that has it not, and nobody moves it."""
    moving = {bucket for each in memories for _, bucket, _, _ in each.records}
    found = {}
    for bucket, owner in enumerate(shard_map.owners):
        have = [each.name for each in memories if bucket in each.owned]
        if len(have) == 1 and have != [owner] and bucket not in moving:
            found[bucket] = have[0]
    return found


async def _ask(record: ShardRecord) -> _Memory:
    try:
        async with owner_session(record, BRIEF) as connection, transaction(connection, readonly=True):
            rows = await connection.fetch(_RECORDS)
            owned = await connection.fetchval(_OWNED)
    except ShardError as error:
        raise Refused(f"{record.name} does not answer ({error.detail}): what it remembers is not known") from None
    records = [(r["move_id"], r["bucket"], Role(r["role"]), r["state"]) for r in rows]
    return _Memory(record.name, records, frozenset(owned))


def _orphan(key: tuple[int, int], sides: dict[Role, tuple[str, str]], names: list[str]) -> Orphan:
    """The move as the shards tell it; a side that remembers nothing is taken to be any other shard."""
    known = {role: sides[role][0] for role in sides}
    other = next(name for name in names if name not in known.values())
    told = "; ".join(f"{name} is {state} as its {role}" for role, (name, state) in sorted(sides.items()))
    source, target = known.get(Role.SOURCE, other), known.get(Role.TARGET, other)
    return Orphan(*key, source, target, Phase.CLEANUP, f"the catalog had forgotten this move: {told}")
