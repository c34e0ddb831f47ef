"""Taking a test cluster's history through its tiers, and what every answer about it says."""

import asyncio
import contextlib
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

import httpx2

from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.kinds import KINDS
from shards.policy import Policies, Policy
from shards.shard import ShardRecord
from shards.tiers import due
from shards.tiers.runner import Result, Tender
from shards.tiers.watching import Watch, watch_nothing
from tests.support.ledger import execute, fetch
from tests.support.servers import TestCluster

HOT: Mapping[str, Policy] = {kind.name: Policy(kind.name, timedelta(0)) for kind in KINDS}
READERS_S = 120  # how long statements may keep a leaf from being dropped, on a machine that is busy
PATHS = (
    "/v1/analytics/fleet",
    "/v1/analytics/activity",
    "/v1/meters",
    "/v1/vehicles",
)


async def records_of(cluster: TestCluster) -> list[ShardRecord]:
    catalog = Catalog(cluster.catalog_dsn)
    try:
        return await catalog.shards(deadline_in(10))
    finally:
        await catalog.close()


async def tend(
    cluster: TestCluster, watch: Watch = watch_nothing, policies: Mapping[str, Policy] = HOT
) -> list[Result]:
    """Everything that is due, on every shard; nothing may fail. A statement that still reads a leaf is waited for."""
    results = [await _tended(Tender(record, Policies(policies), watch=watch)) for record in await records_of(cluster)]
    failed = {name: why for result in results for name, why in result.failed.items()}
    assert failed == {}, failed
    return results


async def _tended(tender: Tender) -> Result:
    result = await tender.run()  # as long as it takes: the test's own limit is enough
    async with asyncio.timeout(READERS_S):
        while result.waiting and not result.failed:
            await asyncio.sleep(0.05)
            again = await tender.run(rollups=False)  # what the first run left of them is what tests look at
            result = Result(result.done).with_(again)
    return result


class Interrupted(BaseException):
    """A test ends the steps here, as a process that is killed would: nothing that fails alone catches it."""


async def age(cluster: TestCluster, kind: str, place: str) -> None:
    """Take the history of one kind through its tiers, up to a place where that is interrupted, or to the end."""
    with contextlib.suppress(Interrupted):
        await tend(cluster, until(place), {kind: Policy(kind, timedelta(0))})


def until(where: str, times: int = 1) -> Watch:
    """Ends the steps when one is at this place for that many times."""
    seen = 0

    async def watch(place: str) -> None:
        nonlocal seen
        seen += place == where
        if seen >= times and place == where:
            raise Interrupted

    return watch


async def answers(client: httpx2.AsyncClient, period: Mapping[str, str], devices: Mapping[str, list[str]]) -> Any:
    """Every answer about these devices (plural of their kind -> IDs), without what tells the tiers apart."""
    found: dict[str, Any] = {}
    for plural, ids in devices.items():
        for device in ids:
            for params in ({**period, "limit": 7}, {"limit": 1000}):
                pages, cursor = [], None
                while True:
                    more: dict[str, Any] = {"cursor": cursor} if cursor else {}
                    page = await _get(client, f"/v1/{plural}/{device}/history", {**params, **more})
                    pages += page["items"]
                    cursor = page["next"]
                    if cursor is None:
                        break
                found[f"{plural} {device} {len(params)}"] = pages
            if plural == "vehicles":
                found[f"performance {device}"] = await _get(client, f"/v1/analytics/performance/{device}", period)
    for interval in ("1h", "day"):
        found[f"fleet {interval}"] = await _get(client, "/v1/analytics/fleet", {**period, "interval": interval})
    for limit in (5, 1000):
        found[f"activity {limit}"] = await _get(
            client, "/v1/analytics/activity", {"since": period["from"], "limit": limit}
        )
    for plural in devices:
        found[plural] = await _get(client, f"/v1/{plural}", {})
    return _plain(found)


async def _get(client: httpx2.AsyncClient, path: str, params: Mapping[str, Any]) -> Any:
    answer = await client.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items() if name not in {"tiers", "ingestedAt", "asOf"}}
    return [_plain(each) for each in value] if isinstance(value, list) else value


PLACES = (
    "inside roll",
    "after roll",
    "inside freeze",
    "after freeze",
    "inside pack",
    "after pack",
    "inside publish",
    "after publish",
    "after detach",
    "after drop",
    "inside merge",
    "after merge",
)
_LEAVES = "SELECT b.name AS parent, l.name FROM bucket_table AS b CROSS JOIN LATERAL leaves_of(b.name) AS l"


async def as_if_made(cluster: TestCluster, since: date, width: str) -> None:
    """A cluster without readings, as if it had been made at `since` with partitions of a day, week or month."""
    for dsn in cluster.shards.values():
        parents = set()
        for record in await fetch(dsn, f"{_LEAVES} WHERE b.role = 'history'"):
            await execute(dsn, f"DROP TABLE {record['name']}")
            parents.add(record["parent"])
        for parent in parents:
            await fetch(dsn, "SELECT make_leaf($1, $1 || '_past', 'MINVALUE', $2)", parent, f"'{since}'")
        await execute(dsn, "UPDATE owned_bucket SET first_month = $1", since)
        await execute(dsn, "UPDATE leaf_width SET width = $1", width)
    await execute(cluster.catalog_dsn, "UPDATE cluster SET first_month = $1, leaf_width = $2", since, width)


def soon(monkeypatch: Any) -> None:
    """Late readings are merged at once."""
    monkeypatch.setattr(due, "MERGE_AFTER", timedelta(0))
