"""The direct path answers as ASGI does, byte for byte, whatever a connection sends."""

import itertools
from collections.abc import AsyncIterator
from typing import Final

import pytest_asyncio
from hypothesis import HealthCheck, given, settings

from tests.support.raw_http import DEVICE, Stream, answers, streams
from tests.support.routers import RouterProcess, router_process
from tests.support.servers import TestCluster

LIMITS: Final = {
    "VOLTROUTE_HEADER_TIMEOUT_S": "0.2",
    "VOLTROUTE_BODY_IDLE_S": "0.2",
    "VOLTROUTE_IDLE_TIMEOUT_S": "0.5",
    "VOLTROUTE_RUNNER": "false",
    "PYTHONHASHSEED": "0",  # Starlette's Allow header is a set
}
NOT_HTTP: Final = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 30\r\n"
    b"connection: close\r\n\r\nInvalid HTTP request received."
)
SIDES: Final = ("D", "A")  # direct, ASGI
_numbers = itertools.count()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def routers(cluster: TestCluster) -> AsyncIterator[dict[str, RouterProcess]]:
    async with (
        router_process(cluster.catalog_dsn, **LIMITS, VOLTROUTE_DIRECT_PATH="true") as direct,
        router_process(cluster.catalog_dsn, **LIMITS, VOLTROUTE_DIRECT_PATH="false") as asgi,
    ):
        yield dict(zip(SIDES, (direct, asgi), strict=True))


def device_of(side: str, number: int) -> str:
    return f"{side}{number:0{len(DEVICE) - 1}d}"


async def both(routers: dict[str, RouterProcess], stream: Stream) -> list[tuple[bytes, bool]]:
    number = next(_numbers)
    found = []
    for side, router in routers.items():
        device = device_of(side, number)
        told, reset = await answers(router.url, stream.as_of(device))
        found.append((told.replace(device.encode(), b"DEVICE"), reset))
    return found


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stream=streams())
async def test_any_stream_of_bytes(routers: dict[str, RouterProcess], stream: Stream) -> None:
    found = await both(routers, stream)
    direct, asgi = (told.replace(NOT_HTTP, b"") for told, _ in found)
    if any(reset or NOT_HTTP in told for told, reset in found):
        # What is no HTTP ends the connection at once; whether what came before it is answered first, or at all, is a
        # matter of how the bytes arrive, on either way.
        length = min(len(direct), len(asgi))
        direct, asgi = direct[:length], asgi[:length]
    assert direct == asgi
