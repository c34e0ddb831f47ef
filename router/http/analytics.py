"""/v1/analytics: performance of a vehicle, the fleet, recent activity; /v1/usage."""

from collections.abc import Iterable
from typing import Final

import msgspec

from router.http.endpoint import Call, Endpoint
from router.reads import activity, fleet, performance, usage
from router.wire import answers as wire
from router.wire.openapi import Operation
from router.wire.queries import ActivityQuery, FleetQuery, PerformanceQuery, UsageQuery
from router.wire.stored import activity_list
from router.wire.usage import Usage
from shards.kinds import Kind


async def _performance(call: Call) -> msgspec.Struct:
    return await performance.performance(call.scope_for(call.query.id), call.query)


async def _fleet(call: Call) -> msgspec.Struct:
    return await fleet.fleet(call.scope_for(), call.query)


async def _usage(call: Call) -> msgspec.Struct:
    return await usage.by_day(call.scope_for(), call.query)


async def _activity(call: Call) -> msgspec.Struct:
    return await activity.activity(call.scope_for(), call.query)


_SUMS: Final = (
    Endpoint(
        Operation(
            "get",
            "/v1/analytics/performance/{id}",
            "performance",
            "AC, DC and efficiency of a vehicle",
            "analytics",
            wire.Performance,
            query=PerformanceQuery,
        ),
        _performance,
    ),
    Endpoint(
        Operation(
            "get",
            "/v1/analytics/fleet",
            "fleet",
            "AC, DC and efficiency of all devices",
            "analytics",
            wire.Fleet,
            query=FleetQuery,
        ),
        _fleet,
    ),
    Endpoint(
        Operation(
            "get",
            "/v1/usage",
            "usage",
            "Readings, devices and bytes by day",
            "analytics",
            Usage,
            query=UsageQuery,
        ),
        _usage,
    ),
)


def endpoints(kinds: Iterable[Kind]) -> list[Endpoint]:
    """All of them; what is recent may be of any kind."""
    recent = Operation(
        "get",
        "/v1/analytics/activity",
        "activity",
        "Newest readings of all devices",
        "analytics",
        activity_list(tuple(kinds)),
        query=ActivityQuery,
    )
    return [*_SUMS, Endpoint(recent, _activity)]
