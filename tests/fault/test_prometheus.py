"""A real Prometheus scrapes a cluster with a key of its own; a stalled shard fires one alert, which resolves."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from shards.catalog.keys import Right
from shards.embedded.ports import free_ports
from tests.docs.test_alerts import RULES
from tests.fault.test_shard_away import as_test_cluster
from tests.support.dashboards import load_generator
from tests.support.processes import breakable
from tests.support.programs import need
from tests.support.readings import meter
from tests.support.routers import router_process
from tests.support.tenants import new_key

LIMIT_S = 90
SETTINGS = {"VOLTROUTE_INGEST_TIMEOUT_S": "1", "VOLTROUTE_QUERY_TIMEOUT_S": "1"}


@contextlib.asynccontextmanager
async def prometheus(folder: Path, target: str, key: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a Prometheus that scrapes one router each second, with the rules that are shipped."""
    (folder / "key").write_text(key)
    scrape = {
        "job_name": "voltroute",
        "static_configs": [{"targets": [target]}],
        "authorization": {"credentials_file": str(folder / "key")},
    }
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [scrape],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)
    process = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        stderr=subprocess.DEVNULL,
    )
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}/api/v1") as client:
            yield client
    finally:
        process.terminate()
        await process.wait()


async def asked(client: httpx2.AsyncClient, path: str, **query: str) -> Any:
    with contextlib.suppress(httpx2.TransportError):  # it is still starting
        answer = await client.get(path, params=query)
        if answer.status_code == 200:
            return answer.json()["data"]
    return None


async def firing(client: httpx2.AsyncClient) -> set[tuple[str, str]]:
    found = await asked(client, "/alerts") or {"alerts": []}
    return {
        (alert["labels"]["alertname"], alert["labels"].get("shard", ""))
        for alert in found["alerts"]
        if alert["state"] == "firing"
    }


async def post_for_ever(url: str, devices: list[str], headers: dict[str, str]) -> None:
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
        for minute in range(1_000_000):
            await asyncio.gather(*(client.post("/v1/ingest", json=meter(device, minute)) for device in devices))
            await asyncio.sleep(0.1)


@pytest.mark.timeout(300)
async def test_a_stalled_shard_fires_its_alert_and_no_other(tmp_path: Path) -> None:
    need("prometheus")
    async with breakable() as own:
        cluster = as_test_cluster(own)
        key = await new_key(cluster)
        admin = await new_key(cluster, scopes=(Right.ADMIN,), label="prometheus")
        devices = [device for shard in cluster.shards for device in cluster.devices_of(shard, 1)]
        async with (
            router_process(cluster.catalog_dsn, **SETTINGS) as router,
            prometheus(tmp_path, router.url.removeprefix("http://"), admin.text) as client,
        ):
            posting = asyncio.create_task(post_for_ever(router.url, devices, key.headers))
            async with asyncio.timeout(LIMIT_S):
                while not ((await asked(client, "/query", query='up{job="voltroute"} == 1')) or {"result": []})[
                    "result"
                ]:
                    await asyncio.sleep(0.1)
                while not (await asked(client, "/query", query="sum(rate(telemetry_ingested_total[10s])) > 0"))[
                    "result"
                ]:
                    await asyncio.sleep(0.1)
            assert await firing(client) == set()
            with own.stalled("shard-2"):
                async with asyncio.timeout(LIMIT_S):
                    while not (found := await firing(client)):
                        await asyncio.sleep(0.1)
                assert found == {("ShardUnavailable", "shard-2")}
            async with asyncio.timeout(LIMIT_S):
                while await firing(client):
                    await asyncio.sleep(0.1)
            for metric in (
                "pg_settings_max_connections",
                "voltroute_shard_up",
                "telemetry_ingest_duration_seconds_count",
            ):
                assert (await asked(client, "/query", query=metric))["result"], metric
            for expression in load_generator().expressions():
                asked_for = expression.replace("$__rate_interval", "30s")
                assert (await client.get("/query", params={"query": asked_for})).status_code == 200, expression
            posting.cancel()
