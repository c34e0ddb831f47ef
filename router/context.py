"""What the endpoints share: settings, cluster, dispatcher, and whether the router is stopping."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

from starlette.requests import Request

from router.dispatch import Dispatcher
from router.settings import Settings
from shards.cluster import Cluster
from shards.runner import Runner


@dataclass
class Router:
    """One running router."""

    settings: Settings
    cluster: Cluster
    dispatcher: Dispatcher
    stopping: bool = False
    body_bytes: int = field(default=0)  # of all request bodies being worked on
    runner: Runner | None = None

    def query_deadline(self) -> float:
        """When a request other than ingest that begins now must be answered (monotonic seconds)."""
        return time.monotonic() + self.settings.query_timeout_s


def router_of(request: Request) -> Router:
    """The router that serves this request."""
    router = request.app.state.router
    if not isinstance(router, Router):
        raise TypeError(router)
    return router


def now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)
