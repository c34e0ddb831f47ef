"""The suite against a real router: a short run proves its ledger, and a ledger with a fault fails."""

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from bench.ledger import LedgerError, prove
from bench.results import decode
from bench.workload import new_readings
from tests.support.ledger import execute
from tests.support.routers import router_process
from tests.support.servers import TestCluster

ROOT = Path(__file__).parents[2]
TABLE = "vehicle_telemetry_history"


async def test_a_short_run_against_a_router(cluster: TestCluster, tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    async with router_process(cluster.catalog_dsn) as router:
        command = [sys.executable, "-m", "bench", "run", "single", "batch", "--rounds", "1", "--seconds", "0.5"]
        command += ["--url", router.url, "--out", str(out)]
        command += [word for name, dsn in cluster.shards.items() for word in ("--shard", f"{name}={dsn}")]
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=subprocess.PIPE)
        async with asyncio.timeout(120):
            shown, _ = await process.communicate()
    assert process.returncode == 0
    run = decode(out.read_bytes())
    assert [scenario.name for scenario in run.scenarios] == ["single", "batch"]
    assert all(scenario.proofs > 0 for scenario in run.scenarios)
    assert b"single/64: voltroute" in shown


async def test_the_ledger_finds_what_is_missing_and_what_is_foreign(
    cluster: TestCluster, client: httpx2.AsyncClient
) -> None:
    readings = new_readings(20)
    response = await client.post(
        "/v1/ingest/vehicle", content=readings.batch(0, 60), headers={"Content-Type": "application/x-ndjson"}
    )
    assert response.json()["accepted"] == 60
    keys = [readings.key(number) for number in range(60)]
    proof = await prove(cluster.shards, TABLE, readings.prefix, keys[:50], keys)
    assert (proof.acknowledged, proof.stored, proof.unconfirmed) == (50, 60, 10)
    with pytest.raises(LedgerError, match="never sent"):
        await prove(cluster.shards, TABLE, readings.prefix, keys[:50], keys[:50])
    device, moment = keys[7]
    sql = f"DELETE FROM {TABLE} WHERE vehicle_id = $1 AND timestamp = $2"
    await execute(cluster.shards[cluster.owner(device)], sql, device, moment)
    with pytest.raises(LedgerError, match="1 acknowledged readings are missing"):
        await prove(cluster.shards, TABLE, readings.prefix, keys, keys)
