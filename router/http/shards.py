"""/v1/shards: the map, and size and health of each shard."""

import asyncio
import time
from typing import Final

import msgspec
import structlog

from router.context import Router
from router.http.endpoint import Call, Endpoint
from router.wire.answers import Shards
from router.wire.openapi import Operation
from router.wire.problems import NOT_FOUND, ProblemError
from router.wire.queries import ShardQuery
from router.wire.shards import ReplicaInfo, ShardInfo, ShardList, Statement, StatementList
from shards.cluster.replicas import ReplicaState
from shards.cluster.shard import Shard
from shards.errors import ShardError
from shards.postgres import figures
from shards.storage import read
from shards.storage.rows import Record

SIZE_TIMEOUT_S: Final = 2.0
STATEMENTS_MAX: Final = 50
_log: Final = structlog.stdlib.get_logger(__name__)


async def _list(call: Call) -> msgspec.Struct:
    """A shard that does not answer is listed as such; why is in the log, not for everybody."""
    router = call.router
    deadline = min(router.query_deadline(), time.monotonic() + SIZE_TIMEOUT_S)
    names = sorted(router.cluster.shards)
    found = await asyncio.gather(*(_size(router.cluster.shards[name], deadline) for name in names))
    items = [_info(router, name, size) for name, size in zip(names, found, strict=True)]
    missing = [item.name for item in items if not item.reachable]
    shard_map = router.cluster.map
    counted = Shards(len(items), len(items) - len(missing), missing)
    return ShardList(items, None, shard_map.epoch, shard_map.bucket_count, is_partial=bool(missing), shards=counted)


async def _size(shard: Shard, deadline: float) -> Record | None:
    try:
        async with shard.reader.connection(deadline) as connection:
            return await read.size(connection)
    except ShardError as error:
        _log.info("size_unknown", shard=error.shard, detail=error.detail)
        return None


async def _statements(call: Call) -> msgspec.Struct:
    """The slowest statements of a shard, and those that take most of its time; with their texts."""
    name = call.query.name
    shard = call.router.cluster.shards.get(name)
    if shard is None or shard.monitor is None:
        raise ProblemError(NOT_FOUND, f"there is no shard {name} whose statistics are read")
    async with shard.monitor.connection(call.router.query_deadline()) as connection:
        found = await figures.statements(connection, STATEMENTS_MAX)
    return StatementList([Statement(**vars(each)) for each in found])


def _info(router: Router, name: str, size: Record | None) -> ShardInfo:
    shard = router.cluster.shards[name]
    use = shard.writer.use()
    return ShardInfo(
        name=name,
        state=shard.record.state,
        reachable=size is not None,
        buckets=list(router.cluster.map.by_shard.get(name, ())),
        size_bytes=size["size_bytes"] if size else None,
        readings_estimate=size["readings_estimate"] if size else None,
        breaker=use.breaker.value,
        pool_open=use.open,
        pool_idle=use.idle,
        queued_readings=sum(
            lane.queued for (owner, _), lane in router.intake.dispatcher.lanes.items() if owner == name
        ),
        detail=None if size is not None else "does not answer",
        replicas=[_replica(each) for each in shard.replicas.states()],
    )


def _replica(state: ReplicaState) -> ReplicaInfo:
    lag_s = None if state.lag_s is None else round(state.lag_s, 3)
    return ReplicaInfo(state.name, state.zone, lag_s, state.why_not is None, state.why_not)


ENDPOINTS: Final = (
    Endpoint(
        Operation("get", "/v1/shards", "shards", "Shard map, sizes and health", "operations", ShardList, right="admin"),
        _list,
    ),
    Endpoint(
        Operation(
            "get",
            "/v1/shards/{name}/statements",
            "statements",
            "Statements that are slow, or take most of the time",
            "operations",
            StatementList,
            query=ShardQuery,
            right="admin",
        ),
        _statements,
    ),
)
