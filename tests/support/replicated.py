"""A shard on two servers: a primary and its streaming replica, made by PostgreSQL's own means."""

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import asyncpg

from shards.embedded.binaries import find_binaries, server_account
from shards.embedded.ports import free_ports
from shards.embedded.server import Server, as_account, initialise, is_ready
from shards.operations.init import init_cluster
from tests.support.servers import TestCluster, scratch_folder

PASSWORD = "pw"
READY_S = 60.0
BUCKETS = 4


@dataclass
class Node:
    """One server of the pair; `process` while it runs."""

    server: Server
    process: subprocess.Popen[bytes] | None = None
    settings: list[str] = field(default_factory=list)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    def dsn(self, database: str = "postgres") -> str:
        return f"postgresql://postgres:{PASSWORD}@{self.host}/{database}"

    def start(self) -> None:
        log = (self.server.directory.parent / f"{self.server.name}.log").open("ab")
        command = [*self.server.command(durable=True), *self.settings, "--wal_level=replica", "--hot_standby=on"]
        self.process = subprocess.Popen(command, stdout=log, stderr=log, **as_account(server_account()))  # type: ignore[call-overload]
        log.close()
        deadline = time.monotonic() + READY_S
        while not is_ready(self.server, self.process.pid):
            assert self.process.poll() is None, "the server did not start"
            assert time.monotonic() < deadline, "the server was not ready in time"
            time.sleep(0.02)

    def kill(self) -> None:
        """As if the machine had gone: no word to anybody, and none left."""
        assert self.process is not None
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=False
        ).stdout.split()
        for pid in (self.process.pid, *map(int, children)):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()

    def pause(self) -> list[int]:
        """Stop the server and all its backends; their pids, for `wake`."""
        assert self.process is not None
        pids = [self.process.pid]
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=False
        ).stdout.split()
        pids += map(int, listed)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        return pids

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.send_signal(signal.SIGCONT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def wake(pids: list[int]) -> None:
    """Let paused processes go on; those that ended meanwhile are left alone."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            continue


@dataclass
class Pair:
    """A primary and its replica."""

    folder: Path
    first: Node
    second: Node

    def dsn(self, database: str) -> str:
        """Both hosts, the one that was the primary in the beginning first."""
        return f"postgresql://postgres:{quote(PASSWORD)}@{self.first.host},{self.second.host}/{database}"

    async def promote(self) -> None:
        """The replica becomes the primary."""
        connection = await asyncpg.connect(self.second.dsn())
        assert await connection.fetchval("SELECT pg_promote(true, 30)")
        await connection.close()

    def copy(self) -> None:
        """Make the replica: a base backup that streams from the first one, synchronously."""
        binaries = self.first.server.binaries
        data = self.second.server.data
        self.second.server.directory.mkdir(mode=0o700)
        account = server_account()
        if account is not None:
            shutil.chown(self.second.server.directory, account.pw_uid, account.pw_gid)
        source = f"host=127.0.0.1 port={self.first.server.port} user=postgres application_name=second"
        subprocess.run(  # type: ignore[call-overload]
            [binaries / "pg_basebackup", "-D", data, "-d", source, "-R", "-X", "stream", "-c", "fast"],
            env={"PATH": os.environ["PATH"], "PGPASSWORD": PASSWORD},
            check=True,
            capture_output=True,
            **as_account(account),
        )


@asynccontextmanager
async def pair(*, synchronous: bool = True) -> AsyncIterator[Pair]:
    """Two servers; `synchronous`: a commit is on both."""
    folder = scratch_folder()
    binaries = find_binaries()
    ports = free_ports(2)
    first, second = (
        Node(Server(name, folder / name, port, binaries)) for name, port in zip(("first", "second"), ports, strict=True)
    )
    made = Pair(folder, first, second)
    try:
        await asyncio.to_thread(initialise, first.server, PASSWORD, server_account())
        await asyncio.to_thread(first.start)
        await asyncio.to_thread(made.copy)
        await asyncio.to_thread(second.start)
        if synchronous:
            await _be_synchronous(first)
        yield made
    finally:
        for node in (first, second):
            await asyncio.to_thread(node.stop)
        shutil.rmtree(folder, ignore_errors=True)


async def _be_synchronous(first: Node) -> None:
    connection = await asyncpg.connect(first.dsn())
    await connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'second'")
    await connection.execute("SELECT pg_reload_conf()")
    async with asyncio.timeout(READY_S):
        while await connection.fetchval("SELECT sync_state FROM pg_stat_replication") != "sync":
            await asyncio.sleep(0.02)
    await connection.close()


@asynccontextmanager
async def replicated(*, synchronous: bool = True) -> AsyncIterator[tuple[Pair, TestCluster]]:
    """A cluster of which all databases are on both servers of a pair."""
    async with pair(synchronous=synchronous) as servers:
        admin = await asyncpg.connect(servers.first.dsn())
        for name in ("catalog", "s1", "s2"):
            await admin.execute(f"CREATE DATABASE {name}")
        await admin.close()
        shards = {name: servers.dsn(name) for name in ("s1", "s2")}
        await init_cluster(servers.dsn("catalog"), shards, BUCKETS)
        yield servers, TestCluster(servers.dsn("catalog"), shards, BUCKETS)
