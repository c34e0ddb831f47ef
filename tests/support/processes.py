"""Real PostgreSQL servers to be stopped and killed, and looking at processes."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from shards.embedded.cluster import EmbeddedCluster, Options
from shards.embedded.server import Server, running
from tests.support.servers import scratch_folder

WAIT_S = 30


class Breakable:
    """An embedded cluster of a test's own, whose servers it may stop, continue and kill."""

    def __init__(self, cluster: EmbeddedCluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder

    def server(self, name: str) -> psutil.Process:
        found = running(Server(name, self.folder / name, 0, Path()))
        assert found is not None
        return found

    def _keeper(self) -> psutil.Process:
        assert self.cluster._keeper is not None
        return psutil.Process(self.cluster._keeper.pid)

    @contextlib.contextmanager
    def stalled(self, name: str) -> Iterator[None]:
        """The server and all its backends do nothing, but their connections stay."""
        processes = [self.server(name), *self.server(name).children(recursive=True)]
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def killed(self, name: str) -> Iterator[None]:
        """The server is gone until the end of the block; then its keeper starts it again."""
        self._keeper().send_signal(signal.SIGSTOP)
        try:
            self.server(name).kill()
            yield
        finally:
            self._keeper().send_signal(signal.SIGCONT)


@asynccontextmanager
async def breakable(shards: int = 3, buckets: int = 8, *, durable: bool = False) -> AsyncIterator[Breakable]:
    """A cluster on servers of its own."""
    folder = scratch_folder()
    options = Options(folder, shards, buckets, durable=durable, temporary=True)
    async with EmbeddedCluster(options) as cluster:
        yield Breakable(cluster, folder)


async def eventually(condition: Callable[[], object], timeout_s: float = WAIT_S) -> None:
    """Wait until a condition on processes or files holds; there is no event for these."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


def servers_in(folder: Path) -> list[psutil.Process]:
    """PostgreSQL servers whose data lies under `folder`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if any(str(folder) in word for word in command) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
