"""Why a rebalance does nothing at the moment. Pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from shards.moves.phases import ENDED, Phase, Rebalance, RebalanceState

RUNNER_SILENT_S: Final = 10.0
_ENDED: Final = {phase.value for phase in ENDED}


def why_idle(
    rebalance: Rebalance, moves: Sequence[Mapping[str, Any]], runner_silent_s: float | None, now: datetime
) -> str | None:
    """A reason in words, or None when something is being done."""
    held = [move for move in moves if move["held"] and move["phase"] not in _ENDED]
    if held:
        first = held[0]
        return (
            f"bucket {first['bucket']} waits for you: {first['held']}; look with `voltroute rebalance verify`, then "
            f"decide with `voltroute rebalance resolve {first['move_id']}`"
        )
    if rebalance.ended_at is not None:
        return f"the last rebalance ended: {rebalance.state}"
    if runner_silent_s is None or runner_silent_s > RUNNER_SILENT_S:
        return "no runner is alive: start a router, or `voltroute runner`"
    open_ = [move for move in moves if move["phase"] not in _ENDED]
    waiting = {Phase.PLANNED, Phase.CLEANUP, Phase.ROLLBACK_CLEANUP}
    if any(move["phase"] not in waiting for move in open_):
        return None
    return _why_all_wait(rebalance, open_, now)


def _why_all_wait(rebalance: Rebalance, open_: Sequence[Mapping[str, Any]], now: datetime) -> str | None:
    kept = [move for move in open_ if move["phase"] == Phase.CLEANUP]
    if rebalance.state is RebalanceState.PAUSED:
        return "paused: continue with `voltroute rebalance resume`"
    if len(kept) < len(open_) or not kept:
        return None
    last = max(move["cut_over_at"] or now for move in kept) + timedelta(seconds=rebalance.keep_s)
    wait = max((last - now).total_seconds(), 0)
    return f"the old copies are kept for a rollback, for {wait:.0f} s more"
