"""What the endpoints share: settings, cluster, the way of readings, and whether the router is stopping."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from starlette.requests import Request

from router.figures import Figures
from router.ingest.intake import Intake
from router.reads.overall import FleetEfficiency
from router.reads.scope import Scope
from router.settings import Settings
from router.siblings import Siblings
from router.statuses.cache import StatusCache
from shards.cluster.live import Cluster
from shards.duties.leader import Leader
from shards.moves.runner import Moves


@dataclass
class Router:
    """One running router. `leader` and its duties are None when it does not stand for election."""

    settings: Settings
    cluster: Cluster
    intake: Intake
    figures: Figures
    stopping: bool = False
    leader: Leader | None = None
    moves: Moves | None = None
    efficiency: FleetEfficiency | None = None
    connections: Callable[[], int] = field(default=lambda: 0)
    siblings: Siblings | None = None  # the other workers on the port
    statuses: StatusCache | None = None  # kept in Redis, where there is one

    def query_deadline(self) -> float:
        """When a request other than ingest that begins now must be answered (monotonic seconds)."""
        return time.monotonic() + self.settings.query_timeout_s

    def scope(self, tenant: int, reader: str = "", *, stale: bool = False) -> Scope:
        """What a tenant's read that begins now gets; `reader`: who asks, a key or an address."""
        settings = self.settings
        return Scope(
            self.cluster,
            tenant,
            self.query_deadline(),
            datetime.now(UTC),
            settings.efficiency_warning,
            settings.efficiency_critical,
            f"{tenant} {reader}",
            stale,
        )


def router_of(request: Request) -> Router:
    """The router that serves this request."""
    router = request.app.state.router
    if not isinstance(router, Router):
        raise TypeError(router)
    return router
