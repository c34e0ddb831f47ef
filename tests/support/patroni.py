"""A shard that Patroni keeps: two servers, etcd, and what an operator would ask them for."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx2
import psutil
import pytest

from shards.embedded.binaries import enterable, find_binaries, server_account
from shards.embedded.ports import free_ports
from shards.embedded.server import as_account
from tests.support.programs import must_run, need
from tests.support.servers import scratch_folder

READY_S: Final = 90.0
PASSWORD: Final = "pw"
TTL_S: Final = 20  # Patroni's least
SYSTEM_PYTHON: Final = Path("/usr/bin/python3")


def _interpreter() -> Path:
    """A Python of this version that the servers' account may run: as root, Patroni refuses."""
    account = server_account()
    own = Path(sys.executable).resolve()
    if enterable(own, account):
        return Path(sys.executable)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if SYSTEM_PYTHON.exists() and SYSTEM_PYTHON.resolve().name == f"python{version}":
        return SYSTEM_PYTHON
    assert not must_run(), f"no Python {version} for the account of the servers"
    pytest.skip(f"no Python {version} that the account of the servers may run")


@dataclass
class Member:
    """One machine: Patroni, and the server that it keeps."""

    name: str
    folder: Path
    port: int
    api: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        return self.folder / self.name

    def start(self) -> None:
        packages = str(Path(str(find_spec("patroni").origin)).parents[1])  # type: ignore[union-attr]
        command = [str(_interpreter()), "-S", "-m", "patroni", str(self.folder / f"{self.name}.yml")]
        env = {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": str(self.folder), "PYTHONPATH": packages}
        with (self.folder / f"{self.name}.log").open("ab") as log:
            options = as_account(server_account())
            self.process = subprocess.Popen(  # type: ignore[call-overload]
                command, env=env, stdout=log, stderr=log, start_new_session=True, **options
            )

    def vanish(self) -> None:
        """As if the machine had gone: no word to anybody, and nothing of it left."""
        assert self.process is not None
        with contextlib.suppress(FileNotFoundError):
            postmaster = psutil.Process(int((self.data / "postmaster.pid").read_text().split("\n")[0]))
            pids = [self.process.pid, postmaster.pid, *(each.pid for each in postmaster.children(recursive=True))]
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.vanish()


@dataclass
class Patroni:
    """Both members, of which one is the leader."""

    members: list[Member]
    client: httpx2.AsyncClient = field(default_factory=lambda: httpx2.AsyncClient(timeout=60))

    def dsn(self, database: str, user: str = "postgres", password: str = PASSWORD) -> str:
        return f"postgresql://{user}:{password}@{','.join(member.host for member in self.members)}/{database}"

    async def roles(self) -> dict[str, str]:
        """Name -> leader, sync_standby or replica, of those that run."""
        for member in self.members:
            with contextlib.suppress(httpx2.HTTPError, KeyError, ValueError):
                told: dict[str, Any] = (await self.client.get(f"http://127.0.0.1:{member.api}/cluster")).json()
                return {
                    each["name"]: each["role"] for each in told["members"] if each["state"] in {"running", "streaming"}
                }
        return {}

    async def until(self, *wanted: str) -> None:
        """The members have these roles."""
        async with asyncio.timeout(READY_S):
            while sorted((await self.roles()).values()) != sorted(wanted):
                await asyncio.sleep(0.1)

    async def leader(self) -> Member:
        async with asyncio.timeout(READY_S):
            while "leader" not in (found := await self.roles()).values():
                await asyncio.sleep(0.1)
        return next(member for member in self.members if found.get(member.name) == "leader")

    async def switch(self) -> None:
        """A planned switchover to the other one."""
        leader = await self.leader()
        other = next(member for member in self.members if member is not leader)
        asked = {"leader": leader.name, "candidate": other.name}
        answer = await self.client.post(f"http://127.0.0.1:{leader.api}/switchover", json=asked)
        assert answer.status_code == 200, answer.text

    async def make_database(self, name: str, owner: str) -> None:
        connection = await asyncpg.connect(self.dsn("postgres") + "?target_session_attrs=read-write")
        await connection.execute(f"CREATE ROLE {owner} LOGIN CREATEROLE PASSWORD '{PASSWORD}'")
        await connection.execute(f"GRANT pg_read_all_stats, pg_read_all_settings TO {owner} WITH ADMIN OPTION")
        await connection.execute(f"CREATE DATABASE {name} OWNER {owner}")
        await connection.close()


def _configuration(member: Member, etcd: int, socket_folder: Path) -> dict[str, Any]:
    parameters = {
        "max_connections": 200,
        "max_locks_per_transaction": 256,
        "unix_socket_directories": str(socket_folder),
        "wal_log_hints": "on",  # pg_rewind's
        "shared_preload_libraries": "pg_stat_statements",
    }
    logins = {name: {"username": name, "password": PASSWORD} for name in ("replication", "rewind")}
    return {
        "scope": "shard",
        "name": member.name,
        "restapi": {"listen": f"127.0.0.1:{member.api}", "connect_address": f"127.0.0.1:{member.api}"},
        "etcd3": {"hosts": f"127.0.0.1:{etcd}"},
        "bootstrap": {
            "dcs": {
                "ttl": TTL_S,
                "loop_wait": 2,
                "retry_timeout": 3,
                "synchronous_mode": True,
                "postgresql": {"use_pg_rewind": True, "parameters": parameters},
            },
            "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, {"auth": "scram-sha-256"}],
        },
        "postgresql": {
            "listen": member.host,
            "connect_address": member.host,
            "data_dir": str(member.data),
            "bin_dir": str(find_binaries()),
            "pgpass": str(member.folder / f"{member.name}.pgpass"),
            "authentication": {"superuser": {"username": "postgres", "password": PASSWORD}, **logins},
            "pg_hba": [
                "host all all 127.0.0.1/32 scram-sha-256",
                "host replication replication 127.0.0.1/32 scram-sha-256",
                "local all all scram-sha-256",
            ],
        },
    }


@asynccontextmanager
async def _etcd(folder: Path) -> AsyncIterator[int]:
    need("etcd")
    client, peer = free_ports(2)
    urls = {"client": f"http://127.0.0.1:{client}", "peer": f"http://127.0.0.1:{peer}"}
    command = ["etcd", "--data-dir", str(folder / "etcd"), "--listen-client-urls", urls["client"]]
    command += ["--advertise-client-urls", urls["client"], "--listen-peer-urls", urls["peer"]]
    command += ["--initial-advertise-peer-urls", urls["peer"], "--initial-cluster", f"default={urls['peer']}"]
    with (folder / "etcd.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, cwd=folder)
    try:
        yield client
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def patroni() -> AsyncIterator[Patroni]:
    """Two members under synchronous mode, one the leader, the other in step with it."""
    folder = scratch_folder()
    account = server_account()
    if account is not None:
        shutil.chown(folder, account.pw_uid, account.pw_gid)
    ports = free_ports(4)
    members = [Member(f"n{number}", folder, ports[number], ports[number + 2]) for number in range(2)]
    made = Patroni(members)
    try:
        async with _etcd(folder) as etcd:
            try:
                for member in members:
                    file = folder / f"{member.name}.yml"
                    file.write_text(json.dumps(_configuration(member, etcd, folder)))
                    file.chmod(0o644)
                    member.start()
                    await made.leader()
                await made.until("leader", "sync_standby")
                yield made
            finally:
                for member in members:
                    await asyncio.to_thread(member.stop)
    finally:
        await made.client.aclose()
        shutil.rmtree(folder, ignore_errors=True)
