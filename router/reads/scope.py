"""What every read gets beside its query: the cluster, the time it is asked at, and until when it must answer."""

from dataclasses import dataclass
from datetime import datetime

from shards.cluster.live import Cluster


@dataclass(frozen=True)
class Scope:
    """`deadline` is of the monotonic clock. `warning`, `critical`: efficiencies below which a verdict is so."""

    cluster: Cluster
    tenant: int
    deadline: float
    now: datetime
    warning: float
    critical: float
