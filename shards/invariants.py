"""What must always hold in a cluster, looked at from outside: `voltroute check`."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from shards import migrate, rebalances
from shards.catalog import Catalog, ShardRecord, deadline_in
from shards.errors import ShardError
from shards.moves import ENDED, Move
from shards.sessions import SessionLimits, owner_session
from shards.shard_map import ShardMap

_LIMITS: Final = SessionLimits(statement_timeout_s=30)
_FACTS: Final = r"""
SELECT
    (SELECT coalesce(array_agg(bucket ORDER BY bucket), '{}') FROM owned_bucket) AS owned,
    (SELECT coalesce(array_agg(DISTINCT substring(c.relname FROM '_b(\d{4})$')::smallint), '{}')
     FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid JOIN pg_class AS p ON p.oid = i.inhparent
     WHERE p.relname ~ '^(meter|vehicle)_(telemetry_history|current_status)$') AS attached,
    (SELECT coalesce(array_agg(DISTINCT substring(c.relname FROM '_b(\d{4})$')::smallint), '{}')
     FROM pg_class AS c
     WHERE c.relkind IN ('r', 'p') AND c.relname ~ '^(meter|vehicle)_(telemetry_history|current_status)_b\d{4}$'
       AND NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = c.oid)) AS loose,
    (SELECT coalesce(array_agg(DISTINCT substring(c.relname FROM '_b(\d{4})$')::smallint), '{}')
     FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
     WHERE t.tgname = 'fence' AND c.relname ~ '_b\d{4}$') AS fenced,
    (SELECT count(*) FROM pg_inherits WHERE inhdetachpending) AS half_detached,
    (SELECT coalesce(jsonb_agg(jsonb_build_object('move', move_id, 'bucket', bucket)), '[]') FROM bucket_move)::text
        AS moves
"""


@dataclass(frozen=True)
class Invariant:
    """One rule: whether it holds, and what was found."""

    name: str
    ok: bool
    found: str


@dataclass(frozen=True)
class Facts:
    """What one shard says of itself."""

    owned: frozenset[int]
    attached: frozenset[int]
    loose: frozenset[int]
    fenced: frozenset[int]
    half_detached: int
    moves: Mapping[int, int]  # bucket -> move


async def look(record: ShardRecord) -> Facts:
    """A shard's own word. ShardError when it does not answer."""
    async with owner_session(record, _LIMITS) as connection:
        found = (await connection.fetch(_FACTS))[0]
    moves = {each["bucket"]: each["move"] for each in json.loads(found["moves"])}
    return Facts(
        owned=frozenset(found["owned"]),
        attached=frozenset(found["attached"]),
        loose=frozenset(found["loose"]),
        fenced=frozenset(found["fenced"]),
        half_detached=found["half_detached"],
        moves=moves,
    )


async def check(catalog: Catalog, timeout_s: float = 30.0) -> list[Invariant]:
    """All invariants of the cluster; a shard that does not answer is one that fails."""
    deadline = deadline_in(timeout_s)
    records = await catalog.shards(deadline)
    shard_map = await catalog.shard_map(deadline)
    moves = await rebalances.open_moves(catalog, deadline)
    looked = await asyncio.gather(*(look(record) for record in records), return_exceptions=True)
    found = []
    facts: dict[str, Facts] = {}
    for record, answer in zip(records, looked, strict=True):
        if isinstance(answer, Facts):
            facts[record.name] = answer
        elif isinstance(answer, ShardError):
            found.append(Invariant(f"{record.name} answers", ok=False, found=answer.detail))
        else:
            raise answer
    reports = await migrate.status(catalog.dsn, {record.name: record.owner_dsn for record in records})
    behind = [report.database for report in reports if report.pending or report.error]
    found.append(_rule("every database has this release's schema", behind))
    if shard_map is None:
        return [*found, Invariant("there is a map", ok=False, found="`voltroute init` was not finished")]
    return found + judge(shard_map, facts, moves)


def judge(shard_map: ShardMap, facts: Mapping[str, Facts], moves: Sequence[Move]) -> list[Invariant]:
    """The rules, given the map, what the shards say, and the open moves. Pure."""
    open_ = {move.bucket: move for move in moves if move.phase not in ENDED}
    unowned, doubled, foreign, unserved = [], [], [], []
    for bucket, owner in enumerate(shard_map.owners):
        writable = [name for name, each in facts.items() if bucket in each.attached - each.fenced]
        if len(writable) > 1:
            doubled.append(f"{bucket} on {', '.join(writable)}")
        if owner in facts and bucket not in facts[owner].owned:
            unowned.append(f"{bucket} on {owner}")
        if owner in facts and owner not in writable and bucket not in open_:
            unserved.append(f"{bucket} on {owner}")
        for name, each in facts.items():
            if name != owner and bucket in each.owned and bucket not in open_:
                foreign.append(f"{bucket} on {name}")
    return [
        _rule("at most one shard accepts writes of a bucket", doubled),
        _rule("the map's owner has the bucket", unowned),
        _rule("the map's owner accepts its writes", unserved),
        _rule("no other shard says that it owns it", foreign),
        _rule("no table, trigger or record without a move", _leftovers(facts, open_)),
        _rule("no detach is left half done", [n for n, f in facts.items() if f.half_detached and not open_]),
    ]


def _leftovers(facts: Mapping[str, Facts], open_: Mapping[int, Move]) -> list[str]:
    found = []
    for name, each in facts.items():
        found += [f"tables of {bucket} on {name}" for bucket in sorted(each.loose) if bucket not in open_]
        found += [f"fence of {bucket} on {name}" for bucket in sorted(each.fenced) if bucket not in open_]
        for bucket, move_id in each.moves.items():
            if bucket not in open_ or open_[bucket].move_id != move_id:
                found.append(f"record of move {move_id} on {name}")
    return found


def _rule(name: str, broken: Sequence[Any]) -> Invariant:
    shown = ", ".join(str(each) for each in broken[:10]) + (f" and {len(broken) - 10} more" if len(broken) > 10 else "")
    return Invariant(name, ok=not broken, found=f"not so: {shown}" if broken else "holds")
