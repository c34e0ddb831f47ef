"""The phases of a move and who may run beside whom. Pure: no I/O, no clock."""

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
    Phase.CUTOVER: frozenset({Phase.CLEANUP}),
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


@dataclass(frozen=True)
class Move:
    """One bucket on its way from `source` to `target`, as the catalog knows it."""

    move_id: int
    rebalance_id: int
    bucket: int
    source: str
    target: str
    phase: Phase
    cut_over_at: datetime | None = None


def check_step(before: Phase, after: Phase) -> None:
    """ValueError when no move goes from `before` to `after`."""
    if after not in FOLLOWING[before]:
        message = f"a move does not go from {before} to {after}"
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
        if move.phase in ENDED:
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
    state: str
    reason: str
    parallel_max: int
    bytes_per_s_max: int | None
    keep_s: float
    created_at: datetime
    ended_at: datetime | None
    note: str | None


def outcome(moves: Sequence[Move]) -> str | None:
    """State of a rebalance whose moves have all ended; None while one is open."""
    phases = {move.phase for move in moves}
    if not phases <= ENDED:
        return None
    return "done" if phases <= {Phase.DONE} else "cancelled"
