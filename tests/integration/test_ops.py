"""Probes, metrics, shards, problems, the OpenAPI document and its page; errors of the web server itself."""

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from router.wire.problems import PROBLEMS
from tests.support.readings import ingest, meter, vehicle
from tests.support.servers import TestCluster


async def test_probes(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/livez")).json() == {"live": True}
    ready = (await client.get("/readyz")).json()
    assert ready["ready"] is True
    assert all(shard == {"breaker": "closed", "writes": True, "reads": True} for shard in ready["shards"].values())


async def test_stopping_turns_readiness_off(client: httpx2.AsyncClient) -> None:
    router = client.app.state.router  # type: ignore[attr-defined]
    router.stopping = True
    try:
        response = await client.get("/readyz")
        assert (response.status_code, response.json()["type"]) == (503, "/problems/not-ready")
        assert (await client.get("/livez")).status_code == 200
    finally:
        router.stopping = False


async def test_metrics_know_readings_batches_queues_and_pools(client: httpx2.AsyncClient) -> None:
    def samples(text: str) -> dict[tuple[str, ...], float]:
        return {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    before = samples((await client.get("/metrics")).text)
    await ingest(client, [meter("M", 1), meter("M", 1), vehicle("V", 1), meter("M", 2, kwh=-1)])
    after = samples((await client.get("/metrics")).text)

    def grown(*key: str) -> float:
        return after[key] - before.get(key, 0)

    total = "voltroute_ingest_readings_total"
    assert grown(total, "accepted", "meter") == 1
    assert grown(total, "duplicate", "meter") == 1
    assert grown(total, "accepted", "vehicle") == 1
    assert grown(total, "rejected", "unknown") == 1
    names = {key[0] for key in after}
    assert {
        "voltroute_request_duration_seconds_bucket",
        "voltroute_batch_readings_sum",
        "voltroute_queue_readings",
        "voltroute_pool_connections",
        "voltroute_shard_up",
        "voltroute_map_epoch",
    } <= names
    assert not any("M" in key[1:] or "V" in key[1:] for key in after)


async def test_shards(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    answer = (await client.get("/v1/shards")).json()
    assert [item["name"] for item in answer["items"]] == list(cluster.shards)
    assert sorted(bucket for item in answer["items"] for bucket in item["buckets"]) == list(range(16))
    assert all(item["sizeBytes"] > 0 and item["reachable"] for item in answer["items"])
    assert (answer["bucketCount"], answer["isPartial"]) == (16, False)


async def test_every_problem_has_its_page(client: httpx2.AsyncClient) -> None:
    for slug, problem in PROBLEMS.items():
        text = (await client.get(problem.type)).text
        assert problem.cause in text
        assert problem.remedy in text
        assert problem.type == f"/problems/{slug}"
    assert (await client.get("/problems/unknown")).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("DELETE", "/livez", 405), ("PATCH", "/v1/pairings", 405), ("GET", "/v1/ingest", 405)],
)
async def test_starlettes_errors_are_problems(client: httpx2.AsyncClient, method: str, path: str, status: int) -> None:
    response = await client.request(method, path)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    assert response.json()["status"] == status
    if status == 405:
        assert response.headers["allow"]


async def test_request_ids(client: httpx2.AsyncClient) -> None:
    mine = await client.get("/nowhere", headers={"X-Request-ID": "abc-123"})
    assert (mine.headers["x-request-id"], mine.json()["requestId"]) == ("abc-123", "abc-123")
    evil = await client.get("/livez", headers={"X-Request-ID": "a b\tc"})
    assert evil.headers["x-request-id"] != "a b\tc"


async def test_docs_need_no_internet(client: httpx2.AsyncClient) -> None:
    page = (await client.get("/docs")).text
    assert "http://" not in page
    assert "https://" not in page
    for asset in ("swagger-ui.css", "swagger-ui-bundle.js"):
        assert asset in page
        assert len((await client.get(f"/docs/assets/{asset}")).content) > 100_000


async def test_the_document_lists_every_route(client: httpx2.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    served = {route.path for route in client.app.routes if hasattr(route, "methods")}  # type: ignore[attr-defined]
    undocumented = {"/docs", "/openapi.json", "/problems/{slug}", "/v1/pairings"}
    assert served - undocumented == set(document["paths"]) - {"/v1/pairings"}
    assert document["components"]["schemas"]["MeterReading"]["required"]
