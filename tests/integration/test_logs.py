"""Logs of a router that is not on a terminal: JSON, with request ID, counts and duration; no line a reading."""

import json
import subprocess

import httpx2

from router.ingest.answer import LINES_MAX, _Lines
from tests.support.readings import meter
from tests.support.routers import RouterProcess, read_json, start_command
from tests.support.servers import TestCluster


async def test_a_line_a_batch_and_none_a_reading(cluster: TestCluster) -> None:
    environment = {"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn, "VOLTROUTE_POOL_MIN": "1"}
    process = await start_command("serve", "--port", "0", "--json", env=environment, stderr=subprocess.PIPE)
    router = RouterProcess(process, (await read_json(process))["url"])
    async with httpx2.AsyncClient(base_url=router.url) as client:
        for number in range(20):
            await client.post("/v1/ingest/meter", json=meter("SINGLE", number))
        batch = [meter("BATCH", number) for number in range(30)] + [meter("BATCH", 1, kwh=-1)]
        answer = await client.post("/v1/ingest/meter", json=batch, headers={"X-Request-ID": "batch-1"})
        await client.get("/v1/meters/NOBODY/status", headers={"X-Request-ID": "gone-1"})
        assert answer.json()["accepted"] == 30
    process.terminate()
    _, err = await process.communicate()
    lines = [json.loads(line) for line in err.decode().splitlines()]
    by_id = {line.get("request_id"): line for line in lines}
    batch_line = by_id["batch-1"]
    assert (batch_line["event"], batch_line["kind"]) == ("telemetry_ingested", "meter")
    assert (batch_line["accepted"], batch_line["duplicates"], batch_line["rejected"]) == (30, 0, 1)
    assert batch_line["duration_ms"] > 0
    assert (by_id["gone-1"]["status"], by_id["gone-1"]["path"]) == (404, "/v1/meters/NOBODY/status")
    assert len([line for line in lines if line["event"] in {"telemetry_ingested", "request"}]) == 2
    for dsn in (cluster.catalog_dsn, *cluster.shards.values()):
        assert dsn.split(":")[2].split("@")[0] not in err.decode()


async def test_a_log_that_nobody_reads_stops_nothing(cluster: TestCluster) -> None:
    environment = {"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn, "VOLTROUTE_POOL_MIN": "1"}
    process = await start_command("serve", "--port", "0", "--json", env=environment, stderr=subprocess.PIPE)
    router = RouterProcess(process, (await read_json(process))["url"])
    async with httpx2.AsyncClient(base_url=router.url) as client:
        for _ in range(1_500):  # some 300 KB of lines: a pipe holds 64
            assert (await client.get("/nowhere")).status_code == 404
        text = (await client.get("/metrics")).text
    assert "voltroute_log_lines_left_out_total 0.0" in text  # they wait in memory
    process.terminate()
    _, err = await process.communicate()
    assert process.returncode == 0
    assert sum(json.loads(line)["event"] == "request" for line in err.decode().splitlines()) == 1_500


async def test_a_trace_is_in_the_lines_of_its_request(cluster: TestCluster) -> None:
    environment = {"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn, "VOLTROUTE_POOL_MIN": "1"}
    process = await start_command("serve", "--port", "0", "--json", env=environment, stderr=subprocess.PIPE)
    router = RouterProcess(process, (await read_json(process))["url"])
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    async with httpx2.AsyncClient(base_url=router.url) as client:
        for header in (f"00-{trace}-{span}-01", f"00-{'0' * 32}-{span}-01", "00-x", f"ff-{trace}-{span}-01"):
            await client.get("/nowhere", headers={"traceparent": header, "X-Request-ID": header.replace("=", "")})
    process.terminate()
    _, err = await process.communicate()
    lines = [json.loads(line) for line in err.decode().splitlines()]
    traces = [line.get("trace_id") for line in lines if line["event"] == "request"]
    assert traces == [trace, None, None, None]


def test_batches_write_so_many_lines_a_second() -> None:
    lines = _Lines()
    found = [lines.next(10 + number / 100) for number in range(100)]
    assert [each is None for each in found] == [False] * LINES_MAX + [True] * (100 - LINES_MAX)
    assert lines.next(11.5) == {"left_out": 100 - LINES_MAX}
    assert lines.next(11.6) == {}
