"""What a pool is told when it is made, and what it tells of itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shards.errors import Cause, Unusable
from shards.postgres.breaker import BreakerState
from shards.postgres.lineage import Lineage, Role


@dataclass(frozen=True)
class PoolLimits:
    """Size and patience of a pool. All timeouts are in seconds.

    `hold_s`: for so long from its beginning on, an outage that is likely to end soon is waited for.
    """

    min_size: int = 5
    max_size: int = 20
    idle_s: float = 30.0
    connect_timeout_s: float = 2.0
    acquire_timeout_s: float = 2.0
    statement_timeout_s: float = 10.0
    lock_timeout_s: float = 1.0
    cooldown_max_s: float = 5.0
    hold_s: float = 5.0


@dataclass(frozen=True)
class PoolUse:
    """Connections of a pool at this moment.

    `cause`: why the last use failed; None when it did not. `failing`: it failed just now, or would not be tried.
    """

    open: int
    idle: int
    max_size: int
    breaker: BreakerState
    cause: Cause | None
    failing: bool


@dataclass(frozen=True)
class PoolOptions:
    """A pool's sessions. `identity`: "cluster name" of the shard behind the DSN, if known. `writes`: of readings.

    `lineage`: what is known of the database's primary, shared by its pools. `role`: what the server must be.
    """

    application_name: str = "voltroute"
    session: Mapping[str, str] | None = None
    identity: str | None = None
    changed: Callable[[str, str, Unusable | None], None] = lambda _shard, _login, _error: None
    writes: bool = False
    lineage: Lineage | None = None
    role: Role = Role.PRIMARY
