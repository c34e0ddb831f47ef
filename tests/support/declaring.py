"""Declaring kinds while a router runs."""

from collections.abc import Callable
from typing import Any, Final

import httpx2

from shards.catalog.database import Catalog
from shards.kinds import Kind
from shards.operations import kinds
from tests.support.processes import eventually

QUICK: Final[dict[str, Any]] = {"runner": False, "map_poll_s": 0.05}


def silently(_text: str) -> None:
    """Nobody waits."""


async def learnt(router: httpx2.AsyncClient, known: Callable[[Any], bool]) -> None:
    """Wait until the router's kinds are such."""
    cluster = router.app.state.router.cluster  # type: ignore[attr-defined]
    await eventually(lambda: known(cluster.kinds.by_name))


async def make(catalog: Catalog, router: httpx2.AsyncClient, kind: Kind) -> None:
    """Declare a kind, and wait until the router takes it."""
    await kinds.create(catalog, kind, silently)
    await learnt(router, lambda by_name: kind.name in by_name)
