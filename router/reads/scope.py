"""What every read gets beside its query: the cluster, the time it is asked at, and until when it must answer."""

from dataclasses import dataclass, field
from datetime import datetime

from shards.cluster.live import Cluster


@dataclass
class Seen:
    """Of when the parts of a read are: each has everything that was committed at its time; None: nobody knows."""

    times: list[datetime | None] = field(default_factory=list)
    cache: str | None = None  # hit, miss or bypass, where statuses are kept

    @property
    def as_of(self) -> datetime | None:
        """Of when all of them are, the oldest's time."""
        known = [each for each in self.times if each is not None]
        return min(known) if known and len(known) == len(self.times) else None


@dataclass(frozen=True)
class Scope:
    """`deadline` is of the monotonic clock. `warning`, `critical`: efficiencies below which a verdict is so.

    `reader`: who asks, to whom no answer is of an earlier state than one before; `stale`: however old it is.
    """

    cluster: Cluster
    tenant: int
    deadline: float
    now: datetime
    warning: float
    critical: float
    reader: str = ""
    stale: bool = False
    seen: Seen = field(default_factory=Seen)
