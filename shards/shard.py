"""A registered shard: what it is called, what it is for, and how it is reached."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from shards.errors import InvalidArgument


class ShardState(StrEnum):
    """ACTIVE may be given buckets; DRAINING is to be emptied. Either may become the other."""

    ACTIVE = "active"
    DRAINING = "draining"


SHARD_FOLLOWING: Final[dict[ShardState, frozenset[ShardState]]] = {
    ShardState.ACTIVE: frozenset({ShardState.DRAINING}),
    ShardState.DRAINING: frozenset({ShardState.ACTIVE}),
}


@dataclass(frozen=True)
class ReplicaRecord:
    """A streaming replica of a shard. `address`: hosts and ports as in a DSN; `zone`: whose routers read it first."""

    name: str
    address: str
    zone: str | None = None


@dataclass(frozen=True, repr=False)
class ShardRecord:
    """A shard and its logins. The DSNs hold passwords: repr() leaves them out.

    `old_reader_dsn`: the login of routers before there were tenants, until it is retired. The same as `reader_dsn`
    while there is no other: `voltroute migrate up` was not finished; then there is no `monitor_dsn` either. `system`:
    its servers' system identifier, None when nobody has asked yet; `timeline`: the newest that was seen of its primary.
    """

    name: str
    state: ShardState
    owner_dsn: str
    writer_dsn: str
    reader_dsn: str
    weight: float = 1.0
    old_reader_dsn: str | None = None
    monitor_dsn: str | None = None
    system: int | None = None
    timeline: int = 0
    replicas: tuple[ReplicaRecord, ...] = ()

    @property
    def has_tenants(self) -> bool:
        """Whether its reader's login sees one tenant at a time."""
        return self.reader_dsn != self.old_reader_dsn

    def __repr__(self) -> str:
        return f"ShardRecord({self.name!r}, {self.state.value!r})"


def check_name(name: str, what: str = "shard") -> str:
    """`name` if a shard (`what`) can be called so: 1-31 of a-z, 0-9, _ and -, a letter first; else InvalidArgument."""
    known = name.isascii() and all(c.islower() or c.isdigit() or c in "_-" for c in name)
    if not (known and name[:1].isalpha() and len(name) <= 31):
        message = f"{what} name {name[:64]!r}: use 1-31 of a-z, 0-9, _ and -, beginning with a letter"
        raise InvalidArgument(message)
    return name
