"""The efficiency of everything that charges, of all tenants: a duty of the leader, for one gauge."""

import asyncio
import contextlib
import time
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from router.reads.fleet import fleet
from router.reads.scope import Scope
from router.wire.problems import ProblemError
from router.wire.queries import FleetQuery
from shards.catalog import tenants
from shards.clock import deadline_in
from shards.cluster.live import Cluster
from shards.errors import ClusterError, ShardError

PERIOD: Final = timedelta(hours=1)
EVERY_S: Final = 60.0
PATIENCE_S: Final = 10.0
_log: Final = structlog.stdlib.get_logger(__name__)


class FleetEfficiency:
    """`ratio`: DC / AC within pairings over the last hour; None without AC, or while nobody could be asked."""

    def __init__(self, cluster: Cluster, warning: float) -> None:
        self.ratio: float | None = None
        self._cluster = cluster
        self._warning = warning
        self._is_low = False

    async def run(self, _generation: int) -> None:
        """Ask each minute, until cancelled; then there is no ratio here any more."""
        try:
            while True:
                await asyncio.sleep(EVERY_S)
                self.ratio = None
                with contextlib.suppress(ProblemError, ShardError, ClusterError):
                    self.ratio = await self._ask()
                self._tell()
        finally:
            self.ratio = None

    async def _ask(self) -> float | None:
        now = datetime.now(UTC)
        consumed = delivered = 0.0
        for tenant in await tenants.all_of(self._cluster.catalog, deadline_in(PATIENCE_S)):
            scope = Scope(self._cluster, tenant.tenant_id, time.monotonic() + PATIENCE_S, now, self._warning, 0.0)
            paired = (await fleet(scope, FleetQuery(start=now - PERIOD, end=now))).paired
            if paired.total_energy_consumed_ac and paired.total_energy_delivered_dc is not None:
                consumed += paired.total_energy_consumed_ac
                delivered += paired.total_energy_delivered_dc
        return delivered / consumed if consumed > 0 else None

    def _tell(self) -> None:
        """A line when it falls below the warning, and when it is back."""
        is_low = self.ratio is not None and self.ratio < self._warning
        if is_low and not self._is_low:
            _log.warning("low_efficiency", ratio=round(self.ratio or 0.0, 4), below=self._warning)
        elif self._is_low and not is_low:
            _log.info("efficiency_recovered", ratio=self.ratio)
        self._is_low = is_low
