"""What an embedded cluster must remember between two starts: one JSON file, readable by its owner alone."""

import fcntl
import itertools
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final
from urllib.parse import quote

from shards.embedded.folder import open_ours
from shards.embedded.ports import free_ports, port_is_free
from shards.errors import MachineError

FILE: Final = "cluster.json"
FORMAT: Final = 1
DATABASE: Final = "voltroute"
OWNER: Final = "voltroute_owner"
SUPERUSER: Final = "postgres"
CATALOG: Final = "catalog"
_LATER: Final = ("copies", "primaries", "promotions", "aside", "replication_password")  # written when there are any


@dataclass(frozen=True)
class Promotion:
    """A server is to become its shard's primary. `force`: whatever it lacks; `refused`: why it was not done."""

    server: str
    force: bool = False
    refused: str | None = None


@dataclass(frozen=True, repr=False)
class State:
    """Servers (name -> port; the catalog first), bucket count and passwords.

    `copies`: server -> the shard that it was made a replica of; `primaries`: shard -> the server that was promoted;
    `promotions`: by shard; `aside`: servers that are never started again, as their shard went on without them.
    """

    bucket_count: int
    ports: dict[str, int]
    superuser_password: str
    owner_password: str
    copies: dict[str, str] = field(default_factory=dict)
    primaries: dict[str, str] = field(default_factory=dict)
    promotions: dict[str, Promotion] = field(default_factory=dict)
    aside: tuple[str, ...] = ()
    replication_password: str = ""

    @property
    def shard_names(self) -> list[str]:
        return [name for name in self.ports if name != CATALOG and name not in self.copies]

    def primary(self, name: str) -> str:
        """The server on which a shard, or the catalog, is written."""
        return self.primaries.get(name, name)

    def shard_of(self, server: str) -> str:
        """Whose data a server has."""
        return self.copies.get(server, server)

    def replicas(self, shard: str) -> list[str]:
        """The servers that follow the shard's primary."""
        servers = [each for each in self.ports if self.shard_of(each) == shard and each not in self.aside]
        return [each for each in servers if each != self.primary(shard)]

    def dsn(self, name: str) -> str:
        """DSN of a shard's database, or the catalog's, as its owner; with all servers that may be its primary."""
        servers = [self.primary(name), *self.replicas(name)]
        hosts = ",".join(f"127.0.0.1:{self.ports[each]}" for each in servers)
        return f"postgresql://{OWNER}:{quote(self.owner_password)}@{hosts}/{DATABASE}"

    def superuser_dsn(self, name: str, database: str) -> str:
        """DSN of a database on the server `name`, as its superuser."""
        return f"postgresql://{SUPERUSER}:{quote(self.superuser_password)}@127.0.0.1:{self.ports[name]}/{database}"

    def shard_dsns(self) -> dict[str, str]:
        """Shard name -> DSN as owner."""
        return {name: self.dsn(name) for name in self.shard_names}


def new_state(shards: Sequence[str], bucket_count: int) -> State:
    """State of a new cluster with these shards: ports that are free now, random passwords."""
    names = [CATALOG, *shards]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    return State(bucket_count, ports, secrets.token_urlsafe(24), secrets.token_urlsafe(24))


def with_free_ports(state: State) -> State:
    """The same cluster; a port that something else took meanwhile is replaced."""
    taken = [name for name, port in state.ports.items() if not port_is_free(port)]
    return replace(state, ports={**state.ports, **dict(zip(taken, free_ports(len(taken)), strict=True))})


@contextmanager
def editing_state(directory: Path) -> Iterator[State]:
    """The state of a cluster that runs, for as long as nobody else edits it. MachineError when there is none."""
    descriptor = open_ours(directory / f"{FILE}.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        state = load_state(directory)
        if state is None:
            message = f"no cluster in {directory}"
            raise MachineError(message)
        yield state
    finally:
        os.close(descriptor)


def with_server(state: State, name: str) -> State:
    """The same cluster with one more server, unless it is there already."""
    return state if name in state.ports else replace(state, ports={**state.ports, name: free_ports(1)[0]})


def without_server(state: State, name: str) -> State:
    """The same cluster without a shard's servers."""
    return replace(
        state,
        ports={other: port for other, port in state.ports.items() if state.shard_of(other) != name},
        copies={server: shard for server, shard in state.copies.items() if shard != name},
        primaries={shard: server for shard, server in state.primaries.items() if shard != name},
        promotions={shard: each for shard, each in state.promotions.items() if shard != name},
        aside=tuple(each for each in state.aside if state.shard_of(each) != name),
    )


def with_replicas(state: State, count: int) -> State:
    """The same cluster in which each shard has at least so many replicas."""
    if count == 0:
        return state
    ports, copies = dict(state.ports), dict(state.copies)
    for shard in state.shard_names:
        names = (f"{shard}-r{number}" for number in itertools.count(1))
        for name in itertools.islice(
            (each for each in names if each not in ports), max(0, count - len(state.replicas(shard)))
        ):
            ports[name], copies[name] = free_ports(1)[0], shard
    password = state.replication_password or secrets.token_urlsafe(24)
    return replace(state, ports=ports, copies=copies, replication_password=password)


def asked_to_promote(state: State, shard: str, promotion: Promotion | None) -> State:
    """The same cluster, in which a server is to become its shard's primary; None: no longer."""
    others = {name: each for name, each in state.promotions.items() if name != shard}
    return replace(state, promotions=others if promotion is None else {**others, shard: promotion})


def promoted(state: State, shard: str, server: str, *, aside: bool) -> State:
    """The same cluster after a promotion. `aside`: the old primary has what the new one lacks, and stays out."""
    old = state.primary(shard)
    after = replace(state, primaries={**state.primaries, shard: server})
    return asked_to_promote(replace(after, aside=(*state.aside, old) if aside else state.aside), shard, None)


def load_state(directory: Path) -> State | None:
    """The state in `directory`, or None when no cluster is there. MachineError when it cannot be read."""
    try:
        with os.fdopen(open_ours(directory / FILE, os.O_RDONLY), encoding="utf-8") as file:
            content = json.loads(file.read())
    except MachineError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        if isinstance(error.__cause__, PermissionError):
            raise error.__cause__ from None
        raise
    except (OSError, ValueError) as error:
        message = f"cannot read {directory / FILE}: {error}"
        raise MachineError(message) from error
    if content.pop("format", None) != FORMAT:
        message = f"{directory / FILE} was written by another release of voltroute"
        raise MachineError(message)
    content["promotions"] = {name: Promotion(**each) for name, each in content.get("promotions", {}).items()}
    content["aside"] = tuple(content.get("aside", ()))
    return State(**content)


def save_state(directory: Path, state: State) -> None:
    """Write the state so that a crash leaves the old or the new one, never half of one."""
    partial = directory / f"{FILE}.partial"
    partial.unlink(missing_ok=True)
    descriptor = open_ours(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        content = {name: value for name, value in asdict(state).items() if value or name not in _LATER}
        json.dump({"format": FORMAT, **content}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(directory / FILE)
