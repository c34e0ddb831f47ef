"""The states of a move, of a shard's record of it and of a rebalance, with their legal transitions. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final


class Phase(StrEnum):
    """Where a move is. FENCE is the last from which it can be aborted; from CUTOVER on the target owns the bucket."""

    PLANNED = "planned"
    BACKFILL = "backfill"
    CATCHUP = "catchup"
    VERIFY = "verify"
    FENCE = "fence"
    CUTOVER = "cutover"
    CLEANUP = "cleanup"
    DONE = "done"
    ABORT = "abort"
    ABORTED = "aborted"
    ROLLBACK = "rollback"
    ROLLBACK_CLEANUP = "rollback_cleanup"
    ROLLED_BACK = "rolled_back"


FOLLOWING: Final[dict[Phase, frozenset[Phase]]] = {
    Phase.PLANNED: frozenset({Phase.BACKFILL, Phase.ABORT}),
    Phase.BACKFILL: frozenset({Phase.CATCHUP, Phase.ABORT}),
    Phase.CATCHUP: frozenset({Phase.VERIFY, Phase.ABORT}),
    Phase.VERIFY: frozenset({Phase.FENCE, Phase.ABORT}),
    Phase.FENCE: frozenset({Phase.CUTOVER, Phase.ABORT}),
    Phase.CUTOVER: frozenset({Phase.CLEANUP, Phase.ABORT}),  # the latter when the target cannot attach its tables
    Phase.CLEANUP: frozenset({Phase.DONE, Phase.ROLLBACK}),
    Phase.ABORT: frozenset({Phase.ABORTED, Phase.CUTOVER}),  # the latter when it was fenced already
    Phase.ROLLBACK: frozenset({Phase.ROLLBACK_CLEANUP, Phase.CLEANUP}),
    Phase.ROLLBACK_CLEANUP: frozenset({Phase.ROLLED_BACK}),
    Phase.DONE: frozenset(),
    Phase.ABORTED: frozenset(),
    Phase.ROLLED_BACK: frozenset(),
}
ENDED: Final = frozenset(phase for phase, following in FOLLOWING.items() if not following)
ABORTABLE: Final = frozenset({Phase.PLANNED, Phase.BACKFILL, Phase.CATCHUP, Phase.VERIFY, Phase.FENCE})
COPYING: Final = frozenset(
    {Phase.BACKFILL, Phase.CATCHUP, Phase.VERIFY, Phase.FENCE, Phase.CUTOVER, Phase.ABORT, Phase.ROLLBACK}
)


class Role(StrEnum):
    """A shard's part in a move."""

    SOURCE = "source"
    TARGET = "target"

    @property
    def other(self) -> "Role":
        """Who plays the other part."""
        return Role.SOURCE if self is Role.TARGET else Role.TARGET


class Recorded(StrEnum):
    """What a shard's own record says of a move. On the source it decides: COPYING may still be given up."""

    COPYING = "copying"
    FENCED = "fenced"
    ABORTED = "aborted"
    ATTACHED = "attached"
    RETURNED = "returned"
    DROPPING = "dropping"


# A record ends by being deleted, from any of the states without a follower.
RECORD_FOLLOWING: Final[dict[Role, dict[Recorded, frozenset[Recorded]]]] = {
    Role.SOURCE: {
        Recorded.COPYING: frozenset({Recorded.FENCED, Recorded.ABORTED}),
        Recorded.FENCED: frozenset({Recorded.DROPPING, Recorded.RETURNED}),
    },
    Role.TARGET: {
        Recorded.COPYING: frozenset({Recorded.ATTACHED, Recorded.ABORTED}),
        Recorded.ATTACHED: frozenset({Recorded.FENCED}),
        Recorded.FENCED: frozenset({Recorded.DROPPING}),
    },
}


class RebalanceState(StrEnum):
    """RUNNING and PAUSED may become each other; FAILED and CANCELLED begin no move; the three last are also ends."""

    RUNNING = "running"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    FAILED = "failed"
    DONE = "done"


# Of an open rebalance; it ends as DONE, FAILED or CANCELLED when its last move has ended.
REBALANCE_FOLLOWING: Final[dict[RebalanceState, frozenset[RebalanceState]]] = {
    RebalanceState.RUNNING: frozenset({RebalanceState.PAUSED, RebalanceState.CANCELLED, RebalanceState.FAILED}),
    RebalanceState.PAUSED: frozenset({RebalanceState.RUNNING, RebalanceState.CANCELLED, RebalanceState.FAILED}),
    RebalanceState.FAILED: frozenset({RebalanceState.CANCELLED}),
    RebalanceState.CANCELLED: frozenset({RebalanceState.FAILED}),
    RebalanceState.DONE: frozenset(),
}


class Step(StrEnum):
    """The places in a move before and after which something is committed: logged, and where tests end the process."""

    BEFORE_CLAIM = "before claim"
    AFTER_CLAIM = "after claim"
    BEFORE_PREPARE = "before prepare"
    AFTER_PREPARE = "after prepare"
    BEFORE_LEAF = "before leaf"
    AFTER_LEAF = "after leaf"
    BEFORE_PASS = "before pass"  # noqa: S105 - no password
    AFTER_PASS = "after pass"  # noqa: S105 - no password
    AFTER_MARK = "after mark"
    INSIDE_FENCE = "inside fence"
    AFTER_FENCE = "after fence"
    BEFORE_ADOPT = "before adopt"
    AFTER_ADOPT = "after adopt"
    AFTER_CUTOVER = "after cutover"
    BEFORE_GIVE_UP = "before give up"
    AFTER_GIVE_UP = "after give up"
    AFTER_DROPPING = "after dropping"
    BEFORE_DETACH = "before detach"
    AFTER_DETACH = "after detach"
    AFTER_DROP = "after drop"
    AFTER_FORGET = "after forget"
    AFTER_REVERSE_FENCE = "after reverse fence"
    BEFORE_RETURN = "before return"
    AFTER_RETURN = "after return"
    AFTER_REVERSE_CUTOVER = "after reverse cutover"
    BEFORE_ENTERING = "before entering"
    AFTER_ENTERING = "after entering"


@dataclass(frozen=True)
class Move:
    """One bucket on its way from `source` to `target`, by the catalog. `held`: why it waits for an operator."""

    move_id: int
    rebalance_id: int
    bucket: int
    source: str
    target: str
    phase: Phase
    cut_over_at: datetime | None = None
    held: str | None = None
    keeper: Role | None = None
    keeper_forced: bool = False
    keeper_alone: bool = False

    def shard(self, role: Role) -> str:
        """Name of the shard that plays `role`."""
        return self.source if role is Role.SOURCE else self.target


def check_step(before: Phase, after: Phase) -> None:
    """ValueError when no move goes from `before` to `after`."""
    if after not in FOLLOWING[before]:
        message = f"a move does not go from {before} to {after}"
        raise ValueError(message)


def check_record(role: Role, before: Recorded, after: Recorded) -> None:
    """ValueError when no shard's record of a move goes from `before` to `after`."""
    if after not in RECORD_FOLLOWING[role].get(before, frozenset()):
        message = f"the record of a {role} does not go from {before} to {after}"
        raise ValueError(message)


def startable(moves: Iterable[Move], parallel_max: int, *, new: bool) -> list[Move]:
    """The moves to work on side by side: those under way, then (if `new`) planned ones.

    A shard takes part in one copy at a time, so that no more than `parallel_max` pairs, all disjoint, are at it. What
    only waits for its cleanup or undoes something is always worked on.
    """
    chosen: list[Move] = []
    busy: set[str] = set()
    copies = 0
    ordered = sorted(moves, key=lambda move: (move.phase is Phase.PLANNED, move.move_id))
    for move in ordered:
        if move.phase in ENDED or move.held:
            continue
        planned = move.phase is Phase.PLANNED
        if planned and (not new or copies >= parallel_max or busy & {move.source, move.target}):
            continue
        if planned or move.phase in COPYING:
            copies += 1
            busy |= {move.source, move.target}
        chosen.append(move)
    return chosen


@dataclass(frozen=True)
class Rebalance:
    """A plan that was started. `keep_s`: how long the source's copy is kept after a cutover, for a rollback."""

    rebalance_id: int
    state: RebalanceState
    reason: str
    parallel_max: int
    bytes_per_s_max: int | None
    keep_s: float
    created_at: datetime
    ended_at: datetime | None
    note: str | None


def outcome(moves: Sequence[Move]) -> RebalanceState | None:
    """State of a rebalance whose moves have all ended; None while one is open."""
    phases = {move.phase for move in moves}
    if not phases <= ENDED:
        return None
    return RebalanceState.DONE if phases <= {Phase.DONE} else RebalanceState.CANCELLED
