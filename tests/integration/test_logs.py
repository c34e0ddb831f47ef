"""Logs of a router that is not on a terminal: JSON, with request ID, counts and duration; no line a reading."""

import json
import subprocess

import httpx2

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
    assert (batch_line["event"], batch_line["kind"]) == ("ingested", "meter")
    assert (batch_line["accepted"], batch_line["duplicates"], batch_line["rejected"]) == (30, 0, 1)
    assert batch_line["duration_ms"] > 0
    assert (by_id["gone-1"]["status"], by_id["gone-1"]["path"]) == (404, "/v1/meters/NOBODY/status")
    assert len([line for line in lines if line["event"] in {"ingested", "request"}]) == 2
    for dsn in (cluster.catalog_dsn, *cluster.shards.values()):
        assert dsn.split(":")[2].split("@")[0] not in err.decode()
