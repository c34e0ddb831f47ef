"""Phases, who may run beside whom, why nothing happens, what the invariants find."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shards.catalog.shard_map import ShardMap
from shards.moves.phases import (
    ABORTABLE,
    ENDED,
    FOLLOWING,
    Move,
    Phase,
    Rebalance,
    RebalanceState,
    Role,
    check_step,
    outcome,
    startable,
)
from shards.moves.waiting import why_idle
from shards.operations.check import Facts, judge

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def move(number: int, source: str, target: str, phase: Phase = Phase.PLANNED) -> Move:
    return Move(number, 1, number, source, target, phase)


def test_a_shards_part() -> None:
    assert {role: role.other for role in Role} == {Role.SOURCE: Role.TARGET, Role.TARGET: Role.SOURCE}
    assert [move(1, "a", "b").shard(role) for role in Role] == ["a", "b"]


def test_every_phase_leads_to_an_end() -> None:
    reached = set(ENDED)
    while more := {p for p, following in FOLLOWING.items() if following & reached} - reached:
        reached |= more
    assert reached == set(Phase)
    assert all(Phase.ABORT in FOLLOWING[phase] for phase in ABORTABLE)
    # Beside these only a cutover whose target cannot attach its tables is given up, by the runner, never by asking.
    assert {phase for phase in set(Phase) - ABORTABLE if Phase.ABORT in FOLLOWING[phase]} == {Phase.CUTOVER}
    with pytest.raises(ValueError, match="does not go"):
        check_step(Phase.CLEANUP, Phase.ABORT)


def test_moves_side_by_side_are_of_different_shards() -> None:
    moves = [move(1, "a", "b"), move(2, "b", "c"), move(3, "c", "d"), move(4, "e", "f"), move(5, "g", "h")]
    assert [m.move_id for m in startable(moves, 8, new=True)] == [1, 3, 4, 5]
    assert [m.move_id for m in startable(moves, 2, new=True)] == [1, 3]
    assert startable(moves, 8, new=False) == []
    under_way = [replace(moves[1], phase=Phase.BACKFILL), *moves]
    assert [m.move_id for m in startable(under_way, 2, new=True)] == [2, 4]


def test_what_waits_or_is_undone_takes_no_place() -> None:
    moves = [move(1, "a", "b", Phase.CLEANUP), move(2, "a", "b", Phase.ROLLBACK_CLEANUP), move(3, "a", "b")]
    assert [m.move_id for m in startable(moves, 1, new=True)] == [1, 2, 3]
    assert startable([move(1, "a", "b", Phase.DONE)], 1, new=True) == []


def test_outcome() -> None:
    assert outcome([move(1, "a", "b")]) is None
    assert outcome([move(1, "a", "b", Phase.DONE)]) == "done"
    assert outcome([move(1, "a", "b", Phase.DONE), move(2, "a", "b", Phase.ABORTED)]) == "cancelled"


def rebalance(state: str = "running", ended: datetime | None = None) -> Rebalance:
    return Rebalance(1, RebalanceState(state), "test", 2, None, 60, NOW, ended, None)


def details(phase: Phase, **more: Any) -> dict[str, Any]:
    return {"bucket": 7, "phase": phase.value, "held": None, "cut_over_at": None, "move_id": 3, **more}


def test_why_nothing_happens() -> None:
    planned = [details(Phase.PLANNED)]
    assert why_idle(rebalance("done", NOW), [], 0, NOW) == "the last rebalance ended: done"
    assert "no runner is alive" in str(why_idle(rebalance(), planned, None, NOW))
    assert "no runner is alive" in str(why_idle(rebalance(), planned, 60, NOW))
    assert "paused" in str(why_idle(rebalance("paused"), planned, 0, NOW))
    assert why_idle(rebalance(), planned, 0, NOW) is None
    assert why_idle(rebalance(), [details(Phase.BACKFILL)], 0, NOW) is None
    kept = [details(Phase.CLEANUP, cut_over_at=NOW - timedelta(seconds=20))]
    assert why_idle(rebalance(), kept, 0, NOW) == "the old copies are kept for a rollback, for 40 s more"
    held = [details(Phase.CLEANUP, held="differs")]
    told = why_idle(rebalance("failed"), held, 0, NOW)
    assert told is not None
    assert told.startswith("bucket 7 waits for you: differs; ")
    assert "voltroute rebalance resolve 3" in told


def facts(*owned: int, **more: Any) -> Facts:
    mine = frozenset(owned)
    given: dict[str, Any] = {"identity": None, "owned": mine, "attached": mine, "fenced": frozenset()}
    return Facts(**{**given, "half_detached": 0, "strangers": (), "moves": {}, **more})


def broken(map_: ShardMap, shards: dict[str, Facts], *moves: Move) -> list[str]:
    return [f"{rule.name}: {rule.found}" for rule in judge("here", map_, shards, moves) if not rule.ok]


def test_invariants() -> None:
    two = ShardMap(1, ("a", "b"))
    assert broken(two, {"a": facts(0), "b": facts(1)}) == []
    assert broken(two, {"a": facts(0, 1), "b": facts(1)}) == [
        "at most one shard accepts writes of a bucket: not so: 1 on a, b",
        "no other shard says that it owns it: not so: 1 on a",
    ]
    assert broken(two, {"a": facts(), "b": facts(1)}) == [
        "the map's owner has the bucket: not so: 0 on a",
        "the map's owner accepts its writes: not so: 0 on a",
    ]
    fenced = facts(0, fenced=frozenset({0}), moves={0: (3, "fenced")})
    assert broken(two, {"a": fenced, "b": facts(1)}) == [
        "the map's owner accepts its writes: not so: 0 on a",
        "no fence or record without a move: not so: fence of 0 on a, record of move 3 on a",
    ]
    moving = Move(3, 1, 0, "a", "b", Phase.FENCE)
    target = facts(1, moves={0: (3, "copying")})
    assert broken(two, {"a": fenced, "b": target}, moving) == []
    assert broken(two, {"a": fenced, "b": facts(0, 1)}, moving) == []
    strange = {"a": facts(0, identity="there a"), "b": facts(1, strangers=("x is attached to y DEFAULT",))}
    assert broken(two, strange) == [
        "every shard is the one that the catalog means: not so: a is there a",
        "no table that voltroute did not make: not so: x is attached to y DEFAULT on b",
    ]
    held = Move(3, 1, 0, "a", "b", Phase.CUTOVER, held="strange")
    assert broken(two, {"a": fenced, "b": target}, held) == [
        (
            "no move waits for an operator: not so: move 3 of bucket 0 (strange; a: fenced, takes no writes; "
            "b: copying, takes no writes)"
        )
    ]
