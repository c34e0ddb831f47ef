"""What there is to say about moves."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from router.wire.answers import MoveInfo, RebalanceInfo, RebalanceStatus, RunnerInfo
from shards.catalog import lease
from shards.catalog.database import Catalog
from shards.moves import rebalances
from shards.moves.waiting import why_idle

# What a move met may name hosts, logins and devices: it is for whoever can reach the catalog.
UNTOLD: Final = "see `voltroute rebalance status`"


async def status(catalog: Catalog, deadline: float, *, reasons: bool) -> RebalanceStatus:
    """The newest rebalance, its moves, the leader. ShardError when the catalog does not answer.

    `reasons`: with the texts of what failed and what waits for an operator.
    """
    found = await rebalances.latest(catalog, deadline)
    seen = await lease.holder(catalog, deadline)
    runner = RunnerInfo(seen.name, seen.since, seen.silent_s, seen.leads) if seen else None
    if found is None:
        return RebalanceStatus(None, [], runner, "nothing was ever started")
    rebalance, moves = found
    if not reasons:
        rebalance = replace(rebalance, note=rebalance.note and UNTOLD)
        moves = [{**m, "held": m["held"] and UNTOLD, "last_error": m["last_error"] and UNTOLD} for m in moves]
    info = RebalanceInfo(
        rebalance.rebalance_id,
        rebalance.state,
        rebalance.reason,
        rebalance.created_at,
        rebalance.ended_at,
        rebalance.note,
        rebalance.parallel_max,
        rebalance.bytes_per_s_max,
        rebalance.keep_s,
    )
    items = [MoveInfo(**move) for move in moves]
    idle = why_idle(rebalance, moves, seen.silent_s if seen else None, datetime.now(UTC))
    return RebalanceStatus(info, items, runner, idle)
