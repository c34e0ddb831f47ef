"""Who may fail: the servers of a cluster, two routers of its own, and the Redis that keeps its statuses."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psutil

from bench.store import Store, store, store_program
from bench.systems import System, voltroute

CATALOG: Final = "catalog"
SETTINGS: Final = {"VOLTROUTE_LOG_LEVEL": "error", "VOLTROUTE_POOL_MIN": "1", "VOLTROUTE_STATUS_TTL_S": "5"}


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all below it, which may end meanwhile."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def send(processes: Sequence[psutil.Process], which: signal.Signals) -> None:
    """To each that is there still."""
    for each in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.send_signal(which)


@dataclass
class Router:
    """`voltroute serve`, on a port that it keeps."""

    catalog: str
    port: int
    settings: dict[str, str]
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def processes(self) -> list[psutil.Process]:
        """Of it, while it runs."""
        return [] if self.process is None else family(psutil.Process(self.process.pid))

    async def start(self) -> None:
        """It runs, and has a map."""
        env = {**os.environ, **self.settings, "VOLTROUTE_CATALOG_DSN": self.catalog, "VOLTROUTE_PORT": str(self.port)}
        program = str(Path(sys.executable).with_name("voltroute"))
        self.process = await asyncio.create_subprocess_exec(
            program, "serve", "--json", env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    async def end(self, which: signal.Signals) -> None:
        """With that signal; it is gone then."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(which)
            await self.process.wait()


@dataclass
class Cast:
    """All of them. `servers`: name -> port of a PostgreSQL server, replicas included."""

    system: System
    routers: list[Router]
    redis: Store
    servers: dict[str, int] = field(default_factory=dict)

    def databases(self) -> dict[str, str]:
        """DSNs of the shards' primaries, whichever servers these are."""
        return {name: f"{dsn}?target_session_attrs=read-write" for name, dsn in self.system.shards.items()}

    def memory(self) -> float:
        """Resident MiB of the larger router."""
        found = [process.memory_info().rss for router in self.routers for process in router.processes()[:1]]
        return max(found, default=0) / 2**20

    def server(self, name: str) -> list[psutil.Process]:
        """A server's processes, the postmaster first; none while it is down."""
        if self.system.postgres_root is None:
            return []
        port = f"--port={self.servers[name]}"
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.system.postgres_root).children():
                if port in process.cmdline():
                    return family(process)
        return []


def _ports(system: System) -> dict[str, int]:
    """By name, from the DSNs: the primary comes first, its replicas after it."""
    found: dict[str, int] = {}
    for name, dsn in {**system.shards, CATALOG: system.catalog or ""}.items():
        for number, host in enumerate(urlsplit(dsn).netloc.rpartition("@")[2].split(",")):
            found[f"{name} replica {number}" if number else name] = int(host.rpartition(":")[2])
    return found


@asynccontextmanager
async def cast(shards: int, replicas: int) -> AsyncIterator[Cast]:
    """A cluster with replicas, two routers beside the one of `up`, which gets no requests, and a Redis or Valkey."""
    program = store_program()
    if program is None:
        message = "neither redis-server nor valkey-server is here"
        raise RuntimeError(message)
    async with AsyncExitStack() as stack:
        kept = await stack.enter_async_context(store(program))
        settings = {**SETTINGS, "VOLTROUTE_REDIS_URL": kept.url}
        system = await stack.enter_async_context(voltroute(shards, settings, replicas=replicas))
        routers = [Router(system.catalog or "", free_port(), settings) for _ in range(2)]
        made = Cast(system, routers, kept, _ports(system))
        try:
            for router in routers:
                await router.start()
            yield made
        finally:
            for router in routers:
                send(router.processes(), signal.SIGCONT)
                await router.end(signal.SIGTERM)
