"""A wire that can be cut: a TCP proxy in front of a server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit


class Wire:
    """Forwards connections to a server until it is cut; then it ends them all, and takes none."""

    def __init__(self, dsn: str) -> None:
        self._dsn = urlsplit(dsn)
        self._writers: set[asyncio.StreamWriter] = set()
        self._whole = True
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None

    @property
    def dsn(self) -> str:
        """The server's DSN, by way of this wire."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        login, _, _ = self._dsn.netloc.rpartition("@")
        return urlunsplit(self._dsn._replace(netloc=f"{login}@127.0.0.1:{port}"))

    def cut(self) -> None:
        self._whole = False
        for writer in list(self._writers):
            writer.transport.abort()

    def mend(self) -> None:
        self._whole = True

    def hold(self) -> None:
        """Nothing passes any more, and nobody is told: connections stay, new ones are accepted."""
        self._flowing.clear()

    def let_go(self) -> None:
        self._flowing.set()

    async def serve(self) -> None:
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", 0)

    async def close(self) -> None:
        self.cut()
        self.let_go()
        assert self._server is not None
        self._server.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._whole:
            writer.transport.abort()
            return
        await self._flowing.wait()
        there, back = await asyncio.open_connection(self._dsn.hostname, self._dsn.port)
        self._writers |= {writer, back}
        try:
            await asyncio.gather(self._copy(reader, back), self._copy(there, writer))
        finally:
            self._writers -= {writer, back}

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


@asynccontextmanager
async def wire(dsn: str) -> AsyncIterator[Wire]:
    made = Wire(dsn)
    await made.serve()
    try:
        yield made
    finally:
        await made.close()
