"""A catalog and some shards on this machine: made, started, resumed and stopped as one."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from shards.embedded import folder, keeper, lock, replicas
from shards.embedded.binaries import find_binaries, server_account
from shards.embedded.promotion import Promoting, finished, refused
from shards.embedded.server import REPLICATION, Server, initialise
from shards.embedded.state import (
    CATALOG,
    DATABASE,
    OWNER,
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
from shards.postgres.logins import scram_sha_256
from shards.postgres.sessions import BRIEF, open_session

_PARALLEL_INITDB: Final = asyncio.Semaphore(2)
FOLLOW_S: Final = 0.25
REGISTER_S: Final = 1.0
STOP_S: Final = 60.0
_HAS_SCHEMA: Final = "SELECT to_regclass('public.bucket_map') IS NOT NULL"
_HAS_MAP: Final = "SELECT EXISTS (SELECT FROM bucket_map)"
_HAS_ROLE: Final = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)"
_REPLICATION_SQL: Final = "SELECT format('CREATE ROLE %I LOGIN REPLICATION PASSWORD %L', $1::text, $2::text)"
_OWNER_SQL: Final = "SELECT format('CREATE ROLE %I LOGIN CREATEROLE PASSWORD %L', $1::text, $2::text)"


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
        self._told: dict[str, str] = {}  # replica -> why it could not be started
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
            shards = await _registered(state)
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

    def _server(self, name: str) -> Server:
        """A server as the state has it: a primary, or behind its shard's."""
        state, directory = self.state, self._options.directory.absolute()
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
        except (ShardError, ClusterError, OSError, subprocess.SubprocessError) as error:
            if self._told.get(name) != str(error):
                self._told[name] = str(error)
                self._options.happened(f"{name} is not started, which is tried again: {error}")
        else:
            await self._tell_keeper({"add": _described(server)})
            self._followed[name] = server.primary_port

    async def _follow(self) -> None:
        """Start and stop servers as `voltroute shard add`, `remove` and `promote` write into the state."""
        directory = self._options.directory.absolute()
        registered, tried_at = False, 0.0
        while True:
            await asyncio.sleep(FOLLOW_S)
            with contextlib.suppress(ClusterError, OSError):  # tried again; who asked for the server waits, and says so
                wanted = load_state(directory)
                if wanted is not None and wanted != self._state:
                    await self._change_servers(wanted)
                    registered = False
            if not registered and time.monotonic() - tried_at > REGISTER_S:
                await asyncio.gather(*map(self._start_replica, _replicas(self.state)))
                registered, tried_at = await replicas.register(self.state), time.monotonic()

    async def _change_servers(self, wanted: State) -> None:
        before, self._state = self.state, wanted
        for name in wanted.ports.keys() - before.ports.keys():
            server = self._server(name)
            await _prepare(server, wanted.superuser_password)
            await self._tell_keeper({"add": _described(server)})
        for name in before.ports.keys() - wanted.ports.keys():
            await self._tell_keeper({"remove": name})
            self._followed.pop(name, None)
        for shard, promotion in wanted.promotions.items():
            if promotion.refused is None:
                await self._promote(shard, promotion)

    async def _promote(self, shard: str, promotion: Promotion) -> None:
        directory = self._options.directory.absolute()
        try:
            complete = await Promoting(self.state, shard, self._server, self._stop_server, self._start_server).run()
        except Refused as error:
            with editing_state(directory) as state:
                self._state = refused(state, shard, str(error))
                save_state(directory, self._state)
            return
        with editing_state(directory) as state:
            self._state = promoted(state, shard, promotion.server, aside=not complete)
            save_state(directory, self._state)
        self._followed.pop(promotion.server, None)

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
            await asyncio.gather(self._following, return_exceptions=True)
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


async def _registered(state: State) -> dict[str, str]:
    """The shards that the catalog knows, by the state's DSNs; all of them when it has no map yet.

    A server that was added and never registered just runs.
    """
    async with open_session(CATALOG, state.dsn(CATALOG), BRIEF) as connection:
        if not (await connection.fetchval(_HAS_SCHEMA) and await connection.fetchval(_HAS_MAP)):
            return state.shard_dsns()
        known = {record["name"] for record in await connection.fetch("SELECT name FROM shard")}
    return {name: dsn for name, dsn in state.shard_dsns().items() if name in known}


async def make_database(state: State, name: str) -> None:
    """Owner and database on one primary, and the login of its replicas, unless they are there."""
    async with open_session(name, state.superuser_dsn(state.primary(name), "postgres"), BRIEF) as connection:
        if not await connection.fetchval(_HAS_ROLE, OWNER):
            await connection.execute(await connection.fetchval(_OWNER_SQL, OWNER, scram_sha_256(state.owner_password)))
        await connection.execute(f"GRANT pg_monitor TO {OWNER} WITH ADMIN OPTION")
        if state.replication_password and not await connection.fetchval(_HAS_ROLE, REPLICATION):
            secret = scram_sha_256(state.replication_password)
            await connection.execute(await connection.fetchval(_REPLICATION_SQL, REPLICATION, secret))
        if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", DATABASE):
            await connection.execute(f"CREATE DATABASE {DATABASE} OWNER {OWNER}")
    async with open_session(name, state.superuser_dsn(state.primary(name), DATABASE), BRIEF) as connection:
        await connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")  # its owner may not
