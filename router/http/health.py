"""Liveness, readiness, metrics, and the texts behind the problems."""

from collections import Counter
from collections.abc import Iterable
from importlib import metadata
from typing import Any, Final

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from router.context import Router
from router.http.endpoint import Call, Endpoint
from router.metrics import Gauges, exposition
from router.wire.answers import Index, Live, Ready, ShardReady
from router.wire.openapi import NO_KEY, Operation
from router.wire.problems import NOT_FOUND, NOT_READY, PROBLEMS, ProblemError, retry_after
from router.wire.queries import ProblemQuery
from shards.cluster.shard import Shard
from shards.errors import Cause
from shards.postgres.breaker import BreakerState
from shards.postgres.pools import ShardPool


async def _livez(_call: Call) -> msgspec.Struct:
    """The process answers. Depends on nothing else."""
    return Live(live=True)


async def _readyz(call: Call) -> msgspec.Struct:
    """Whether to send requests here: not while stopping, not without a map, not when no shard takes writes."""
    router = call.router
    shards = {name: _ready(shard) for name, shard in router.cluster.shards.items()}
    if router.stopping:
        reason = "the router is stopping"
    elif not router.cluster.has_map:
        reason = "no shard map was read from the catalog yet"
    elif not any(each.writes for each in shards.values()):
        reason = "no shard takes writes"
    else:
        return Ready(ready=True, epoch=router.cluster.map.epoch, shards=shards)
    told = {
        name: {"breaker": each.breaker, "writes": each.writes, "reads": each.reads} for name, each in shards.items()
    }
    raise ProblemError(NOT_READY, reason, headers=retry_after(1), extensions={"shards": told})


def _ready(shard: Shard) -> ShardReady:
    writer, reader = shard.writer.use(), shard.reader.use()
    return ShardReady(breaker=writer.breaker.value, writes=not writer.failing, reads=not reader.failing)


async def _metrics(call: Call) -> Response:
    """Prometheus' text format; of all workers, where there are some."""
    text, siblings = own_metrics(call.router), call.router.siblings
    return Response(await siblings.merged(text) if siblings else text, media_type=CONTENT_TYPE_LATEST)


def own_metrics(router: Router) -> bytes:
    """This process' metrics."""
    return exposition(lambda: gauges(router))


def gauges(router: Router) -> Gauges:
    """Gauges of the moment: queues, pools, breakers, causes, buckets, epoch, moves."""
    yield from _lane_gauges(router)
    yield from _pool_gauges(router)
    yield from router.figures.gauges()
    yield from _replica_gauges(router)
    yield from _status_gauges(router)
    cluster = router.cluster
    if cluster.has_map:
        owned = [((name,), float(len(buckets))) for name, buckets in cluster.map.by_shard.items()]
        yield "voltroute_shard_buckets", "Buckets that a shard owns", ("shard",), owned
        yield "voltroute_map_epoch", "Epoch of the map in use", (), [((), cluster.map.epoch)]
        yield "voltroute_kinds_epoch", "Epoch of the kinds in use", (), [((), cluster.kinds.epoch)]
    phases = router.moves.phases.items() if router.moves else ()
    moves = [((phase.value,), float(count)) for phase, count in phases]
    yield "voltroute_moves_open", "Open moves, where this router leads", ("phase",), moves
    held = router.moves.held if router.moves else 0
    yield "voltroute_moves_held", "Open moves that wait for an operator, where this router leads", (), [((), held)]
    ratio = None if router.efficiency is None else router.efficiency.ratio
    yield (
        "vehicle_efficiency_ratio",
        "DC delivered / AC consumed within pairings of all tenants over the last hour, where this router leads",
        (),
        [] if ratio is None else [((), ratio)],
    )
    leads = router.leader is not None and router.leader.leads
    yield "voltroute_runner_leads", "1 when this router is the leader", (), [((), float(leads))]
    yield "voltroute_request_body_bytes", "Memory held by request bodies", (), [((), router.intake.budget.held)]
    yield "voltroute_connections", "Open client connections", (), [((), float(router.connections()))]


def _status_gauges(router: Router) -> Gauges:
    if router.statuses is not None:
        up, owed = router.statuses.is_up, router.statuses.owed
        yield "voltroute_status_cache_up", "Whether Redis answered the last time", (), [((), float(up))]
        yield "voltroute_status_cache_owed", "Statuses still to be deleted from Redis", (), [((), float(owed))]


def _replica_gauges(router: Router) -> Gauges:
    states = [(name, each) for name, shard in router.cluster.shards.items() for each in shard.replicas.states()]
    yield (
        "voltroute_replica_lag_seconds",
        "How far a replica is behind its primary; without a value while nobody knows",
        ("shard", "replica"),
        [((name, each.name), each.lag_s) for name, each in states if each.lag_s is not None],
    )
    yield (
        "voltroute_replica_read",
        "Whether history and analytics may be read from a replica now",
        ("shard", "replica"),
        [((name, each.name), float(each.why_not is None)) for name, each in states],
    )


def _lane_gauges(router: Router) -> Gauges:
    labels = ("shard", "kind")
    queued: Counter[tuple[str, str]] = Counter()  # of a kind that was just declared anew there may be two lanes
    in_flight: Counter[tuple[str, str]] = Counter()
    for (shard, kind), lane in router.intake.dispatcher.lanes.items():
        queued[shard, kind.name] += lane.queued
        in_flight[shard, kind.name] += lane.in_flight
    yield (
        "voltroute_queue_readings",
        "Readings waiting for a transaction",
        labels,
        list(queued.items()),
    )
    yield (
        "voltroute_batches_in_flight",
        "Transactions under way",
        labels,
        list(in_flight.items()),
    )


def _pool_gauges(router: Router) -> Gauges:
    pools = [(name, role, pool.use()) for name, s in router.cluster.shards.items() for role, pool in _pools(s)]
    samples = [((name, role, "idle"), float(use.idle)) for name, role, use in pools]
    samples += [((name, role, "in_use"), float(use.open - use.idle)) for name, role, use in pools]
    yield "voltroute_pool_connections", "Connections to a shard", ("shard", "login", "state"), samples
    yield (
        "voltroute_pool_connections_max",
        "Connections allowed to a shard",
        ("shard", "login"),
        [((name, role), use.max_size) for name, role, use in pools],
    )
    yield (
        "voltroute_shard_up",
        "0 when the breaker keeps requests away from a shard",
        ("shard", "login"),
        [((name, role), float(use.breaker is BreakerState.CLOSED)) for name, role, use in pools],
    )
    yield (
        "voltroute_shard_unavailable",
        "1 for the cause for which a shard was last unavailable, until it answers again",
        ("shard", "login", "cause"),
        [((name, role, cause.value), float(use.cause is cause)) for name, role, use in pools for cause in Cause],
    )


def _pools(shard: Shard) -> Iterable[tuple[str, ShardPool]]:
    both = (("writer", shard.writer), ("reader", shard.reader))
    return both if shard.monitor is None else (*both, ("monitor", shard.monitor))


async def _index(_call: Call) -> msgspec.Struct:
    """Where everything is."""
    return Index("voltroute", metadata.version("voltroute"), "/docs", "/openapi.json", "/readyz", "/metrics")


async def _problem(call: Call) -> Response:
    """Cause and remedy of a problem type, as text."""
    found = PROBLEMS.get(call.query.slug)
    if found is None:
        raise ProblemError(NOT_FOUND, f"known problems: {', '.join(sorted(PROBLEMS))}")
    return PlainTextResponse(f"{found.title} (HTTP {found.status})\n\nCause: {found.cause}\n\nRemedy: {found.remedy}\n")


def _open(path: str, name: str, summary: str, answer: Any = None, **more: Any) -> Operation:
    return Operation("get", path, name, summary, "operations", answer, right=NO_KEY, **more)


ENDPOINTS: Final = (
    Endpoint(_open("/", "index", "Where everything is", Index), _index),
    Endpoint(_open("/livez", "livez", "Whether the process answers", Live), _livez),
    Endpoint(_open("/readyz", "readyz", "Whether to send requests here", Ready), _readyz),
    Endpoint(
        Operation(
            "get",
            "/metrics",
            "metrics",
            "Prometheus metrics",
            "operations",
            media_type="text/plain",
            right="admin",
        ),
        _metrics,
    ),
)
UNDOCUMENTED: Final = (
    Endpoint(_open("/problems/{slug}", "problem", "What a problem means", query=ProblemQuery), _problem),
)
