"""The ASGI application: routes, and what runs beside them."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import timedelta
from functools import cached_property, partial
from typing import Any, Final

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from router.access.keys import Access
from router.background import leader_of, store_told, told
from router.context import Router
from router.figures import Figures, HeavyFigures
from router.http import middleware
from router.http.health import own_metrics
from router.http.observed import RequestIds
from router.http.posts import Way
from router.http.protocol import ConnectionLimits, Connections
from router.http.surface import Surface, surface
from router.ingest.body import BodyLimits
from router.ingest.budget import BodyBudget
from router.ingest.dispatch import Dispatcher
from router.ingest.intake import Intake
from router.ingest.queue import LaneLimits
from router.reads.overall import FleetEfficiency
from router.settings import Settings, UnknownFields
from router.siblings import Siblings
from router.statuses.cache import StatusCache
from router.statuses.store import RedisStore
from router.tracing import Tracing, open_tracing
from router.wire.problems import ProblemError
from shards.catalog.database import Catalog
from shards.cluster.live import Cluster
from shards.errors import ClusterError, NoCluster, ShardError
from shards.kinds import BUILT_IN, Kinds

_log: Final = structlog.stdlib.get_logger(__name__)
RESTART_PAUSE_S: Final = 1.0
_HANDLERS: Final[dict[Any, Any]] = {
    ProblemError: middleware.on_problem,
    HTTPException: middleware.on_http_exception,
    ShardError: middleware.on_shard_error,
    NoCluster: middleware.on_no_map,
    Exception: middleware.on_bug,
}


class RouterApp(Starlette):
    """Starlette behind the middleware, which lets the hot path around it."""

    def __init__(self, way: Way, origins: Sequence[str], tracing: Tracing | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.way = way
        self.tracing = tracing
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._outermost(scope, receive, send)

    def serve(self, answers: Surface) -> None:
        """Answer this from now on. Requests that have found their endpoint are answered by it."""
        self.way.paths.endpoints = answers.ingest
        self.router.routes = answers.routes

    @cached_property
    def _outermost(self) -> ASGIApp:
        way = self.way
        ours = middleware.Middleware(super().__call__, self, way.gate, way.paths, way.request_ids, self.tracing)
        if not self._origins:
            return ours
        return CORSMiddleware(
            ours,
            allow_origins=self._origins,
            allow_methods=("*",),
            allow_headers=("*",),
            expose_headers=("X-Request-ID", "X-As-Of", "X-Cache", "Retry-After"),
        )


def create_app(
    settings: Settings, connections: Connections | None = None, siblings: Siblings | None = None
) -> RouterApp:
    """A router for the cluster of `settings.catalog_dsn`. NoCluster when that is missing."""
    if settings.catalog_dsn is None:
        raise NoCluster("no cluster to serve: set VOLTROUTE_CATALOG_DSN, or use --data with an embedded cluster")
    catalog_dsn = settings.catalog_dsn.get_secret_value()
    tracing = open_tracing(settings.traces_ratio)
    store = _store(settings)
    ignoring = settings.unknown_fields is UnknownFields.IGNORE
    connections = connections or Connections(ConnectionLimits(2**31, 2**31, 3600, 3600, 3600))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        catalog = Catalog(catalog_dsn, changed=told, apart=True)
        limits, rules = settings.pool_limits(), settings.replica_rules()
        cluster = Cluster(catalog, limits, settings.query_timeout_s, told, rules, settings.cache_file)
        statuses = StatusCache(store, cluster, settings.status_ttl_s) if store else None
        intake, figures = _intake(settings, cluster, statuses), Figures(cluster)
        cluster.on_kinds = partial(_follow, router_app, intake.dispatcher, ignoring)
        router = Router(settings, cluster, intake, figures, siblings=siblings, statuses=statuses)
        router.connections = lambda: len(connections.open)
        app.state.router, app.state.intake = router, router.intake
        router_app.way.open(router.intake)
        await _begin(cluster)
        background = asyncio.create_task(_background(router, connections))
        try:
            async with siblings.told(partial(own_metrics, router)) if siblings else nullcontext():
                yield
        finally:
            router.stopping = True
            await _stop(router, background)
            if tracing is not None:
                await asyncio.to_thread(tracing.close)

    first = surface(BUILT_IN, ignoring=ignoring)
    open_paths = first.open_paths | ({"/metrics"} if settings.metrics_open else set())
    router_app = RouterApp(
        Way(middleware.IngestPaths(first.ingest), middleware.Gate(settings.hosts(), open_paths), RequestIds()),
        settings.origins(),
        tracing,
        routes=first.routes,
        exception_handlers=_HANDLERS,
        lifespan=lifespan,
    )
    router_app.router.redirect_slashes = False
    return router_app


async def _begin(cluster: Cluster) -> None:
    """Read the catalog; while it does not answer, go on with what was known last."""
    try:
        await cluster.remember()
    except ClusterError as error:
        _log.warning("known_map_refused", detail=str(error))
    try:
        await cluster.refresh()
    except ClusterError as error:
        _log.warning("no_map_yet", detail=str(error))
    except ShardError as error:
        _log.warning("no_map_yet", detail=str(error))
        try:
            await cluster.recall()
        except (ShardError, ClusterError) as refused:
            _log.warning("known_map_refused", detail=str(refused))
        else:
            _log.warning("known_map_used", epoch=cluster.map.epoch)


def _follow(app: RouterApp, dispatcher: Dispatcher, ignoring: bool, kinds: Kinds) -> None:  # noqa: FBT001 - bound
    """Take what the cluster has declared. ClusterError, and everything stays as it is, when that cannot be."""
    try:
        app.serve(surface(kinds, ignoring=ignoring))
    except Exception as error:
        _log.exception("kinds_not_usable", epoch=kinds.epoch)
        message = f"the kinds of the catalog cannot be used: {error}"
        raise ClusterError(message) from error
    dispatcher.follow(kinds)


def _store(settings: Settings) -> RedisStore | None:
    """Where statuses are kept. InvalidArgument or MachineError when that cannot be."""
    url = settings.redis_url.get_secret_value() if settings.redis_url else ""
    return RedisStore(url, settings.redis_timeout_s, settings.status_ttl_s, store_told) if url else None


def _intake(settings: Settings, cluster: Cluster, statuses: StatusCache | None) -> Intake:
    limits = LaneLimits(
        batch_readings_max=min(settings.batch_readings_max, settings.queue_readings_max),
        in_flight_max=settings.batches_in_flight_max,
        queue_readings_max=settings.queue_readings_max,
        commit_timeout_s=settings.ingest_timeout_s,
        wait_max_s=settings.queue_wait_max_s,
    )
    return Intake(
        Access(
            lambda: cluster.keyring,
            lambda: cluster.map.pinned,
            open_without_keys=settings.insecure or settings.is_loopback,
        ),
        Dispatcher(cluster, limits, _log_fault, statuses.written if statuses else None),
        BodyBudget(settings.bodies_bytes_max),
        BodyLimits(settings.body_bytes_max, settings.body_idle_s, settings.body_rate_min),
        timeout_s=settings.ingest_timeout_s,
        readings_max=settings.readings_max,
        age_max=timedelta(days=settings.reading_age_max_days),
        ahead_max=timedelta(seconds=settings.reading_ahead_max_s),
    )


def _log_fault(error: ShardError) -> None:
    _log.error("shard_fault", shard=error.shard, detail=error.detail)


async def _background(router: Router, connections: Connections) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_forever(lambda: router.cluster.watch(router.settings.map_poll_s)))
        group.create_task(_forever(connections.sweep))
        group.create_task(_forever(router.figures.run))
        if router.statuses is not None:
            group.create_task(_forever(router.statuses.run))
        if router.settings.runner:
            name = f"{socket.gethostname()}:{id(router) & 0xFFFF:04x}"
            router.efficiency = FleetEfficiency(router.cluster, router.settings.efficiency_warning)
            router.leader, router.moves = leader_of(
                router.cluster.catalog,
                name,
                (router.settings.partitions_s, router.settings.lifecycle_s, router.settings.rollups_s),
                router.intake.dispatcher,
                [router.efficiency, HeavyFigures(router.figures)],
            )
            group.create_task(_forever(router.leader.run))


async def _forever(work: Callable[[], Awaitable[None]]) -> None:
    """Keep a background task going: a failure that nobody foresaw is logged, not the end of it."""
    while True:
        try:
            await work()
        except Exception:  # noqa: BLE001 - whatever it is
            _log.exception("background_failed")
        await asyncio.sleep(RESTART_PAUSE_S)


async def _stop(router: Router, background: asyncio.Task[None]) -> None:
    """Finish what was accepted, then let go of everything."""
    background.cancel()
    await asyncio.gather(background, return_exceptions=True)
    try:
        async with asyncio.timeout(router.settings.drain_timeout_s):
            await router.intake.dispatcher.drain()
    except TimeoutError:
        _log.warning("drain_timed_out")
    if router.statuses is not None:
        await router.statuses.close()
    await router.cluster.close()
