"""The command line against a running cluster: what it prints, its JSON, its exit codes."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from tests.support.commands import Finished, run_command
from tests.support.ledger import execute, fetch, stored, wipe
from tests.support.proxy import wire
from tests.support.routers import RouterProcess, read_json, router_process, start_command
from tests.support.servers import TestCluster, database_dsn, drop_database, new_cluster, new_database

HOUSEHOLD = Path(__file__).parents[3] / "shared" / "data" / "household_meter_1min.csv"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def router(cluster: TestCluster) -> AsyncIterator[RouterProcess]:
    async with router_process(cluster.catalog_dsn) as process:
        yield process


async def run(cluster: TestCluster, *arguments: object) -> Finished:
    return await run_command(*arguments, env={"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn})


async def test_shard_list(cluster: TestCluster) -> None:
    shown = await run(cluster, "shard", "list", "--json", "--show-secrets")
    assert shown.code == 0
    assert [(s["name"], s["dsn"], s["state"]) for s in shown.json] == [
        (name, dsn, "active") for name, dsn in cluster.shards.items()
    ]
    assert sorted(bucket for shard in shown.json for bucket in shard["buckets"]) == list(range(16))
    for arguments in (["shard", "list", "--json"], ["shard", "list"], ["doctor"], ["migrate", "status"]):
        hidden = await run(cluster, *arguments)
        assert hidden.code == (1 if arguments == ["doctor"] else 0), hidden.err  # the tests' servers are not durable
        for dsn in (cluster.catalog_dsn, *cluster.shards.values()):
            assert dsn.split(":")[2].split("@")[0] not in hidden.out + hidden.err


async def test_map_show(cluster: TestCluster) -> None:
    shown = (await run(cluster, "map", "show", "--json")).json
    assert (shown["bucket_count"], shown["owners"]["5"]) == (16, "s2")
    assert "s1" in (await run(cluster, "map", "show")).out


async def test_config_show_names_sources_and_hides_secrets(cluster: TestCluster) -> None:
    environment = {"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn, "VOLTROUTE_POOL_MAX": "7"}
    shown = (await run_command("config", "show", "--json", env=environment)).json
    rows = {row["name"]: row for row in shown}
    assert (rows["VOLTROUTE_POOL_MAX"]["value"], rows["VOLTROUTE_POOL_MAX"]["source"]) == (7, "environment")
    assert rows["VOLTROUTE_POOL_MIN"]["source"] == "default"
    assert ":***@" in rows["VOLTROUTE_CATALOG_DSN"]["value"]
    bad = await run_command("config", "show", env={"VOLTROUTE_POOL_MAX": "many"})
    assert (bad.code, "VOLTROUTE_POOL_MAX" in bad.err) == (2, True)


async def test_doctor_finds_what_is_wrong(servers: list[str]) -> None:
    async with new_cluster(servers, shards=3, buckets=4) as cluster:
        checks = (await run(cluster, "doctor", "--json")).json
        wrong = {check["name"] for check in checks if not check["ok"]}
        assert wrong == {f"{name} durability" for name in cluster.shards}  # the tests' servers run with fsync off
        assert {"s1 writes", "s1 clock", "s1 partitions", "s1 connections", "s1 access"} <= {c["name"] for c in checks}
        await execute(cluster.shards["s1"], "DELETE FROM owned_bucket")
        await execute(cluster.shards["s2"], "DROP TABLE vehicle_telemetry_history_b0001 CASCADE")
        found = await run(cluster, "doctor")
        assert found.code == 1
        assert "[ERR] s1 buckets" in found.out
        assert "[ERR] s2 partitions" in found.out
        assert "->" in found.out
        misspelt = {"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn, "VOLTROUTE_POOLMAX": "7"}
        assert (
            "[ERR] environment: no setting reads VOLTROUTE_POOLMAX" in (await run_command("doctor", env=misspelt)).out
        )


async def test_migrate(cluster: TestCluster) -> None:
    status = (await run(cluster, "migrate", "status", "--json")).json
    assert [row["database"] for row in status] == ["catalog", *cluster.shards]
    assert all(row["pending"] == [] and row["version"] for row in status)
    again = (await run(cluster, "migrate", "up", "--json")).json
    assert all(row["applied"] == [] and row["error"] is None for row in again)
    await execute(cluster.shards["s3"], "UPDATE schema_migration SET checksum = 'x' WHERE version = 2")
    try:
        broken = await run(cluster, "migrate", "status")
        assert (broken.code, "applied with other content" in broken.err) == (1, True)
    finally:
        sql = "UPDATE schema_migration SET checksum = $1 WHERE version = 2"
        (row,) = await fetch(cluster.shards["s1"], "SELECT checksum FROM schema_migration WHERE version = 2")
        await execute(cluster.shards["s3"], sql, row["checksum"])


async def test_init_can_be_repeated_but_not_contradicted(servers: list[str]) -> None:
    names = [f"i{os.getpid()}_{n}" for n in range(4)]
    catalog, *shards = [await new_database(servers[n % len(servers)], name) for n, name in enumerate(names)]
    arguments = ["init", "--catalog", catalog, "--buckets", 8]
    arguments += [word for n, dsn in enumerate(shards) for word in ("--shard", f"a{n}={dsn}")]
    try:
        assert (await run_command(*arguments)).code == 0
        first = await run_command(*arguments, "--json")
        assert first.json["buckets"] == 8
        assert (await run_command(*arguments, "--json")).json == first.json
        other = [word if word != 8 else 16 for word in arguments]
        assert (await run_command(*other)).code == 3
        assert (await run_command(*arguments[:-2])).code == 3
        for bad in (["--shard", "A=postgresql://x/y"], ["--shard", "nope"], ["--shard", "b=mysql://x/y"]):
            assert (await run_command("init", "--catalog", catalog, *bad)).code == 2
        away = database_dsn("postgresql://u:SECRET@127.0.0.1:1/x", "y")
        failed = await run_command("init", "--catalog", catalog, "--shard", f"a0={away}", "--buckets", 8)
        assert (failed.code, "SECRET" in failed.err) == (1, False)
    finally:
        for n, name in enumerate(names):
            await drop_database(servers[n % len(servers)], name)


async def test_no_cluster_is_a_clear_error(tmp_path: Path) -> None:
    found = await run_command("shard", "list", "--data", tmp_path)
    assert (found.code, "no cluster in" in found.err) == (1, True)
    assert "Traceback" not in found.err


async def test_simulate(router: RouterProcess, cluster: TestCluster) -> None:
    await wipe(cluster.shards, cluster.catalog_dsn)
    arguments = ["simulate", "--url", router.url, "--devices", 40, "--rate", 100, "--seconds", 3, "--seed", 5]
    done = await run_command(*arguments, "--duplicates", 0.2, "--batch", 5, "--json")
    assert done.code == 0, done.err
    tally = done.json
    assert tally["accepted"] + tally["duplicates"] == tally["sent"] > 250
    assert tally["duplicates"] > 10
    assert tally["p99_ms"] >= tally["p50_ms"] > 0
    assert len(await stored(cluster.shards)) == tally["accepted"]
    assert len(await fetch(cluster.catalog_dsn, "SELECT FROM pairing")) == 20


async def test_a_wrong_url_fails_at_once(tmp_path: Path) -> None:
    file = tmp_path / "r.ndjson"
    file.write_text('{"timestamp":"2026-01-01T00:00:00Z","kwhConsumedAc":1,"voltage":230}\n')
    for arguments in (["post", file, "--kind", "meter", "--device", "M"], ["simulate", "--devices", 2]):
        done = await run_command(*arguments, "--url", "http://127.0.0.1:9")
        assert (done.code, "http://127.0.0.1:9" in done.err, "Traceback" in done.err) == (1, True, False)


@pytest.mark.parametrize("how", ["-", "/dev/stdin"])
@pytest.mark.parametrize("shape", ["csv", "ndjson"])
async def test_post_reads_a_pipe_once(router: RouterProcess, cluster: TestCluster, how: str, shape: str) -> None:
    device = f"PIPE-{shape}-{len(how)}"
    line = '{"timestamp":"2026-01-01T00:00:00Z","kwhConsumedAc":1,"voltage":230}\n'
    text = "timestamp,kwhConsumedAc,voltage\n2026-01-01T00:00:00Z,1,230\n" if shape == "csv" else line
    post = ("post", how, "--kind", "meter", "--device", device, "--url", router.url)
    process = await start_command(*post, stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    async with asyncio.timeout(60):
        _, said = await process.communicate(text.encode())
    assert (process.returncode, b"1 accepted" in said) == (0, True), said
    assert device in {found for _, found, _ in await stored(cluster.shards)}


async def test_post_of_nothing_is_no_success(router: RouterProcess, tmp_path: Path) -> None:
    file = tmp_path / "r.ndjson"
    file.touch()
    done = await run_command("post", file, "--kind", "meter", "--url", router.url)
    assert (done.code, f"{file}: there is no reading in it" in done.err) == (1, True)
    file.write_text('{"timestamp":"2026-01-01T00:00:00Z","kwhConsumedAc":1,"voltage":230}\n' * 2 + "what\n")
    half = await run_command("post", file, "--kind", "meter", "--device", "H", "--url", router.url, "--batch", 1)
    assert (half.code, f"{file}:3: " in half.err, "of the readings before it, 1 were stored" in half.err) == (
        2,
        True,
        True,
    )
    table = tmp_path / "r.csv"
    table.write_bytes("timestamp,Verbrauch für,voltage\n".encode("latin-1"))
    latin = await run_command("post", table, "--kind", "meter", "--url", router.url)
    assert (latin.code, "is not UTF-8" in latin.err, "Traceback" in latin.err) == (2, True, False)


async def test_post_names_the_bad_reading(router: RouterProcess, tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    file.write_text("timestamp,kwhConsumedAc,voltage\n2026-01-01T00:00:00Z,1,230\n2026-01-01T00:01:00Z,-1,230\n")
    done = await run_command("post", file, "--kind", "meter", "--device", "P-1", "--url", router.url, "--batch", 1)
    assert done.code == 1
    assert f"{file}:3/kwhConsumedAc: must be >= 0" in done.err
    assert "1 accepted" in done.err


@pytest.mark.skipif(not HOUSEHOLD.exists(), reason="the real readings are not beside this checkout")
async def test_a_real_household(router: RouterProcess, cluster: TestCluster) -> None:
    await wipe(cluster.shards, cluster.catalog_dsn)
    arguments = ["post", HOUSEHOLD, "--kind", "meter", "--device", "METER-UCI", "--url", router.url, "--json"]
    first, second = [(await run_command(*arguments)).json for _ in range(2)]
    assert (first["accepted"], first["duplicates"]) == (2_000, 0)
    assert (second["accepted"], second["duplicates"]) == (0, 2_000)
    rows = await stored(cluster.shards)
    assert len(rows) == 2_000
    assert {shard for shard, _, _ in rows} == {cluster.owner("METER-UCI")}
    period = {"from": "2006-12-16T00:00:00Z", "to": "2006-12-31T00:00:00Z"}
    async with httpx2.AsyncClient(base_url=router.url) as client:
        pairing = {"vehicleId": "EV", "meterId": "METER-UCI", "validFrom": period["from"]}
        assert (await client.put("/v1/pairings", json=pairing)).status_code == 201
        performance = (await client.get("/v1/analytics/performance/EV", params=period)).json()
        assert round(performance["totalEnergyConsumedAc"], 4) == 77.4575
        total, cursor = 0.0, None
        while True:
            params: dict[str, Any] = {**period, "limit": 1000, **({"cursor": cursor} if cursor else {})}
            page = (await client.get("/v1/meters/METER-UCI/history", params=params)).json()
            total += sum(item["kwhConsumedAc"] for item in page["items"])
            cursor = page["next"]
            if cursor is None:
                break
        assert round(total, 4) == 77.4575


@pytest.mark.parametrize("dsn", ["mysql://u@h/d", "garbage", "postgresql://u@h:5432"])
async def test_a_router_with_a_dsn_that_can_never_work_does_not_start(dsn: str) -> None:
    done = await run_command("serve", "--port", 0, env={"VOLTROUTE_CATALOG_DSN": dsn})
    assert (done.code, done.out, "postgresql://user@host:5432/database" in done.err) == (2, "", True)


async def test_a_router_is_ready_when_it_has_a_map(cluster: TestCluster) -> None:
    async with wire(cluster.catalog_dsn) as line:
        line.cut()
        process = await start_command("serve", "--port", "0", "--json", env={"VOLTROUTE_CATALOG_DSN": line.dsn})
        try:
            listening = await read_json(process)
            line.mend()
            ready = await read_json(process)
        finally:
            process.terminate()
            await process.wait()
    assert (listening["ready"], ready["ready"], listening["url"]) == (False, True, ready["url"])
