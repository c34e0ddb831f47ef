"""The router's part in moves: it runs them when it is the leader, shows them at GET /v1/rebalance, and counts them."""

import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import structlog
from starlette.requests import Request
from starlette.responses import Response

from router.answers import MoveInfo, RebalanceInfo, RebalanceStatus, RunnerInfo, json_response
from router.context import Router, router_of
from router.metrics import MOVE_BYTES, MOVE_FAILURES, MOVE_LAG_S, MOVE_PAUSE_S, MOVE_PHASES, MOVE_ROWS
from router.parameters import check_known
from shards import rebalances
from shards.catalog import Catalog
from shards.moves import Move
from shards.runner import Runner, Watcher
from shards.waiting import why_idle

_log: Final = structlog.stdlib.get_logger(__name__)
_MEASURES: Final[dict[str, Callable[[float], None]]] = {
    "rows": MOVE_ROWS.inc,
    "bytes": MOVE_BYTES.inc,
    "lag_s": MOVE_LAG_S.set,
    "pause_s": MOVE_PAUSE_S.observe,
}
BUSY_READINGS: Final = 200  # waiting in a lane: then copies take less of the time


def new_runner(catalog: Catalog, router: Router | None = None) -> Runner:
    """A runner for this process; beside a router, copies make room for its readings."""
    busy = (lambda: _is_busy(router)) if router else (lambda: False)
    watcher = Watcher(failed=_failed, entered=_entered, busy=busy, measure=_measure)
    return Runner(catalog, f"{socket.gethostname()}:{id(catalog) & 0xFFFF:04x}", watcher)


def _is_busy(router: Router) -> bool:
    return any(lane.queued > BUSY_READINGS for lane in router.dispatcher.lanes.values())


def _entered(move: Move) -> None:
    MOVE_PHASES.labels(move.phase.value).inc()
    _log.info("move", bucket=move.bucket, source=move.source, target=move.target, phase=move.phase.value)


def _measure(name: str, value: float) -> None:
    _MEASURES[name](value)


def _failed(move: Move, error: Exception) -> None:
    MOVE_FAILURES.labels(move.phase.value).inc()
    detail = str(error) or type(error).__name__
    _log.warning("move_failed", bucket=move.bucket, phase=move.phase.value, detail=detail)


async def show(request: Request) -> Response:
    """The newest rebalance, its moves, the runner, and why nothing moves if nothing does."""
    check_known(request, ())
    router = router_of(request)
    catalog, deadline = router.cluster.catalog, router.query_deadline()
    return json_response(await status(catalog, deadline))


async def status(catalog: Catalog, deadline: float) -> RebalanceStatus:
    """What there is to say about moves. ShardError when the catalog is away."""
    found = await rebalances.latest(catalog, deadline)
    seen = await rebalances.runner_seen(catalog, deadline)
    runner = RunnerInfo(seen["name"], seen["since"], seen["silent_s"]) if seen else None
    if found is None:
        return RebalanceStatus(None, [], runner, "nothing was ever started")
    rebalance, moves = found
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
    idle = why_idle(rebalance, moves, seen["silent_s"] if seen else None, datetime.now(UTC))
    return RebalanceStatus(info, items, runner, idle)
