"""The ASGI application: routes, and what runs beside them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cached_property

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send
from swagger_ui_bundle import swagger_ui_path

from router import analytics, devices, front, openapi, ops, pairing, rebalance
from router.batcher import LaneLimits
from router.context import Router
from router.dispatch import Dispatcher
from router.ingest import ENDPOINTS
from router.metrics import PARTITIONS_MADE
from router.problems import ProblemError
from router.settings import Settings
from shards.catalog import Catalog
from shards.cluster import Cluster
from shards.errors import ClusterError, ShardError
from shards.housekeeping import keep_house

_log = structlog.stdlib.get_logger(__name__)
RESTART_PAUSE_S = 1.0

ROUTES = [
    *(Route(path, endpoint, methods=["POST"]) for path, endpoint in ENDPOINTS.items()),
    Route("/v1/meters/{id}/status", devices.meter_status),
    Route("/v1/meters/{id}/history", devices.meter_history),
    Route("/v1/vehicles/{id}/status", devices.vehicle_status),
    Route("/v1/vehicles/{id}/history", devices.vehicle_history),
    Route("/v1/analytics/performance/{id}", analytics.performance),
    Route("/v1/analytics/fleet", analytics.fleet),
    Route("/v1/analytics/activity", analytics.activity),
    Route("/v1/pairings", pairing.Pairings),
    Route("/v1/shards", ops.shard_list),
    Route("/v1/rebalance", rebalance.show),
    Route("/livez", ops.livez),
    Route("/readyz", ops.readyz),
    Route("/metrics", ops.metrics),
    Route("/problems/{slug}", ops.problem),
    Route("/openapi.json", openapi.openapi_json),
    Route("/docs", openapi.docs),
    Mount("/docs/assets", StaticFiles(directory=swagger_ui_path)),
]


class RouterApp(Starlette):
    """Starlette behind the front, which lets the hot path around it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._front(scope, receive, send)

    @cached_property
    def _front(self) -> front.Front:
        return front.Front(super().__call__, self)


def create_app(settings: Settings) -> Starlette:
    """A router for the cluster of `settings.catalog_dsn`. ClusterError when that is missing."""
    if settings.catalog_dsn is None:
        message = "no cluster to serve: set VOLTROUTE_CATALOG_DSN, or use --data with an embedded cluster"
        raise ClusterError(message)
    catalog_dsn = settings.catalog_dsn.get_secret_value()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        cluster = Cluster(Catalog(catalog_dsn), settings.pool_limits(), settings.query_timeout_s)
        router = Router(settings, cluster, Dispatcher(cluster, _lane_limits(settings), _log_fault))
        app.state.router = router
        try:
            await cluster.refresh()
        except (ShardError, ClusterError) as error:
            _log.warning("no_map_yet", detail=str(error))
        background = asyncio.create_task(_background(router))
        try:
            yield
        finally:
            router.stopping = True
            await _stop(router, background)

    app = RouterApp(
        routes=ROUTES,
        exception_handlers={
            ProblemError: front.on_problem,
            HTTPException: front.on_http_exception,
            ShardError: front.on_shard_error,
            ClusterError: front.on_cluster_error,
            Exception: front.on_bug,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.openapi = openapi.encoded_document()
    return app


def _lane_limits(settings: Settings) -> LaneLimits:
    return LaneLimits(
        batch_readings_max=min(settings.batch_readings_max, settings.queue_readings_max),
        in_flight_max=settings.batches_in_flight_max,
        queue_readings_max=settings.queue_readings_max,
        commit_timeout_s=settings.ingest_timeout_s,
    )


def _log_fault(error: ShardError) -> None:
    _log.error("shard_fault", shard=error.shard, detail=error.detail)


async def _background(router: Router) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_forever(lambda: router.cluster.watch(router.settings.map_poll_s)))
        group.create_task(_forever(lambda: _housekeeping(router)))
        if router.settings.runner:
            router.runner = rebalance.new_runner(router.cluster.catalog, router)
            group.create_task(_forever(router.runner.run))


async def _forever(work: Callable[[], Awaitable[None]]) -> None:
    """Keep a background task going: a failure that nobody foresaw is logged, not the end of it."""
    while True:
        try:
            await work()
        except Exception:  # noqa: BLE001 - whatever it is
            _log.exception("background_failed")
        await asyncio.sleep(RESTART_PAUSE_S)


async def _housekeeping(router: Router) -> None:
    while True:
        try:
            done = await keep_house(router.cluster)
        except ShardError as error:
            _log.warning("housekeeping_failed", detail=str(error))
        else:
            for shard, made in done.made.items():
                PARTITIONS_MADE.labels(shard).inc(made)
            if any(done.made.values()) or done.failed:
                _log.info("housekeeping", made=done.made, failed=done.failed)
        await asyncio.sleep(router.settings.housekeeping_s)


async def _stop(router: Router, background: asyncio.Task[None]) -> None:
    """Finish what was accepted, then let go of everything."""
    background.cancel()
    await asyncio.gather(background, return_exceptions=True)
    try:
        async with asyncio.timeout(router.settings.drain_timeout_s):
            await router.dispatcher.drain()
    except TimeoutError:
        _log.warning("drain_timed_out")
    await router.cluster.close()
