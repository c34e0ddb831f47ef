"""/v1/rebalance: the newest rebalance, its moves, the leader, and why nothing moves if nothing does."""

from typing import Final

import msgspec

from router.http.endpoint import Call, Endpoint
from router.reads.rebalance import status
from router.wire.answers import RebalanceStatus
from router.wire.openapi import Operation


async def _show(call: Call) -> msgspec.Struct:
    return await status(call.router.cluster.catalog, call.router.query_deadline(), reasons=False)


ENDPOINTS: Final = (
    Endpoint(
        Operation(
            "get",
            "/v1/rebalance",
            "rebalance",
            "Moves of buckets and their progress",
            "operations",
            RebalanceStatus,
            right="admin",
        ),
        _show,
    ),
)
