"""A model of map, moves and routers, driven by hypothesis: whatever is interleaved, a bucket has one writable owner.

Each rule is one committed step, in the order in which the mover commits them; a crash is any pause between two. A
source may come back without its fence (a promoted replica, a restored backup), a target may be unable to attach, and
an operator decides about what is held: whatever was acknowledged by either side is there in the end.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shards.catalog.shard_map import ShardMap
from shards.moves.phases import ABORTABLE, ENDED, Move, Phase, check_step, startable
from shards.moves.placement import Place, make_plan
from shards.operations.check import Facts, judge

BUCKETS = 4
SHARDS = ("a", "b", "c")
ROUTERS = 3  # the last one refreshes its map only when it is refused


@dataclass
class Store:
    """One shard: what it holds of each bucket, and how its tables stand."""

    attached: set[int] = field(default_factory=set)
    loose: set[int] = field(default_factory=set)
    fenced: set[int] = field(default_factory=set)
    owned: set[int] = field(default_factory=set)
    data: dict[int, set[int]] = field(default_factory=dict)
    moves: dict[int, tuple[int, str]] = field(default_factory=dict)  # bucket -> (move, state)

    def writable(self, bucket: int) -> bool:
        return bucket in self.attached - self.fenced

    def drop(self, bucket: int) -> None:
        for each in (self.attached, self.loose, self.fenced, self.owned):
            each.discard(bucket)
        self.data.pop(bucket, None)

    def facts(self) -> Facts:
        owned, attached, fenced = (frozenset(each) for each in (self.owned, self.attached, self.fenced))
        return Facts(None, owned, attached, fenced, half_detached=0, strangers=(), moves=dict(self.moves))


class Ownership(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        owners = tuple(SHARDS[bucket % 2] for bucket in range(BUCKETS))  # c is new, and empty
        self.map = ShardMap(1, owners)
        self.stores = {name: Store() for name in SHARDS}
        for bucket, owner in enumerate(owners):
            store = self.stores[owner]
            store.attached.add(bucket)
            store.owned.add(bucket)
            store.data[bucket] = set()
        self.routers = [self.map] * ROUTERS
        self.moves: dict[int, Move] = {}
        self.acknowledged: list[tuple[int, int]] = []
        self.readings = 0
        self.epochs = [1]
        self.promoted: set[int] = (
            set()
        )  # buckets whose source forgot its fence: two may take writes until that is resolved

    def open_moves(self) -> list[Move]:
        return [move for move in self.moves.values() if move.phase not in ENDED]

    @rule(costs=st.lists(st.integers(1, 9), min_size=BUCKETS, max_size=BUCKETS), drained=st.sampled_from(SHARDS))
    @precondition(lambda self: not self.open_moves())
    def plan(self, costs: list[int], drained: str) -> None:
        places = [Place(name, draining=name == drained) for name in SHARDS]
        for planned in make_plan(self.map.owners, [float(c) for c in costs], places).moves:
            number = len(self.moves) + 1
            self.moves[number] = Move(number, 1, planned.bucket, planned.source, planned.target, Phase.PLANNED)

    @rule(data=st.data(), count=st.integers(1, 10))
    @precondition(lambda self: bool(startable(self.open_moves(), 2, new=True)))
    def step(self, data: Any, count: int) -> None:
        """Some move that may run makes its next committed step, or a few."""
        move = data.draw(st.sampled_from(startable(self.open_moves(), 2, new=True)))
        for _ in range(count):
            if move.phase not in ENDED and not move.held:
                getattr(self, f"_{move.phase.value}")(move, self.stores[move.source], self.stores[move.target])
                self.one_writer()
                self.nothing_lost()
                move = self.moves[move.move_id]

    def hold(self, move: Move) -> None:
        self.moves[move.move_id] = replace(move, held="not as recorded")

    def enter(self, move: Move, phase: Phase) -> None:
        check_step(move.phase, phase)
        self.moves[move.move_id] = replace(move, phase=phase)

    def _planned(self, move: Move, source: Store, target: Store) -> None:
        if move.bucket not in source.moves:
            source.moves[move.bucket] = (move.move_id, "copying")
        elif move.bucket not in target.moves:
            target.moves[move.bucket] = (move.move_id, "copying")
            target.loose.add(move.bucket)
            target.data[move.bucket] = set()
        else:
            self.enter(move, Phase.BACKFILL)

    def _carry(self, move: Move, source: Store, target: Store) -> None:
        target.data[move.bucket] |= source.data[move.bucket]

    def _backfill(self, move: Move, source: Store, target: Store) -> None:
        self._carry(move, source, target)
        self.enter(move, Phase.CATCHUP)

    def _catchup(self, move: Move, source: Store, target: Store) -> None:
        self._carry(move, source, target)
        self.enter(move, Phase.VERIFY)

    def _verify(self, move: Move, source: Store, target: Store) -> None:
        assert target.data[move.bucket] <= source.data[move.bucket]
        self.enter(move, Phase.FENCE)

    def _fence(self, move: Move, source: Store, target: Store) -> None:
        if source.moves[move.bucket][1] == "copying":
            source.moves[move.bucket] = (move.move_id, "fenced")
            source.fenced.add(move.bucket)
            self._carry(move, source, target)
            assert target.data[move.bucket] == source.data[move.bucket]
        else:
            self.enter(move, Phase.CUTOVER)

    def _cutover(self, move: Move, source: Store, target: Store) -> None:
        if target.moves[move.bucket][1] == "aborted":
            source.moves[move.bucket] = (move.move_id, "returned")
            source.fenced.discard(move.bucket)
            self.enter(move, Phase.ABORT)
        elif source.moves[move.bucket][1] != "fenced":
            self.hold(move)
        elif move.bucket not in target.attached:
            target.loose.discard(move.bucket)
            target.attached.add(move.bucket)
            target.owned.add(move.bucket)
            target.moves[move.bucket] = (move.move_id, "attached")
        else:
            self._give(move.bucket, move.target)
            self.enter(move, Phase.CLEANUP)

    def _give(self, bucket: int, owner: str) -> None:
        owners = list(self.map.owners)
        owners[bucket] = owner
        self.map = ShardMap(self.map.epoch + 1, tuple(owners))
        self.epochs.append(self.map.epoch)

    def _cleanup(self, move: Move, source: Store, target: Store) -> None:
        state = source.moves.get(move.bucket, (0, "gone"))[1]
        if state == "copying":
            self.hold(move)
        elif state == "fenced":
            target.data[move.bucket] |= source.data[move.bucket]
            source.moves[move.bucket] = (move.move_id, "dropping")
        elif state == "dropping":
            source.drop(move.bucket)
            del source.moves[move.bucket]
        elif move.bucket in target.moves:
            del target.moves[move.bucket]
        else:
            self.enter(move, Phase.DONE)

    def _abort(self, move: Move, source: Store, target: Store) -> None:
        state = source.moves.get(move.bucket, (0, "gone"))[1]
        if state == "fenced":
            self.enter(move, Phase.CUTOVER)
        elif state == "copying":
            source.moves[move.bucket] = (move.move_id, "aborted")
        elif move.bucket in target.moves:
            target.drop(move.bucket)
            del target.moves[move.bucket]
        elif state in {"aborted", "returned"}:
            del source.moves[move.bucket]
        else:
            self.enter(move, Phase.ABORTED)

    def _rollback(self, move: Move, source: Store, target: Store) -> None:
        state = source.moves.get(move.bucket, (0, "gone"))[1]
        if state == "copying":
            self.hold(move)
        elif state not in {"fenced", "returned"} or move.bucket not in target.moves:
            self.enter(move, Phase.CLEANUP)  # too late
        elif target.moves[move.bucket][1] == "attached":
            target.moves[move.bucket] = (move.move_id, "fenced")
            target.fenced.add(move.bucket)
            source.data[move.bucket] |= target.data[move.bucket]
        elif state == "fenced":
            source.moves[move.bucket] = (move.move_id, "returned")
            source.fenced.discard(move.bucket)
        else:
            self._give(move.bucket, move.source)
            self.enter(move, Phase.ROLLBACK_CLEANUP)

    def _rollback_cleanup(self, move: Move, source: Store, target: Store) -> None:
        if move.bucket in target.moves:
            source.data[move.bucket] |= target.data[move.bucket]
            target.drop(move.bucket)
            del target.moves[move.bucket]
        elif move.bucket in source.moves:
            del source.moves[move.bucket]
        else:
            self.enter(move, Phase.ROLLED_BACK)

    @rule(data=st.data(), chance=st.integers(0, 5))
    def cancel(self, data: Any, chance: int) -> None:
        candidates = [move for move in self.open_moves() if move.phase in ABORTABLE]
        if candidates and not chance:
            self.enter(data.draw(st.sampled_from(candidates)), Phase.ABORT)

    @rule(data=st.data())
    def roll_back(self, data: Any) -> None:
        candidates = [move for move in self.open_moves() if move.phase is Phase.CLEANUP]
        if candidates:
            self.enter(data.draw(st.sampled_from(candidates)), Phase.ROLLBACK)

    @rule(data=st.data())
    def forget_a_fence(self, data: Any) -> None:
        """The source comes back as it was before its fence."""
        fenced = [
            move
            for move in self.open_moves()
            if move.phase in {Phase.CUTOVER, Phase.CLEANUP}
            and self.stores[move.source].moves.get(move.bucket) == (move.move_id, "fenced")
        ]
        if fenced:
            move = data.draw(st.sampled_from(fenced))
            source = self.stores[move.source]
            source.moves[move.bucket] = (move.move_id, "copying")
            source.fenced.discard(move.bucket)
            self.promoted.add(move.bucket)

    @rule(data=st.data())
    def cannot_attach(self, data: Any) -> None:
        """Something made by hand is in the target's way, for good: its record says so before the source opens."""
        waiting = [
            move
            for move in self.open_moves()
            if move.phase is Phase.CUTOVER
            and not move.held
            and self.stores[move.target].moves.get(move.bucket) == (move.move_id, "copying")
            and self.stores[move.source].moves.get(move.bucket) == (move.move_id, "fenced")
        ]
        if waiting:
            move = data.draw(st.sampled_from(waiting))
            self.stores[move.target].moves[move.bucket] = (move.move_id, "aborted")

    @rule(data=st.data(), keep_source=st.booleans())
    def resolve(self, data: Any, keep_source: bool) -> None:
        """The other side is shut, what it has goes over, the keeper owns the bucket, then the map says so."""
        held = [move for move in self.open_moves() if move.held]
        if held:
            move = data.draw(st.sampled_from(held))
            source, target, bucket = self.stores[move.source], self.stores[move.target], move.bucket
            keeper, other = (source, target) if keep_source else (target, source)
            other.fenced.add(bucket)
            other.moves[bucket] = (move.move_id, "fenced")
            keeper.data.setdefault(bucket, set()).update(other.data.get(bucket, set()))
            keeper.loose.discard(bucket)
            keeper.fenced.discard(bucket)
            keeper.attached.add(bucket)
            keeper.owned.add(bucket)
            keeper.moves[bucket] = (move.move_id, "returned" if keep_source else "attached")
            self._give(bucket, move.source if keep_source else move.target)
            phase = Phase.ROLLBACK_CLEANUP if keep_source else Phase.CLEANUP
            self.moves[move.move_id] = replace(move, phase=phase, held=None)
            self.promoted.discard(bucket)

    @rule(router=st.integers(0, ROUTERS - 2))
    def refresh(self, router: int) -> None:
        assert self.map.epoch >= self.routers[router].epoch
        self.routers[router] = self.map

    @rule(router=st.integers(0, ROUTERS - 1), bucket=st.integers(0, BUCKETS - 1))
    def write(self, router: int, bucket: int) -> None:
        """By the router's map, then, once refused, by the newest; a reading that is refused twice is a 503."""
        self.readings += 1
        for _ in range(2):
            store = self.stores[self.routers[router].owner(bucket)]
            if store.writable(bucket):
                store.data[bucket].add(self.readings)
                self.acknowledged.append((bucket, self.readings))
                return
            self.routers[router] = self.map

    @invariant()
    def one_writer(self) -> None:
        facts = {name: store.facts() for name, store in self.stores.items()}
        rules = judge("cluster", self.map, facts, list(self.moves.values()))
        waived = {"no move waits for an operator"} | (
            {"at most one shard accepts writes of a bucket"} if self.promoted else set()
        )
        assert [each for each in rules if not each.ok and each.name not in waived] == []
        for bucket in set(range(BUCKETS)) - self.promoted:
            assert sum(store.writable(bucket) for store in self.stores.values()) <= 1

    @invariant()
    def nothing_lost(self) -> None:
        """What was acknowledged is on the owner: by the map, or the one that accepts writes already."""
        for bucket, number in self.acknowledged:
            if bucket in self.promoted:
                assert any(number in store.data.get(bucket, ()) for store in self.stores.values())
                continue
            writers = [store for store in self.stores.values() if store.writable(bucket)]
            owner = writers[0] if writers else self.stores[self.map.owner(bucket)]
            assert number in owner.data[bucket]

    @invariant()
    def every_map_reads_whole_buckets(self) -> None:
        """The owner by the map holds each bucket, so that no fan-out is short."""
        for bucket, owner in enumerate(self.map.owners):
            assert bucket in self.stores[owner].owned

    @invariant()
    def epochs_grow(self) -> None:
        assert self.epochs == sorted(set(self.epochs))


Ownership.TestCase.settings = settings(stateful_step_count=80, deadline=None, suppress_health_check=list(HealthCheck))
TestOwnership = Ownership.TestCase
