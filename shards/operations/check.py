"""What must always hold in a cluster, looked at from outside: `voltroute check`."""

import asyncio
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Final

from shards.catalog.archive import entries
from shards.catalog.database import Catalog
from shards.catalog.kinds import Declared, declared
from shards.catalog.shard_map import ShardMap
from shards.clock import deadline_in
from shards.errors import Cause, ClusterError, ShardError, ShardUnavailable
from shards.moves import rebalances
from shards.moves.phases import ENDED, Move
from shards.operations import replicas
from shards.operations.finding import Finding, rule
from shards.postgres import migrate
from shards.postgres.sessions import BRIEF, owner_session
from shards.shard import ShardRecord
from shards.storage import shaping, tables
from shards.storage.shaping import Shape

_FACTS: Final = """
SELECT
    (SELECT cluster_id::text || ' ' || name FROM shard_identity) AS identity,
    (SELECT coalesce(array_agg(bucket ORDER BY bucket), '{}') FROM owned_bucket) AS owned,
    (SELECT coalesce(array_agg(DISTINCT bucket), '{}') FROM bucket_table
     WHERE bucket IS NOT NULL AND NOT detaching) AS attached,
    (SELECT coalesce(array_agg(DISTINCT b.bucket), '{}')
     FROM bucket_table AS b JOIN pg_trigger AS t ON t.tgrelid = b.table_oid AND t.tgname = 'fence'
        AND t.tgenabled <> 'D'
     WHERE b.bucket IS NOT NULL) AS fenced,
    (SELECT count(*) FROM pg_inherits
     WHERE inhdetachpending AND inhrelid NOT IN (SELECT table_oid FROM packed_leaf)) AS half_detached,
    (SELECT coalesce(array_agg(name ORDER BY name), '{}') FROM move_table AS m
     WHERE NOT EXISTS (SELECT FROM bucket_move AS b WHERE b.move_id = m.move_id)) AS orphans,
    (SELECT coalesce(jsonb_agg(jsonb_build_object('move', move_id, 'bucket', bucket, 'state', state)), '[]')
     FROM bucket_move)::text AS moves
"""
_ARCHIVED: Final = """
SELECT t.kind, t.bucket, m.month::date AS month
FROM tier AS t CROSS JOIN unnest(t.archived) AS gone
CROSS JOIN generate_series(
    lower(gone) AT TIME ZONE 'UTC', (upper(gone) - interval '1 microsecond') AT TIME ZONE 'UTC', '1 month'
) AS m (month)
"""


@dataclass(frozen=True)
class Facts:
    """What one shard says of itself. `moves`: bucket -> (move, state); `archived`: kind, bucket, month of what left."""

    identity: str | None
    owned: frozenset[int]
    attached: frozenset[int]
    fenced: frozenset[int]
    half_detached: int
    strangers: tuple[str, ...]
    moves: Mapping[int, tuple[int, str]]
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    stray: tuple[str, ...] = ()
    archived: frozenset[tuple[str, int, date]] = frozenset()


async def look(record: ShardRecord) -> Facts:
    """A shard's own word. ShardError when it does not answer."""
    async with owner_session(record, BRIEF) as connection:
        found = (await connection.fetch(_FACTS))[0]
        foreign = [each.what for each in await tables.foreign(connection)]
        shapes = await shaping.shapes(connection)
        loose = [f"{name} is attached nowhere" for name in await tables.loose(connection)]
        stray = await tables.stray_statuses(connection)
        archived = await connection.fetch(_ARCHIVED)
    moves = {each["bucket"]: (each["move"], each["state"]) for each in json.loads(found["moves"])}
    return Facts(
        identity=found["identity"],
        owned=frozenset(found["owned"]),
        attached=frozenset(found["attached"]),
        fenced=frozenset(found["fenced"]),
        half_detached=found["half_detached"],
        strangers=(*foreign, *loose, *(f"{name} is recorded for no move" for name in found["orphans"])),
        moves=moves,
        shapes=shapes,
        stray=tuple(stray),
        archived=frozenset((each["kind"], each["bucket"], each["month"]) for each in archived),
    )


async def check(catalog: Catalog, timeout_s: float = 30.0) -> list[Finding]:
    """All invariants of the cluster; a shard that does not answer is one that fails."""
    deadline = deadline_in(timeout_s)
    info = await catalog.info(deadline)
    records = await catalog.shards(deadline)
    shard_map = await catalog.shard_map(deadline)
    moves = await rebalances.open_moves(catalog, deadline)
    kinds = await declared(catalog, deadline)
    reports = await migrate.status(catalog.dsn, {record.name: record.owner_dsn for record in records})
    behind = [report.database for report in reports if report.pending or report.error]
    found = [rule("every database has this release's schema", behind, "voltroute migrate up")]
    looked = await asyncio.gather(*(look(record) for record in records), return_exceptions=True)
    facts: dict[str, Facts] = {}
    for record, answer in zip(records, looked, strict=True):
        if isinstance(answer, Facts):
            facts[record.name] = answer
        elif isinstance(answer, ShardUnavailable) and answer.cause is Cause.WRONG_DATABASE:
            remedy = (
                "correct its DSN with `voltroute init`, or say that it is the right one with `voltroute shard accept`"
            )
            found.append(Finding(f"{record.name} is the server that it was", False, answer.detail, remedy))
        elif isinstance(answer, ShardError | ClusterError):
            detail = answer.detail if isinstance(answer, ShardError) else str(answer)
            found.append(Finding(f"{record.name} answers", ok=False, found=detail, remedy="start the server"))
        else:
            raise answer
    for record in records:
        if record.name in facts:
            found += await replicas.check(catalog, record)
    if shard_map is None:
        return [*found, Finding("there is a map", False, "`voltroute init` was not finished", "repeat it")]
    known = {(each.kind, each.bucket, each.month) for each in await entries(catalog, deadline)}
    return [
        *found,
        *judge(info.cluster_id, shard_map, facts, moves),
        *judge_kinds(kinds, facts),
        judge_archive(known, facts),
    ]


def judge_archive(known: Collection[tuple[str, int, date]], facts: Mapping[str, Facts]) -> Finding:
    """The rule about months that left their shards, given those that the ledger knows. Pure."""
    lost = [
        f"{month:%Y-%m} of bucket {bucket} of {kind} on {name}"
        for name, each in facts.items()
        for kind, bucket, month in sorted(each.archived)
        if (kind, bucket, month) not in known
    ]
    return rule("the catalog knows where every archived month is", lost, "voltroute archive recover")


def judge(cluster_id: str, shard_map: ShardMap, facts: Mapping[str, Facts], moves: Sequence[Move]) -> list[Finding]:
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
    strangers = [f"{what} on {name}" for name, each in facts.items() for what in each.strangers]
    wrong = [f"{n} is {f.identity}" for n, f in facts.items() if f.identity not in {None, f"{cluster_id} {n}"}]
    stray = [f"{what} on {name}" for name, each in facts.items() for what in each.stray]
    halves = [name for name, each in facts.items() if each.half_detached and not open_]
    hand = "an operator must look: see shards/README, Failures"
    return [
        rule(
            "every shard is the one that the catalog means",
            wrong,
            "correct its DSN: `voltroute init` with the right one",
        ),
        rule("at most one shard accepts writes of a bucket", doubled, hand),
        rule("the map's owner has the bucket", unowned, "the catalog or the shard was restored from an older backup"),
        rule("the map's owner accepts its writes", unserved, hand),
        rule(
            "no other shard says that it owns it", foreign, "the catalog or the shard was restored from an older backup"
        ),
        rule("no fence or record without a move", _leftovers(facts, open_), hand),
        rule("no table that voltroute did not make", strangers, "move its rows, then detach it or drop it"),
        rule(
            "no shard has statuses of a bucket that it does not own", stray, "none is read; they go when it comes back"
        ),
        rule("no detach is left half done", halves, "ALTER TABLE .. DETACH PARTITION .. FINALIZE"),
        rule(
            "no move waits for an operator", _held(moves, facts), "voltroute rebalance verify, then rebalance resolve"
        ),
    ]


def judge_kinds(kinds: Sequence[Declared], facts: Mapping[str, Facts]) -> list[Finding]:
    """The rules about what is declared. Pure."""
    names = {each.whole.name for each in kinds}
    lacking = [
        f"{what} on {name}"
        for name, each in facts.items()
        for declaration in kinds
        for what in _lacking(declaration, each.shapes.get(declaration.whole.name))
    ]
    unknown = [f"{kind} on {name}" for name, each in facts.items() for kind in sorted(each.shapes.keys() - names)]
    begun = [each.whole.name for each in kinds if each.is_open]
    resume = "voltroute kind resume"
    return [
        rule("every shard stores the kinds and fields that are declared", lacking, resume),
        rule("no shard has a kind that nobody declared", unknown, "the catalog was restored: declare it again"),
        rule("no change of kinds is left half done", begun, resume),
    ]


def _lacking(declaration: Declared, shape: Shape | None) -> list[str]:
    if declaration.is_open:
        return []  # told by itself
    return [declaration.whole.name] if shape is None else shape.lacks(declaration.whole)


def _leftovers(facts: Mapping[str, Facts], open_: Mapping[int, Move]) -> list[str]:
    found = []
    for name, each in facts.items():
        found += [f"fence of {bucket} on {name}" for bucket in sorted(each.fenced) if bucket not in open_]
        for bucket, (move_id, _) in each.moves.items():
            if bucket not in open_ or open_[bucket].move_id != move_id:
                found.append(f"record of move {move_id} on {name}")
    return found


def _held(moves: Sequence[Move], facts: Mapping[str, Facts]) -> list[str]:
    """Held moves, with what each side says of itself."""
    found = []
    for move in moves:
        if move.held and move.phase not in ENDED:
            sides = [_side(name, facts.get(name), move) for name in (move.source, move.target)]
            found.append(f"move {move.move_id} of bucket {move.bucket} ({move.held}; {'; '.join(sides)})")
    return found


def _side(name: str, facts: Facts | None, move: Move) -> str:
    if facts is None:
        return f"{name} does not answer"
    number, state = facts.moves.get(move.bucket, (None, "no record"))
    writes = "takes writes" if move.bucket in facts.attached - facts.fenced else "takes no writes"
    return f"{name}: {state if number == move.move_id else 'no record'}, {writes}"
