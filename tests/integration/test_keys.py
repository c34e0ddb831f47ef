"""Keys: who is let in, for what, and how much."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import httpx2
import pytest

from router.access.limits import DEBT_S
from router.wire.parameters import encode_cursor
from shards.catalog.keys import Right
from shards.operations import tenants
from tests.support.proxy import wire
from tests.support.readings import ingest, meter, vehicle
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tenants import catalog_of, new_key, new_tenant

OPEN = ("/", "/livez", "/readyz", "/docs", "/openapi.json", "/problems/unauthorized", "/docs/assets/swagger-ui.css")
CLOSED = (
    "/metrics",
    "/v1/meters",
    "/v1/meters/M/status",
    "/v1/analytics/fleet",
    "/v1/pairings",
    "/v1/shards",
    "/v1/rebalance",
    "/nowhere",
)


@pytest.fixture
async def cluster(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=8) as made:
        yield made


async def until(client: httpx2.AsyncClient, status: int, **request: object) -> httpx2.Response:
    """The answer to a GET when it has that status: a router learns of keys a moment later."""
    async with asyncio.timeout(20):
        while True:
            answer = await client.get("/v1/meters", **request)  # type: ignore[arg-type]
            if answer.status_code == status:
                return answer
            await asyncio.sleep(0.02)


async def test_the_first_key_closes_a_cluster_and_the_last_one_leaves_it_closed(cluster: TestCluster) -> None:
    async with in_process(cluster) as client:
        foreign = {
            "Authorization": f"Bearer vr_zzzzzzzz_{'A' * 43}"
        }  # or one made a moment ago: not everybody's tenant
        for answer in [await client.post("/v1/ingest", json=meter("M"), headers=foreign) for _ in range(2)]:
            assert (answer.status_code, answer.json()["type"]) == (401, "/problems/unauthorized")
        assert (await client.get("/v1/meters", headers=foreign)).status_code == 401
        assert (await client.post("/v1/ingest", json=meter("M"))).json()["accepted"] == 1
        for other in ("Bearer of-a-proxy", "Basic dnJfOnZyXw=="):
            assert (await client.get("/v1/meters", headers={"Authorization": other})).status_code == 200
        key = await new_key(cluster)
        refused = await until(client, 401)
        assert refused.headers["www-authenticate"].startswith("Bearer")
        assert refused.json()["type"] == "/problems/unauthorized"
        for path in OPEN:
            assert (await client.get(path)).status_code in {200, 503}, path
        for path in CLOSED:
            assert (await client.get(path)).status_code == 401, path
        assert (await client.post("/v1/ingest", json=meter("M", 1))).status_code == 401
        assert (await client.post("/v1/ingest", json=meter("M", 1), headers=key.headers)).json()["accepted"] == 1
        assert (await client.get("/metrics", headers=key.headers)).status_code == 200
        assert (await client.get("/nowhere", headers=key.headers)).status_code == 404
        async with catalog_of(cluster) as catalog:
            assert await tenants.revoke_key(catalog, key.key_id)
        await until(client, 401, headers=key.headers)
        assert (await client.post("/v1/ingest", json=meter("M", 2), headers=key.headers)).status_code == 401
        assert (await client.get("/v1/meters")).status_code == 401
    async with in_process(cluster) as fresh:
        assert (await fresh.get("/v1/meters")).status_code == 401


async def test_whatever_is_wrong_with_a_key_the_answer_is_one(cluster: TestCluster) -> None:
    good = await new_key(cluster)
    expired = await new_key(cluster, expires_at=datetime.now(UTC) + timedelta(seconds=0.2))
    other = good.text[:-1] + ("A" if good.text[-1] != "A" else "B")
    given = [None, "", "Bearer", "Bearer x", f"Basic {good.text}", f"Bearer {good.text}x", f"Bearer {other}"]
    given += [f"Bearer vr_zzzzzzzz_{'A' * 43}", f"Bearer {expired.text}", "Bearer \xff"]
    async with in_process(cluster) as client:
        await until(client, 200, headers={"authorization": f"bearer {good.text}"})
        await until(client, 401, headers=expired.headers)
        answers = set()
        for header in given:
            headers = {} if header is None else {"Authorization": header.encode("latin-1")}
            answer = await client.get("/v1/meters", headers=headers)  # type: ignore[arg-type]
            post = await client.post("/v1/ingest", json=meter("M"), headers=headers)  # type: ignore[arg-type]
            assert (answer.status_code, post.status_code) == (401, 401), header
            answers |= {(a.json()["detail"], a.json()["title"]) for a in (answer, post)}
        assert len(answers) == 1


async def test_each_scope_opens_its_own_door(cluster: TestCluster) -> None:
    keys = {right: await new_key(cluster, scopes=(right,)) for right in Right}
    pairing = {"vehicleId": "V", "meterId": "M", "validFrom": "2026-01-01T00:00:00Z"}
    asked = {
        ("POST", "/v1/ingest"): Right.INGEST,
        ("PUT", "/v1/pairings"): Right.INGEST,
        ("GET", "/v1/meters"): Right.READ,
        ("GET", "/v1/analytics/activity"): Right.READ,
        ("GET", "/v1/shards"): Right.ADMIN,
        ("GET", "/v1/rebalance"): Right.ADMIN,
        ("GET", "/metrics"): Right.ADMIN,
    }
    async with in_process(cluster) as client:
        await until(client, 200, headers=keys[Right.READ].headers)
        for (method, path), needed in asked.items():
            for right, key in keys.items():
                body = pairing if path == "/v1/pairings" else meter("M")
                json = None if method == "GET" else body
                answer = await client.request(method, path, json=json, headers=key.headers)
                assert (answer.status_code == 403) is (right is not needed), (method, path, right)
                if right is not needed:
                    assert f"this needs {needed}" in answer.json()["detail"]
                    assert answer.json()["type"] == "/problems/forbidden"


async def test_a_prefix_is_an_error_of_the_item_and_bounds_what_is_read(cluster: TestCluster) -> None:
    key = await new_key(cluster, prefix="ACME-")
    every = await new_key(cluster)
    items = [meter("ACME-1"), meter("OTHER-1"), vehicle("ACME-2"), vehicle("ACM"), {"meterId": "ACME-3"}]
    async with in_process(cluster) as client:
        await until(client, 200, headers=every.headers)
        answer = await client.post("/v1/ingest", json=items, headers=key.headers)
        assert (answer.json()["accepted"], answer.json()["rejected"]) == (2, 3)
        errors = {error["index"]: error for error in answer.json()["errors"]}
        assert (errors[1]["pointer"], errors[1]["code"]) == ("/meterId", "foreign_device")
        assert "must begin with ACME-" in errors[1]["detail"]
        assert errors[3]["pointer"] == "/vehicleId"
        assert errors[4]["code"] == "missing_field"
        one = await client.post("/v1/ingest/meter", json=meter("OTHER-1"), headers=key.headers)
        assert one.status_code == 422
        assert [row["meterId"] for row in (await client.get("/v1/meters", headers=every.headers)).json()["items"]] == [
            "ACME-1"
        ]
        mine, theirs = "/v1/meters/ACME-1/status", "/v1/meters/OTHER-1/status"
        assert (await client.get(mine, headers=key.headers)).status_code == 200
        assert (await client.get(theirs, headers=key.headers)).status_code == 403
        assert (await client.get("/v1/meters?prefix=ACME-", headers=key.headers)).status_code == 200
        for path in ("/v1/meters", "/v1/meters?prefix=ACM", "/v1/analytics/fleet", "/v1/analytics/activity"):
            assert (await client.get(path, headers=key.headers)).status_code == 403, path
        for body, status in (({"vehicleId": "ACME-2", "meterId": "OTHER-1"}, 403), ({"vehicleId": "ACME-2"}, 201)):
            pairing = {"meterId": "ACME-1", **body, "validFrom": "2026-01-01T00:00:00Z"}
            assert (await client.put("/v1/pairings", json=pairing, headers=key.headers)).status_code == status


async def test_an_overdrawn_limit_refuses_before_the_body_is_read(cluster: TestCluster) -> None:
    slow = await new_key(cluster, rate=0.5)  # five readings at once
    tenant = await new_tenant(cluster, "small", rate=0.5)
    sibling = await new_key(cluster, "small")
    async with in_process(cluster) as client:
        await until(client, 200, headers=sibling.headers)
        for first, second in ((slow, slow), (tenant, sibling)):
            many = [meter("M", minute) for minute in range(50)]
            stored = await client.post("/v1/ingest/meter", json=many, headers=first.headers)
            assert stored.json()["accepted"] == 50
            refused = await client.post("/v1/ingest/meter", content=b"not even JSON", headers=second.headers)
            assert (refused.status_code, refused.json()["type"]) == (429, "/problems/rate-limited")
            assert 50 <= int(refused.headers["retry-after"]) <= DEBT_S * 1.1 + 3
            assert (await client.get("/v1/meters", headers=second.headers)).status_code == 200


async def test_keys_are_counted_by_id_and_never_shown(cluster: TestCluster) -> None:
    key, admin = await new_key(cluster, scopes=(Right.INGEST,)), await new_key(cluster)
    async with in_process(cluster) as client:
        await until(client, 200, headers=admin.headers)
        await client.post("/v1/ingest", json=[meter("M"), {**meter("M", 1), "voltage": -1}], headers=key.headers)
        await client.post("/v1/ingest", json={"meterId": 1}, headers=key.headers)
        text = (await client.get("/metrics", headers=admin.headers)).text
        mine = [line for line in text.splitlines() if key.key_id in line and "_created" not in line]
        assert {line.rpartition(" ")[0].partition("outcome=")[2][:8]: line.rpartition(" ")[2] for line in mine} == {
            '"stored"': "1.0",
            '"refused': "2.0",
        }
        assert key.text not in text
        async with catalog_of(cluster) as catalog:
            await tenants.revoke_key(catalog, key.key_id)
        async with asyncio.timeout(20):
            while key.key_id in (await client.get("/metrics", headers=admin.headers)).text:
                await asyncio.sleep(0.05)


async def test_known_keys_stay_valid_while_the_catalog_is_away(cluster: TestCluster) -> None:
    key, gone = await new_key(cluster), await new_key(cluster)
    async with wire(cluster.catalog_dsn) as proxy:
        behind = TestCluster(proxy.dsn, cluster.shards, cluster.buckets)
        async with in_process(behind, runner=False) as client:
            await until(client, 200, headers=gone.headers)
            proxy.cut()
            async with catalog_of(cluster) as catalog:
                await tenants.revoke_key(catalog, gone.key_id)
            for each in (key, gone):  # a revoked one too: nobody can say so to this router
                assert (await client.post("/v1/ingest", json=meter("M"), headers=each.headers)).status_code == 200
            assert (await client.get("/v1/meters")).status_code == 401
            proxy.mend()
            await until(client, 401, headers=gone.headers)
            assert (await client.get("/v1/meters", headers=key.headers)).status_code == 200


async def test_requests_on_the_catalog_do_not_keep_a_revoked_key_valid(cluster: TestCluster) -> None:
    """Whoever holds every connection for pairings holds none of those by which keys and map are learnt."""
    key, other = await new_key(cluster), await new_key(cluster)
    async with in_process(cluster, runner=False) as client, AsyncExitStack() as taken:
        await until(client, 200, headers=other.headers)
        pool = client.app.state.router.cluster.catalog.pool  # type: ignore[attr-defined]
        for _ in range(pool.limits.max_size):
            await taken.enter_async_context(pool.connection(time.monotonic() + 60))
        async with catalog_of(cluster) as catalog:
            await tenants.revoke_key(catalog, key.key_id)
        await until(client, 401, headers=key.headers)
        assert (await client.get("/v1/meters", headers=other.headers)).status_code == 200


async def test_a_forged_cursor_leads_to_no_device_outside_the_prefix(cluster: TestCluster) -> None:
    every, some = await new_key(cluster), await new_key(cluster, prefix="ACME-")
    async with in_process(cluster, runner=False) as client:
        await until(client, 200, headers=some.headers, params={"prefix": "ACME-"})
        await ingest(client, [meter(d) for d in ("AAA", "ACME-1", "ACME-2", "B")], headers=every.headers)
        for cursor in ("A", "AAA", "ACME", "ACME-1", "B"):
            query = {"prefix": "ACME-", "cursor": encode_cursor(cursor)}
            answer = await client.get("/v1/meters", params=query, headers=some.headers)
            found = [item["meterId"] for item in answer.json()["items"]]
            assert found == [each for each in ("ACME-1", "ACME-2") if each > cursor], cursor
        pairing = {"vehicleId": "OTHER", "meterId": "ACME-1", "validFrom": "2026-01-01T00:00:00Z"}
        assert (await client.put("/v1/pairings", json=pairing, headers=every.headers)).status_code == 201
        conflict = await client.put("/v1/pairings", json={**pairing, "vehicleId": "ACME-V"}, headers=some.headers)
        assert (conflict.status_code, "OTHER" in conflict.text) == (409, False)
        listed = await client.get("/v1/pairings", params={"meterId": "ACME-1"}, headers=some.headers)
        assert listed.json()["items"] == []
