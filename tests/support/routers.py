"""Routers for the tests: in this process, or as a real one that can be killed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from pydantic import SecretStr

from router.app import create_app
from router.settings import Settings
from tests.support.servers import TestCluster

READY_TIMEOUT_S = 30


def client_settings(cluster: TestCluster, **overrides: Any) -> Settings:
    """Settings for an in-process router; small pools, because many clusters share few servers."""
    values: dict[str, Any] = {"pool_min": 1, "pool_max": 5, "map_poll_s": 0.2, **overrides}
    return Settings(catalog_dsn=SecretStr(cluster.catalog_dsn), **values)


@asynccontextmanager
async def in_process(cluster: TestCluster, **overrides: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a router that runs in this process; `client.app` is the application."""
    app = create_app(client_settings(cluster, **overrides))
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            client.app = app  # type: ignore[attr-defined]
            yield client


@dataclass
class RouterProcess:
    """A `voltroute serve` of its own."""

    process: asyncio.subprocess.Process
    url: str

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    async def stop(self) -> None:
        if self.process.returncode is None:
            self.process.terminate()
        async with asyncio.timeout(READY_TIMEOUT_S):
            await self.process.wait()


async def start_command(*arguments: str, env: Mapping[str, str] | None = None, **options: Any) -> Any:
    """`voltroute ...` as a process with its standard output piped."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "router.cli.main",
        *arguments,
        stdout=subprocess.PIPE,
        stderr=options.pop("stderr", subprocess.DEVNULL),
        env={**os.environ, **(env or {})},
        **options,
    )


async def read_json(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """The JSON object that a command prints when it is ready."""
    assert process.stdout is not None
    async with asyncio.timeout(READY_TIMEOUT_S):
        if line := await process.stdout.readline():
            return dict(json.loads(line))
    message = f"the command ended with {await process.wait()}"
    raise RuntimeError(message)


async def start_router(catalog_dsn: str, **env: str) -> RouterProcess:
    """A real router on a free port, unless VOLTROUTE_PORT names one."""
    environment = {"VOLTROUTE_CATALOG_DSN": catalog_dsn, "VOLTROUTE_POOL_MIN": "2", "VOLTROUTE_PORT": "0", **env}
    process = await start_command("serve", "--json", env=environment)
    return RouterProcess(process, (await read_json(process))["url"])


@asynccontextmanager
async def router_process(catalog_dsn: str, **env: str) -> AsyncIterator[RouterProcess]:
    """A real router, stopped at the end."""
    router = await start_router(catalog_dsn, **env)
    try:
        yield router
    finally:
        await router.stop()
