"""What an embedded cluster must remember between two starts: one JSON file, readable by its owner alone."""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
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


@dataclass(frozen=True, repr=False)
class State:
    """Servers (name -> port; the catalog first), bucket count and passwords."""

    bucket_count: int
    ports: dict[str, int]
    superuser_password: str
    owner_password: str

    @property
    def shard_names(self) -> list[str]:
        return [name for name in self.ports if name != CATALOG]

    def dsn(self, name: str) -> str:
        """DSN of the database on the server `name`, as its owner."""
        return f"postgresql://{OWNER}:{quote(self.owner_password)}@127.0.0.1:{self.ports[name]}/{DATABASE}"

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
    """The same cluster with one server less."""
    return replace(state, ports={other: port for other, port in state.ports.items() if other != name})


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
    return State(**content)


def save_state(directory: Path, state: State) -> None:
    """Write the state so that a crash leaves the old or the new one, never half of one."""
    partial = directory / f"{FILE}.partial"
    partial.unlink(missing_ok=True)
    descriptor = open_ours(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"format": FORMAT, **asdict(state)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(directory / FILE)
