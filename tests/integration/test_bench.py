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
NAMES = ["single", "batch", "mixed", "skew", "shard-down", "analytics"]
TABLE = "vehicle_telemetry_history"


async def test_a_short_run_against_a_router(cluster: TestCluster, tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    async with router_process(cluster.catalog_dsn) as router:
        command = [sys.executable, "-m", "bench", "run", *NAMES, "--rounds", "1", "--seconds", "0.5"]
        command += ["--url", router.url, "--out", str(out)]
        command += [word for name, dsn in cluster.shards.items() for word in ("--shard", f"{name}={dsn}")]
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=subprocess.PIPE)
        async with asyncio.timeout(120):
            shown, _ = await process.communicate()
    assert process.returncode == 0
    run = decode(out.read_bytes())
    assert [scenario.name for scenario in run.scenarios] == NAMES
    assert all(scenario.proofs > 0 for scenario in run.scenarios if scenario.figures)
    assert b"single/64: voltroute" in shown


async def test_the_ledger_finds_every_kind_of_lie(cluster: TestCluster, client: httpx2.AsyncClient) -> None:
    readings = new_readings(20)
    headers = {"Content-Type": "application/x-ndjson"}
    response = await client.post("/v1/ingest/vehicle", content=readings.bodies(range(60)), headers=headers)
    assert response.json()["accepted"] == 60
    everything, most = set(range(60)), set(range(50))
    proof = await prove(cluster.shards, readings, most, everything)
    assert (proof.acknowledged, proof.stored, proof.unconfirmed) == (50, 60, 10)
    with pytest.raises(LedgerError, match="never sent"):
        await prove(cluster.shards, readings, most, most)
    device, home = readings.device(7), cluster.shards[cluster.owner(readings.device(7))]
    status = "UPDATE vehicle_current_status SET last_updated = last_updated - interval '1 hour' WHERE vehicle_id = $1"
    await execute(home, status, device)
    with pytest.raises(LedgerError, match="1 devices have a status"):
        await prove(cluster.shards, readings, everything, everything)
    await execute(home, status.replace("- interval", "+ interval"), device)
    sql = f"DELETE FROM {TABLE} WHERE vehicle_id = $1 AND timestamp = $2"
    await execute(home, sql, device, readings.moment(7))
    with pytest.raises(LedgerError, match="1 acknowledged readings are missing"):
        await prove(cluster.shards, readings, everything, everything)
