"""For operators: liveness, readiness, shards, metrics, and the texts behind the problems."""

import asyncio
import time
from collections.abc import Iterable

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from router.answers import Live, Ready, ShardInfo, ShardList, Shards, json_response
from router.context import Router, router_of
from router.metrics import Gauges, exposition
from router.parameters import check_known
from router.problems import NOT_FOUND, NOT_READY, PROBLEMS, ProblemError, retry_after
from shards import queries
from shards.breaker import BreakerState
from shards.cluster import Shard
from shards.errors import ShardError
from shards.pools import ShardPool
from shards.queries import Item

SIZE_TIMEOUT_S = 2.0


async def livez(request: Request) -> Response:
    """The process answers. Depends on nothing else."""
    check_known(request, ())
    return json_response(Live(live=True))


async def readyz(request: Request) -> Response:
    """Whether to send requests here: not while stopping, not without a map, not when every shard is away."""
    check_known(request, ())
    router = router_of(request)
    breakers = {name: shard.writer.use().breaker.value for name, shard in router.cluster.shards.items()}
    if router.stopping:
        reason = "the router is stopping"
    elif not router.cluster.has_map:
        reason = "no shard map was read from the catalog yet"
    elif all(state == BreakerState.OPEN for state in breakers.values()):
        reason = "no shard can be reached"
    else:
        return json_response(Ready(ready=True, epoch=router.cluster.map.epoch, shards=breakers))
    raise ProblemError(NOT_READY, reason, headers=retry_after(1), extensions={"shards": breakers})


async def shard_list(request: Request) -> Response:
    """The map, and size and health of each shard; one that does not answer is listed as such."""
    check_known(request, ())
    router = router_of(request)
    deadline = min(router.query_deadline(), time.monotonic() + SIZE_TIMEOUT_S)
    names = sorted(router.cluster.shards)
    found = await asyncio.gather(*(_size(router.cluster.shards[name], deadline) for name in names))
    items = [_shard_info(router, name, size) for name, size in zip(names, found, strict=True)]
    missing = [item.name for item in items if not item.reachable]
    shard_map = router.cluster.map
    counted = Shards(len(items), len(items) - len(missing), missing)
    answer = ShardList(items, None, shard_map.epoch, shard_map.bucket_count, is_partial=bool(missing), shards=counted)
    return json_response(answer)


async def _size(shard: Shard, deadline: float) -> Item | ShardError:
    try:
        async with shard.reader.connection(deadline) as connection:
            return await queries.size(connection)
    except ShardError as error:
        return error


def _shard_info(router: Router, name: str, size: Item | ShardError) -> ShardInfo:
    shard = router.cluster.shards[name]
    use = shard.writer.use()
    answered = None if isinstance(size, ShardError) else size
    return ShardInfo(
        name=name,
        state=shard.record.state,
        reachable=answered is not None,
        buckets=list(router.cluster.map.by_shard.get(name, ())),
        size_bytes=answered["size_bytes"] if answered else None,
        readings_estimate=answered["readings_estimate"] if answered else None,
        breaker=use.breaker.value,
        pool_open=use.open,
        pool_idle=use.idle,
        queued_readings=sum(lane.queued for (owner, _), lane in router.dispatcher.lanes.items() if owner == name),
        detail=size.detail if isinstance(size, ShardError) else None,
    )


async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    check_known(request, ())
    router = router_of(request)
    return Response(exposition(lambda: gauges(router)), media_type=CONTENT_TYPE_LATEST)


def gauges(router: Router) -> Gauges:
    """Gauges of the moment: queues, pools, breakers, buckets, epoch."""
    cluster, lanes = router.cluster, router.dispatcher.lanes.items()
    pools = [(name, role, pool.use()) for name, s in cluster.shards.items() for role, pool in _pools(s)]
    lane_labels = ("shard", "kind")
    yield (
        "voltroute_queue_readings",
        "Readings waiting for a transaction",
        lane_labels,
        [((shard, kind.name), lane.queued) for (shard, kind), lane in lanes],
    )
    yield (
        "voltroute_batches_in_flight",
        "Transactions under way",
        lane_labels,
        [((shard, kind.name), lane.in_flight) for (shard, kind), lane in lanes],
    )
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
    if cluster.has_map:
        owned = [((name,), float(len(buckets))) for name, buckets in cluster.map.by_shard.items()]
        yield "voltroute_shard_buckets", "Buckets that a shard owns", ("shard",), owned
        yield "voltroute_map_epoch", "Epoch of the map in use", (), [((), cluster.map.epoch)]
    phases = router.runner.phases.items() if router.runner else ()
    moves = [((phase.value,), float(count)) for phase, count in phases]
    yield "voltroute_moves_open", "Open moves, where this router's runner leads", ("phase",), moves
    yield "voltroute_runner_leads", "1 when this router carries out the moves", (), [((), float(leads(router)))]
    yield "voltroute_request_body_bytes", "Memory held by request bodies", (), [((), router.body_bytes)]


def leads(router: Router) -> bool:
    """Whether this router is the one that carries out moves."""
    return router.runner is not None and router.runner.leads


def _pools(shard: Shard) -> Iterable[tuple[str, ShardPool]]:
    return (("writer", shard.writer), ("reader", shard.reader))


async def problem(request: Request) -> Response:
    """Cause and remedy of a problem type, as text."""
    check_known(request, ())
    found = PROBLEMS.get(request.path_params["slug"])
    if found is None:
        detail = f"known problems: {', '.join(sorted(PROBLEMS))}"
        raise ProblemError(NOT_FOUND, detail)
    return PlainTextResponse(f"{found.title} (HTTP {found.status})\n\nCause: {found.cause}\n\nRemedy: {found.remedy}\n")
