"""A catalog and some shards on this machine: made, started, resumed and stopped as one."""

import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from shards.embedded import folder, keeper, lock, replicas
from shards.embedded.binaries import find_binaries, server_account
from shards.embedded.databases import make_database, registered
from shards.embedded.promotion import Promoting, finished, refused
from shards.embedded.server import Server, initialise
from shards.embedded.state import (
    CATALOG,
    Promotion,
    State,
    editing_state,
    load_state,
    new_state,
    promoted,
    save_state,
    with_free_ports,
    with_replicas,
)
from shards.errors import ClusterError, MachineError, Refused, ShardError
from shards.operations.init import Progress, init_cluster, silently

_PARALLEL_INITDB: Final = asyncio.Semaphore(2)
FOLLOW_S: Final = 0.25
REGISTER_S: Final = 1.0
STOP_S: Final = 60.0


@dataclass(frozen=True)
class Options:
    """How to run a cluster. None: what the directory remembers, or the default. `temporary`: delete it at the end.

    `replicas` of each shard, at least. `names` of a new cluster's shards; `blank`: its databases stay empty, for a
    backup that is restored into them. `progress` is told how far the start is, `happened` when a server ended, could
    not be started, or all are gone.
    """

    directory: Path
    shards: int | None = None
    buckets: int | None = None
    binaries: str | None = None
    durable: bool = True
    temporary: bool = False
    replicas: int = 0
    names: tuple[str, ...] = ()
    blank: bool = False
    progress: Progress = silently
    happened: Progress = silently


class EmbeddedCluster:
    """`async with EmbeddedCluster(options) as cluster:` servers run, migrated and registered, inside the block."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._keeper: asyncio.subprocess.Process | None = None
        self._lock: int | None = None
        self._state: State | None = None
        self._following: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._stopped: dict[str, asyncio.Event] = {}
        self._followed: dict[str, int | None] = {}  # replica -> the port of the primary that it was started behind
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._registered, self._registered_at = False, 0.0
        self._told = ""
        self.gone = asyncio.Event()  # the keeper ended, and its servers with it
        self._binaries: Path | None = None

    @property
    def state(self) -> State:
        """Ports and logins; only while started."""
        if self._state is None:
            message = "the embedded cluster is not started"
            raise MachineError(message)
        return self._state

    @property
    def catalog_dsn(self) -> str:
        return self.state.dsn(CATALOG)

    def tell_url(self, url: str) -> None:
        """Where the router of this cluster listens: told to whoever tries to start it again."""
        if self._lock is not None:
            lock.tell_url(self._lock, url)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start, and make whatever is not there yet. Refused when the directory holds a differently sized cluster."""
        directory = folder.prepare(self._options.directory)
        self._lock = await asyncio.to_thread(lock.take, directory)
        try:
            self._binaries = await asyncio.to_thread(find_binaries, self._options.binaries)
            state = with_free_ports(load_state(directory) or self._new_state())
            self._check_size(state)
            self._state = state
            state = with_replicas(finished(state, self._server), self._options.replicas)
            self._state = state
            save_state(directory, state)
            await self._start_servers(directory, state)
            await asyncio.gather(*(make_database(state, name) for name in [CATALOG, *state.shard_names]))
            if self._options.blank:
                return
            shards = await registered(state)
            await init_cluster(state.dsn(CATALOG), shards, state.bucket_count, self._options.progress)
            self._following = asyncio.create_task(self._follow())
        except BaseException:
            await self.stop()
            raise

    def _new_state(self) -> State:
        numbers = range(1, (self._options.shards or 3) + 1)
        names = self._options.names or tuple(f"shard-{number}" for number in numbers)
        return new_state(names, self._options.buckets or 64)

    def _check_size(self, state: State) -> None:
        for what, wanted, there in (
            ("shards", self._options.shards, len(state.shard_names)),
            ("buckets", self._options.buckets, state.bucket_count),
        ):
            if wanted is not None and wanted != there:
                message = (
                    f"the cluster in {self._options.directory} has {there} {what}, not {wanted}: leave --{what} out"
                )
                raise Refused(message)

    async def _start_servers(self, directory: Path, state: State) -> None:
        account = server_account()
        servers = [self._server(state.primary(name)) for name in [CATALOG, *state.shard_names]]
        await asyncio.gather(*(_prepare(server, state.superuser_password) for server in servers))
        spec = {
            "binaries": str(self._binaries),
            "durable": self._options.durable,
            "uid": None if account is None else account.pw_uid,
            "remove": str(directory) if self._options.temporary else None,
            "servers": list(map(_described, servers)),
        }
        await self._start_keeper(spec)

    def _server(self, name: str, state: State | None = None) -> Server:
        """A server as the state has it: a primary, or behind its shard's."""
        state, directory = state or self.state, self._options.directory.absolute()
        if self._binaries is None:
            raise AssertionError
        primary = state.primary(state.shard_of(name))
        follows = None if name == primary else state.ports[primary]
        return Server(name, directory / name, state.ports[name], self._binaries, follows)

    async def _start_replica(self, name: str) -> None:
        """Start a replica behind the primary of now, unless it follows it already. What fails is tried again."""
        server = self._server(name)
        if self._followed.get(name) == server.primary_port:
            return
        if name in self._followed:
            await self._stop_server(name)
        self._followed[name] = None
        try:
            await replicas.prepare(self.state, server)
        except (ShardError, ClusterError) as error:
            self._tell(f"{name} is not started, which is tried again: {error}")
        else:
            await self._tell_keeper({"add": _described(server)})
            self._followed[name] = server.primary_port

    async def _follow(self) -> None:
        """Start and stop servers as `voltroute shard add`, `remove` and `promote` write into the state."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            try:
                await self._change_servers()
                await self._keep_replicas()
            except Exception as error:  # noqa: BLE001 - tried again; who asked waits, and says so
                self._tell(f"what was asked for is not done, which is tried again: {error}")

    def _tell(self, text: str) -> None:
        """Once, as long as it stays the same."""
        if text != self._told:
            self._told = text
            self._options.happened(text)

    async def _change_servers(self) -> None:
        wanted = load_state(self._options.directory.absolute())
        if wanted is None or wanted == self._state:
            return
        before = self.state
        for name in wanted.ports.keys() - before.ports.keys():
            server = self._server(name, wanted)
            await _prepare(server, wanted.superuser_password)
            await self._tell_keeper({"add": _described(server)})
        for name in before.ports.keys() - wanted.ports.keys():
            await self._tell_keeper({"remove": name})
            self._followed.pop(name, None)
        self._state, self._registered = wanted, False
        for shard, promotion in wanted.promotions.items():
            if promotion.refused is None:
                await self._promote(shard, promotion)

    async def _promote(self, shard: str, promotion: Promotion) -> None:
        """What others wrote into the file meanwhile stays there, and is seen by the next look at it."""
        try:
            complete = await Promoting(self.state, shard, self._server, self._stop_server, self._start_server).run()
        except Refused as error:
            change = partial(refused, shard=shard, promotion=promotion, why=str(error))
        else:
            change = partial(promoted, shard=shard, server=promotion.server, aside=not complete)
            self._followed.pop(promotion.server, None)
        self._state = change(self.state)
        directory = self._options.directory.absolute()
        with editing_state(directory) as state:
            save_state(directory, change(state))

    async def _keep_replicas(self) -> None:
        """Start those that do not run, beside everything else, and have the catalog know them."""
        if self._registered or time.monotonic() - self._registered_at < REGISTER_S:
            return
        for name in _replicas(self.state):
            if name not in self._starting:
                self._starting[name] = asyncio.create_task(self._start_replica(name))
        for name, task in list(self._starting.items()):
            if task.done():
                del self._starting[name]
                if (error := task.exception()) is not None:
                    self._tell(f"{name} is not started, which is tried again: {error}")
        are_known = await replicas.register(self.state)
        self._registered = are_known and not self._starting
        self._registered_at = time.monotonic()

    async def _start_server(self, name: str) -> None:
        await self._tell_keeper({"add": _described(self._server(name))})

    async def _stop_server(self, name: str) -> None:
        """Stop a server, and wait until it is down."""
        stopped = self._stopped[name] = asyncio.Event()
        await self._tell_keeper({"stop": name})
        async with asyncio.timeout(STOP_S):
            await stopped.wait()

    async def _tell_keeper(self, message: dict[str, Any]) -> None:
        if self._keeper is None or self._keeper.stdin is None:
            raise AssertionError
        self._keeper.stdin.write(json.dumps(message).encode() + b"\n")
        await self._keeper.stdin.drain()

    async def _start_keeper(self, spec: dict[str, Any]) -> None:
        self._keeper = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # no module of the folder that we happen to be in
            "-m",
            keeper.__name__,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us: the servers stop after the router has drained
            pass_fds=() if self._lock is None else (self._lock,),  # held until the servers are down
        )
        if self._keeper.stdin is None or self._keeper.stdout is None:
            raise AssertionError
        self._keeper.stdin.write(json.dumps(spec).encode() + b"\n")
        answer = await self._keeper.stdout.readline()
        message = json.loads(answer or b'{"event": "failed", "detail": "the keeper ended"}')
        if message["event"] != "ready":
            raise MachineError(message["detail"])
        self._listening = asyncio.create_task(self._listen(self._keeper.stdout))

    async def _listen(self, words: asyncio.StreamReader) -> None:
        """What the keeper says later on; unread, it would block the keeper some day."""
        while line := await words.readline():
            message = json.loads(line)
            if message["event"] == "stopped":
                self._stopped[message["server"]].set()
            else:
                self._options.happened(_told(message))
        self.gone.set()

    async def stop(self) -> None:
        """Stop the servers (a temporary cluster's at once) and wait until they are down."""
        if self._following is not None:
            self._following.cancel()
            for task in self._starting.values():
                task.cancel()
            await asyncio.gather(self._following, *self._starting.values(), return_exceptions=True)
            self._following = None
        if self._keeper is not None:
            if self._keeper.stdin is not None:
                self._keeper.stdin.close()
            await self._keeper.wait()
            self._keeper = None
        if self._listening is not None:
            await self._listening
            self._listening = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        self._state = None


def _told(message: dict[str, Any]) -> str:
    """What happened to a server, in words."""
    if message["event"] == "exited":
        return f"{message['server']} ended with {message['code']}; it is started again"
    return f"{message['server']} cannot be started, which is tried again: {message['detail']}"


def _described(server: Server) -> dict[str, Any]:
    described = {"name": server.name, "directory": str(server.directory)}
    return {**described, "port": server.port, "primary_port": server.primary_port}


def _replicas(state: State) -> list[str]:
    return [each for shard in state.shard_names for each in state.replicas(shard)]


async def _prepare(server: Server, superuser_password: str) -> None:
    async with _PARALLEL_INITDB:
        await asyncio.to_thread(initialise, server, superuser_password, server_account())
