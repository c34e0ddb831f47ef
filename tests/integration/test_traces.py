"""Traces: which requests have one, what is in it, and that it costs nobody an answer."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx2
import pytest

from router.ingest.batcher import Lane, Pressures
from router.ingest.promises import Committed
from router.ingest.queue import LaneLimits
from router.ingest.routing import Chunk
from router.tracing import ACTIVE, Span, open_tracing
from shards.embedded.ports import free_ports
from shards.errors import MachineError
from shards.kinds import METER, Row
from shards.storage.write import Written
from tests.support.collector import Collector, attributes, collecting
from tests.support.readings import at, ingest, meter
from tests.support.routers import in_process, router_process
from tests.support.servers import TestCluster

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        yield found


@asynccontextmanager
async def traced(cluster: TestCluster, ratio: float) -> AsyncIterator[httpx2.AsyncClient]:
    """A router's client; what it sends is with the collector after the block: a router that stops sends what waits."""
    async with in_process(cluster, runner=False, traces_ratio=ratio) as client:
        yield client


async def test_a_trace_goes_on_from_its_sender_to_the_shards(cluster: TestCluster, collector: Collector) -> None:
    mine = cluster.devices_of("s1", 2)
    header = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    async with traced(cluster, 0) as client:
        answer = await client.post("/v1/ingest/meter", json=[meter(device) for device in mine], headers=header)
        assert answer.status_code == 200
        read = await client.get(f"/v1/meters/{mine[0]}/history", headers=header)
        assert read.status_code == 200
        window = {"from": at(0), "to": at(60)}
        assert (await client.get("/v1/analytics/fleet", params=window, headers=header)).status_code == 200
        assert (await client.get("/v1/nothing", headers=header)).status_code == 404
    assert collector.services == {"voltroute"}
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    (post,), (written,) = collector.named("POST /v1/ingest/meter"), collector.named("write")
    assert post.parent_span_id.hex() == PARENT
    assert attributes(post) == {
        "http.request.method": "POST",
        "http.route": "/v1/ingest/meter",
        "http.response.status_code": 200,
    }
    assert written.parent_span_id == post.span_id
    assert attributes(written) == {
        "db.system.name": "postgresql",
        "voltroute.shard": "s1",
        "voltroute.kind": "meter",
        "voltroute.readings": 2,
    }
    assert post.start_time_unix_nano <= written.start_time_unix_nano < written.end_time_unix_nano
    (fleet,) = collector.named("GET /v1/analytics/fleet")
    reads = [span for span in collector.named("read") if span.parent_span_id == fleet.span_id]
    assert {attributes(span)["voltroute.shard"] for span in reads} == set(cluster.shards)
    assert len(collector.named("GET unmatched")) == 1
    assert not any(mine[0] in str(span) for span in collector.spans)  # routes are named, not paths


@pytest.mark.parametrize(
    ("ratio", "flags", "kept"), [(1, None, True), (0, None, False), (1, "00", False), (0, "01", True)]
)
async def test_who_decides(
    cluster: TestCluster, collector: Collector, ratio: float, flags: str | None, *, kept: bool
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-{flags}"} if flags else {}
    async with traced(cluster, ratio) as client:
        await client.post("/v1/ingest/meter", json=meter("DECIDED"), headers=headers)
        await client.get("/readyz", headers=headers | {"traceparent": "00-nonsense"} if not flags else headers)
    assert bool(collector.spans) is kept
    own = {span.trace_id.hex() for span in collector.spans} - {TRACE}
    assert len(own) == (2 if kept and not flags else 0)


async def test_a_batch_is_linked_to_all_requests_that_it_is_for(collector: Collector) -> None:
    tracing = open_tracing(1)
    assert tracing is not None
    first, go_on, sizes = asyncio.Event(), asyncio.Event(), []

    async def write(rows: "list[Row]", _deadline: float) -> Written:
        sizes.append(len(rows))
        first.set()
        await go_on.wait()
        return Written(None)

    lane = Lane("s1", METER, write, LaneLimits(100, 1, 100, 5.0), Pressures(LaneLimits(100, 1, 100, 5.0)))  # type: ignore[arg-type]
    spans: list[Span | None] = []
    futures: list[asyncio.Future[Committed]] = []
    for number in range(4):
        span = tracing.begin("POST", None) if number != 1 else None
        spans.append(span)
        token = ACTIVE.set(span)
        futures.append(asyncio.get_running_loop().create_future())
        lane.submit(Chunk([(0, 0, f"D{number}", at(number), 1.0, None, None)], [0]), futures[-1])  # type: ignore[list-item]
        ACTIVE.reset(token)
        await first.wait()
    go_on.set()
    await asyncio.gather(*futures)
    for span in spans:
        if span is not None:
            span.end("/v1/ingest/meter", 200)
    tracing.close()
    assert sizes == [1, 3]
    alone, together = sorted(collector.named("write"), key=lambda span: len(span.links))
    assert (alone.trace_id.hex(), len(alone.links)) == (spans[0].trace_id, 0)  # type: ignore[union-attr]
    assert together.trace_id.hex() == spans[2].trace_id  # type: ignore[union-attr]
    assert [link.trace_id.hex() for link in together.links] == [spans[3].trace_id]  # type: ignore[union-attr]


async def test_what_failed_is_told_by_its_class_alone(cluster: TestCluster, collector: Collector) -> None:
    async with traced(cluster, 1) as client:
        shard = client.app.state.router.cluster.shards["s1"]  # type: ignore[attr-defined]
        await shard.reader.close()
        answer = await client.get("/v1/analytics/fleet", params={"from": at(0), "to": at(60)})
    assert answer.status_code == 503, answer.text
    failed = [span for span in collector.named("read") if span.status.code == 2]
    assert [attributes(span)["voltroute.shard"] for span in failed] == ["s1"]
    assert {attributes(span)["error.type"] for span in failed} == {"ShardUnavailable"}
    assert not any(span.events or span.status.message for span in collector.spans)


async def test_a_collector_that_is_away_costs_no_answer(cluster: TestCluster) -> None:
    """In a process of its own: the exporter's thread tries again for a while, with random pauses, and then it ends."""
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_ports(1)[0]}", "VOLTROUTE_TRACES_RATIO": "1"}
    async with router_process(cluster.catalog_dsn, **env) as router, httpx2.AsyncClient(base_url=router.url) as client:
        await ingest(client, [meter(f"AWAY-{number}") for number in range(10)])


def test_without_the_extra_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_tracing(None) is None
    monkeypatch.delitem(sys.modules, "router.otel", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(MachineError, match=r"the extra otel .*: pip install 'voltroute\[otel\]'"):
        open_tracing(0.5)
