"""The systems that are measured: started as processes of their own, with their CPU time to be read."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psutil

VOLTROUTE: Final = "voltroute"
NULL: Final = "null"
SEED: Final = "seed-design"
READY_TIMEOUT_S: Final = 60
STOP_TIMEOUT_S: Final = 60


@dataclass(frozen=True)
class Cpu:
    """CPU seconds used so far: of the HTTP process, of all PostgreSQL processes, of this generator."""

    server: float
    postgres: float
    generator: float

    def since(self, earlier: "Cpu") -> "Cpu":
        """The difference."""
        return Cpu(self.server - earlier.server, self.postgres - earlier.postgres, self.generator - earlier.generator)

    def parts(self) -> dict[str, float]:
        """By the names that reports use."""
        return {"router": self.server, "PostgreSQL": self.postgres, "generator": self.generator}


@dataclass
class System:
    """A server to send readings to, and where it stores them."""

    name: str
    url: str
    shards: Mapping[str, str] = field(default_factory=dict)
    server_pid: int | None = None
    postgres_root: int | None = None  # a process below which all servers run
    catalog: str | None = None  # DSN
    data: Path | None = None  # folder of our own cluster
    stores: bool = True
    keys: tuple[str, ...] = ()  # each of a tenant of its own; none: the cluster asks for none

    def cpu(self) -> Cpu:
        """CPU time so far. What is not ours to look at (another machine's) counts as 0."""
        server = sum(map(_seconds, self._routers()))
        postgres = 0.0
        if self.postgres_root:
            root = psutil.Process(self.postgres_root)
            postgres = sum(_seconds(each) for each in root.children(recursive=True) if each.name() == "postgres")
        return Cpu(server, postgres, _seconds(psutil.Process()))

    def ended_cpu(self) -> float:
        """CPU seconds of PostgreSQL's processes that have ended: sessions of a command, say."""
        if self.postgres_root is None:
            return 0.0
        servers = psutil.Process(self.postgres_root).children()
        times = [each.cpu_times() for each in servers]
        return float(sum(each.children_user + each.children_system for each in times))

    def _routers(self) -> list[psutil.Process]:
        """The HTTP process, and its workers if it has some."""
        if self.server_pid is None:
            return []
        process = psutil.Process(self.server_pid)
        return [process, *(each for each in process.children() if each.pid != self.postgres_root)]

    def server_of(self, shard: str) -> list[psutil.Process]:
        """The processes of one shard's PostgreSQL server, the postmaster first. Only of a cluster of our own."""
        if self.postgres_root is None:
            message = "the servers are not ours"
            raise RuntimeError(message)
        port = f"--port={urlsplit(self.shards[shard]).port}"
        for process in psutil.Process(self.postgres_root).children():
            if port in process.cmdline():
                return [process, *process.children(recursive=True)]
        message = f"no server of {shard} runs"
        raise RuntimeError(message)

    def memory(self) -> float:
        """Resident MiB of the HTTP process; 0 when it is not ours."""
        return psutil.Process(self.server_pid).memory_info().rss / 2**20 if self.server_pid else 0.0


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


async def _start(command: Sequence[str], env: Mapping[str, str] | None = None) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    async with asyncio.timeout(STOP_TIMEOUT_S):
        await process.wait()


async def _ready(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """The JSON object that a system prints when it answers."""
    if process.stdout is None:
        raise AssertionError
    async with asyncio.timeout(READY_TIMEOUT_S):
        line = await process.stdout.readline()
    if not line:
        message = "a system did not start: it printed nothing"
        raise RuntimeError(message)
    return dict(json.loads(line))


def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="voltroute-bench-"))
    folder.chmod(0o711)  # for the account that PostgreSQL runs as when we are root
    return folder


@asynccontextmanager
async def voltroute(
    shards: int, settings: Mapping[str, str] | None = None, buckets: int | None = None, replicas: int = 0
) -> AsyncIterator[System]:
    """A router on an embedded cluster with durable settings, in a folder that is deleted afterwards."""
    folder = _folder()
    program = Path(sys.executable).with_name("voltroute")
    command = [str(program), "up", "--json", "--temporary", "--until-eof", "--port", "0"]
    command += ["--data", str(folder), "--shards", str(shards)]
    command += [] if buckets is None else ["--buckets", str(buckets)]
    command += ["--replicas", str(replicas)] if replicas else []
    process = await _start(command, {"VOLTROUTE_LOG_LEVEL": "warning", **(settings or {})})
    try:
        ready = await _ready(process)
        # The keeper of the servers; the others, if any, are workers.
        (keeper,) = [each for each in psutil.Process(process.pid).children() if each.children()]
        dsns = {shard["name"]: shard["dsn"] for shard in ready["shards"]}
        yield System(VOLTROUTE, ready["url"], dsns, process.pid, keeper.pid, ready["catalog_dsn"], folder)
    finally:
        await _stop(process)


async def with_tenants(system: System, count: int) -> System:
    """The same cluster, closed: with so many tenants, and a key of each."""
    program, keys = str(Path(sys.executable).with_name("voltroute")), []
    for number in range(count):
        name = f"tenant-{number}"
        await _command([program, "tenant", "create", name, "--data", str(system.data), "--json"])
        words = [program, "key", "create", "--tenant", name, "--scope", "ingest", "--data", str(system.data), "--json"]
        keys.append((await _command(words))["key"])
    return replace(system, keys=tuple(keys))


async def _command(words: Sequence[str]) -> dict[str, Any]:
    process = await _start(words)
    out, _ = await process.communicate()
    if process.returncode:
        message = f"{' '.join(words[1:3])} failed"
        raise RuntimeError(message)
    return dict(json.loads(out))


@asynccontextmanager
async def _baseline(name: str, module: str, owner: System, env: Mapping[str, str]) -> AsyncIterator[System]:
    process = await _start([sys.executable, "-m", module], env)
    try:
        ready = await _ready(process)
        yield System(name, ready["url"], owner.shards, process.pid, owner.postgres_root, stores=name != NULL)
    finally:
        await _stop(process)


@asynccontextmanager
async def with_baselines(shards: int, settings: Mapping[str, str] | None = None) -> AsyncIterator[dict[str, System]]:
    """voltroute, `null` (reads, decodes, answers) and `seed-design` (the seed's way, on the first shard's server)."""
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(voltroute(shards, settings))
        first = next(iter(ours.shards.values()))
        null = await stack.enter_async_context(_baseline(NULL, "bench.baselines.null", ours, {}))
        seed = await stack.enter_async_context(_baseline(SEED, "bench.baselines.seed", ours, {"BENCH_SEED_DSN": first}))
        yield {system.name: system for system in (ours, null, seed)}
