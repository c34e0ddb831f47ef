"""`--workers`: some router processes on one port, each an ordinary one with its share of what the settings allow."""

import asyncio
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from router.server import Say, listen, url_of
from router.settings import PREFIX, Settings
from router.siblings import Siblings
from shards.errors import InvalidArgument, MachineError

_log = structlog.stdlib.get_logger(__name__)
_SHORT_S: Final = 10.0  # a worker that lived no longer is started again with a longer pause
_PAUSE_MIN_S: Final = 0.5
_PAUSE_MAX_S: Final = 10.0
_KILL_AFTER_S: Final = 5.0  # beyond what its drain may take
_START_S: Final = 60.0  # until it listens
_PATH_MAX: Final = 80
_LEAST: Final = {"pool_max": 1, "connections_max": 16}
_SHARED: Final = ("pool_min", "pool_max", "connections_max", "queue_readings_max", "bodies_bytes_max")


def share(settings: Settings) -> dict[str, int]:
    """What each of `settings.workers` gets of what all may have together. InvalidArgument when it is too little."""
    found = {name: int(getattr(settings, name)) // settings.workers for name in _SHARED}
    for name, least in _LEAST.items():
        if found[name] < least:
            message = (
                f"{settings.workers} workers share {PREFIX}{name.upper()}={getattr(settings, name)}, and each needs "
                f"{least}: raise it, or take fewer workers"
            )
            raise InvalidArgument(message)
    # A budget that holds no request of the size that is allowed would refuse it for ever.
    enough = {"queue_readings_max": settings.readings_max, "bodies_bytes_max": settings.body_bytes_max}
    return found | {name: max(found[name], each) for name, each in enough.items()}


def reserve(host: str, port: int) -> socket.socket:
    """A socket that keeps the port for the workers' own, and listens to nobody. MachineError when it is taken."""
    # Whoever shares a port may share it with a router that runs already: asked for alone first.
    alone = listen(host, port)
    address, family = alone.getsockname(), alone.family
    alone.close()
    kept = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Also where a connection of a router of before is not forgotten yet.
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind(address)
    except OSError as error:
        kept.close()
        message = f"cannot listen on {host}:{address[1]}: {error.strerror}"
        raise MachineError(message) from error
    return kept


@dataclass
class _Worker:
    number: int
    restarts: int = 0
    url: str | None = None
    mapped: bool = False
    process: asyncio.subprocess.Process | None = None
    spoke: asyncio.Event = field(default_factory=asyncio.Event)


class Supervisor:
    """Starts the workers, starts again whichever ends by itself, and ends them all."""

    def __init__(self, settings: Settings, kept: socket.socket) -> None:
        self._settings = settings
        self._kept = kept
        self._workers = [_Worker(number) for number in range(1, settings.workers + 1)]
        self._folder = Path()
        self._environment = _environment(settings, kept)

    async def run(self, stopping: asyncio.Event, say: Say) -> None:
        """Serve until `stopping` is set. MachineError when a worker does not start at all."""
        self._folder = _own_folder()
        tasks = [asyncio.create_task(self._keep(worker)) for worker in self._workers]
        telling = asyncio.create_task(self._tell(say))
        stopped = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({*tasks, stopped}, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:  # none of them ends by itself but by failing
                if task.done():
                    task.result()
        finally:
            telling.cancel()
            stopped.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*map(self._end, self._workers), return_exceptions=True)
            await asyncio.gather(*tasks, telling, return_exceptions=True)
            shutil.rmtree(self._folder, ignore_errors=True)
            self._kept.close()

    async def _tell(self, say: Say) -> None:
        """What one router says, once for all: that they listen, and that they have a map."""
        url = url_of(self._kept, tls=self._settings.tls_certificate is not None)
        await self._all_say(lambda worker: worker.url is not None)
        if not all(worker.mapped for worker in self._workers):
            await say(url, False)
            await self._all_say(lambda worker: worker.mapped)
        await say(url, True)

    async def _all_say(self, wanted: Callable[[_Worker], bool]) -> None:
        for worker in self._workers:
            while not wanted(worker):
                worker.spoke.clear()
                await worker.spoke.wait()

    async def _keep(self, worker: _Worker) -> None:
        """Run a worker, and the next in its place whenever it ends."""
        pause_s = _PAUSE_MIN_S
        while True:
            started = time.monotonic()
            try:
                code = await self._run(worker)
            except OSError as error:  # no process could be made
                code = f"{error.strerror}"
            if worker.url is None:
                message = f"worker {worker.number} did not start ({code}); its log says why"
                raise MachineError(message)
            worker.restarts += 1
            _log.error("worker_ended", worker=worker.number, ended=code, restarts=worker.restarts)
            pause_s = _PAUSE_MIN_S if time.monotonic() - started > _SHORT_S else min(pause_s * 2, _PAUSE_MAX_S)
            await asyncio.sleep(pause_s)

    async def _run(self, worker: _Worker) -> str:
        """One life of a worker; how it ended. OSError when it could not be started."""
        which = Siblings(self._folder, worker.number, len(self._workers), worker.restarts)
        worker.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "router.cli.main", "serve", "--json", "--until-eof", "--sibling", str(which)),
            stdin=asyncio.subprocess.PIPE,  # its end tells the worker to stop, also when this process was killed
            stdout=asyncio.subprocess.PIPE,
            env=self._environment,
            start_new_session=True,  # Ctrl-C is for this process, which ends them
        )
        starting = asyncio.get_running_loop().call_later(_START_S, worker.process.kill)
        watching: asyncio.Task[None] | None = None
        try:
            async for said in _lines(worker.process):
                worker.url, worker.mapped = said["url"], worker.mapped or said["ready"]
                worker.spoke.set()
                starting.cancel()
                watching = watching or asyncio.create_task(self._watch(worker.process, which))
            code = await worker.process.wait()
        finally:
            starting.cancel()
            if watching is not None:
                watching.cancel()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    async def _watch(self, process: asyncio.subprocess.Process, which: Siblings) -> None:
        """Kill a worker that hangs: the kernel would go on giving it its part of the connections."""
        silent_s = self._settings.worker_silent_s
        while True:
            await asyncio.sleep(silent_s / 2)
            if await which.hangs(silent_s):
                _log.error("worker_silent", worker=which.number, seconds=silent_s)
                process.kill()
                return

    async def _end(self, worker: _Worker) -> None:
        """Let a worker finish what it has begun; kill it when that takes longer than it may."""
        process = worker.process
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        settings = self._settings
        try:
            async with asyncio.timeout(settings.drain_delay_s + 2 * settings.drain_timeout_s + _KILL_AFTER_S):
                await process.wait()
        except TimeoutError:
            _log.warning("worker_killed", worker=worker.number)
            process.kill()
            await process.wait()


async def _lines(process: asyncio.subprocess.Process) -> AsyncIterator[dict[str, Any]]:
    """What a worker says of itself. Whatever else is printed by something in it is left out."""
    assert process.stdout is not None
    while True:
        with suppress(ValueError):  # also of a line that is longer than any of ours
            line = await process.stdout.readline()
            if not line:
                return
            said = json.loads(line)
            if isinstance(said, dict) and {"url", "ready"} <= said.keys():
                yield said


def _own_folder() -> Path:
    """A new folder that nobody else may enter. A socket's path has at most 107 bytes."""
    long = len(os.fsencode(tempfile.gettempdir())) > _PATH_MAX
    return Path(tempfile.mkdtemp(prefix="voltroute-", dir="/tmp" if long else None))  # noqa: S108 - mkdtemp


def _environment(settings: Settings, kept: socket.socket) -> dict[str, str]:
    """The workers': this process', with the address, the catalog and each one's share. Secrets are never in argv."""
    address = kept.getsockname()
    own = {name.upper(): str(value) for name, value in share(settings).items()}
    own |= {"HOST": settings.host, "PORT": str(address[1]), "WORKERS": "1"}
    own |= {"INSECURE": "true"} if settings.insecure else {}
    if settings.catalog_dsn is not None:
        own["CATALOG_DSN"] = settings.catalog_dsn.get_secret_value()
    kept_names = {name: value for name, value in os.environ.items() if name != f"{PREFIX}DATA"}
    return kept_names | {PREFIX + name: value for name, value in own.items()}
