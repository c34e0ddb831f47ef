"""The catalog's wire goes silent, without a reset: every request is answered in time, and the map is fresh afterwards.

And leaders that are paused or cut off: replaced within seconds, also between fence and cutover.
"""

import asyncio
import signal

import httpx2
import pytest

from shards.buckets import bucket_of
from shards.catalog import lease
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.moves.phases import Phase
from shards.moves.placement import PlannedMove
from tests.support.crash_matrix import crash
from tests.support.ledger import execute
from tests.support.loaded import loaded
from tests.support.moving import ended, reached, running, start
from tests.support.proxy import wire
from tests.support.readings import ingest, meter
from tests.support.routers import router_process
from tests.support.servers import new_cluster

BUCKETS = 4


async def test_a_silent_catalog_costs_the_moved_bucket_its_limit_and_nobody_more(servers: list[str]) -> None:
    """At ae7a8c6 a POST to the moved bucket had no answer in 60 s, and the map never became fresh again."""
    async with new_cluster(servers, shards=3, buckets=BUCKETS) as cluster, wire(cluster.catalog_dsn) as line:
        catalog = Catalog(cluster.catalog_dsn)
        mine = next(d for d in cluster.devices_of("s1", 50) if bucket_of(d, BUCKETS) == 0)
        others = [cluster.devices_of(name, 1)[0] for name in ("s2", "s3")]
        settings = {"VOLTROUTE_RUNNER": "false", "VOLTROUTE_INGEST_TIMEOUT_S": "2", "VOLTROUTE_QUERY_TIMEOUT_S": "2"}
        async with (
            router_process(line.dsn, **settings) as router,
            httpx2.AsyncClient(base_url=router.url, timeout=20) as client,
        ):
            await ingest(client, [meter(device, 1) for device in (mine, *others)])
            line.hold()
            async with running(catalog):
                await start(catalog, [PlannedMove(0, "s1", "s2")], keep_s=3600)
                await reached(catalog, Phase.CLEANUP)
            for minute in (2, 3):
                refused, *stored = await asyncio.gather(
                    client.post("/v1/ingest", json=meter(mine, minute)),
                    *(ingest(client, meter(device, minute)) for device in others),
                )
                assert refused.status_code == 503
                assert [answer["accepted"] for answer in stored] == [1, 1]
                assert (await client.get("/v1/pairings")).status_code == 503
                assert (await client.get("/livez")).status_code == 200
            metrics = (await client.get("/metrics")).text
            assert "voltroute_request_body_bytes 0.0" in metrics
            line.let_go()
            async with asyncio.timeout(10):  # its own poll, once more, and a connection
                while (await client.post("/v1/ingest", json=meter(mine, 4))).status_code != 200:
                    await asyncio.sleep(0.05)
        await catalog.close()


async def test_a_fenced_copy_is_not_read_as_if_it_were_new(servers: list[str]) -> None:
    """A router that is cut off from the catalog: after a bound the old owner's copy does not count as an answer."""
    async with new_cluster(servers, shards=3, buckets=BUCKETS) as cluster, wire(cluster.catalog_dsn) as line:
        catalog = Catalog(cluster.catalog_dsn)
        mine = next(d for d in cluster.devices_of("s1", 50) if bucket_of(d, BUCKETS) == 0)
        settings = {"VOLTROUTE_RUNNER": "false", "VOLTROUTE_QUERY_TIMEOUT_S": "2"}
        async with (
            router_process(line.dsn, **settings) as router,
            httpx2.AsyncClient(base_url=router.url, timeout=20) as client,
        ):
            await ingest(client, meter(mine, 1))
            line.cut()
            async with running(catalog):
                await start(catalog, [PlannedMove(0, "s1", "s2")], keep_s=3600)
                await reached(catalog, Phase.CLEANUP)
            assert (await client.get(f"/v1/meters/{mine}/status")).status_code == 200  # a little old, and whole
            await execute(cluster.shards["s1"], "UPDATE bucket_move SET fenced_at = fenced_at - interval '16 seconds'")
            for path in (f"/v1/meters/{mine}/status", f"/v1/meters/{mine}/history", "/v1/analytics/activity"):
                assert (await client.get(path)).status_code == 503, path
        await catalog.close()


@pytest.mark.parametrize("step", ["inside fence", "after fence", "before adopt", "after adopt"])
async def test_a_leader_paused_around_the_fence_is_replaced_by_itself(servers: list[str], step: str) -> None:
    """The standby takes over when the lease runs out; the bucket takes writes again, however long the pause is."""
    async with new_cluster(servers, shards=3, buckets=BUCKETS) as cluster, loaded(cluster) as under:
        await start(under.catalog, [await under.next_move()], keep_s=0)
        async with running(under.catalog) as standby:
            async with asyncio.timeout(10):
                while not standby.leads:
                    await asyncio.sleep(0.01)
            await ended(under.catalog)
        move = await under.next_move()
        await start(under.catalog, [move])
        async with crash(cluster.catalog_dsn, "stop", step) as paused, running(under.catalog):
            assert await ended(under.catalog) == "done"
            await under.recorder.more(50)
            paused.send_signal(signal.SIGCONT)
            async with asyncio.timeout(60):
                assert await paused.wait() == 0
        assert set(under.recorder.statuses) <= {200, 503}
        await under.whole()


async def test_a_leader_whose_catalog_is_silent_stops_before_its_lease_is_anothers(servers: list[str]) -> None:
    async with new_cluster(servers, shards=2, buckets=BUCKETS) as cluster, wire(cluster.catalog_dsn) as line:
        cut_off, catalog = Catalog(line.dsn), Catalog(cluster.catalog_dsn)
        async with running(cut_off) as first:
            async with asyncio.timeout(10):
                while not first.leads:
                    await asyncio.sleep(0.01)
            line.hold()
            both = False
            async with running(catalog) as second, asyncio.timeout(20):
                while not second.leads:
                    await asyncio.sleep(0.005)
                    both |= first.leads and second.leads
                seen = await lease.holder(catalog, deadline_in(5))
                assert (both, first.leads) == (False, False)
                assert seen is not None
                assert seen.leads
            line.let_go()
        await cut_off.close()
        await catalog.close()


@pytest.mark.long
async def test_a_minute_of_silence_in_the_middle_of_a_move(servers: list[str]) -> None:
    """Every request is answered within its limit, and afterwards the map is fresh; `pytest -s` prints how fast."""
    async with new_cluster(servers, shards=3, buckets=BUCKETS) as cluster, wire(cluster.catalog_dsn) as line:
        catalog, clock = Catalog(cluster.catalog_dsn), asyncio.get_running_loop().time
        mine = next(d for d in cluster.devices_of("s1", 50) if bucket_of(d, BUCKETS) == 0)
        other, longest, answers = cluster.devices_of("s2", 1)[0], 0.0, set()
        async with (
            router_process(line.dsn, VOLTROUTE_RUNNER="false") as router,
            httpx2.AsyncClient(base_url=router.url, timeout=20) as client,
        ):
            await ingest(client, [meter(mine, 1), meter(other, 1)])
            line.hold()
            async with running(catalog):
                await start(catalog, [PlannedMove(0, "s1", "s2")], keep_s=3600)
                await reached(catalog, Phase.CLEANUP)
            began, minute = clock(), 2
            while clock() - began < 60:
                minute += 1
                asked = clock()
                answer = await client.post("/v1/ingest", json=meter(mine, minute))
                longest = max(longest, clock() - asked)
                answers.add(answer.status_code)
                await ingest(client, meter(other, minute))
            assert answers == {503}
            line.let_go()
            began = clock()
            async with asyncio.timeout(20):
                while (await client.post("/v1/ingest", json=meter(mine, 1_000))).status_code != 200:
                    await asyncio.sleep(0.05)
            print(f"longest answer {longest:.2f} s (limit 5), stored again {clock() - began:.2f} s after the silence")
        await catalog.close()
