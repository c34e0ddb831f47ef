"""Keys as operators meet them: commands, a first key, HTTPS, what doctor says, who a router without keys serves."""

import asyncio
import ssl
import stat
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest

from shards.operations import doctor, tenants
from shards.operations.finding import Finding
from tests.integration.test_keys import until
from tests.support.commands import run_command
from tests.support.ledger import execute
from tests.support.routers import in_process, router_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tenants import catalog_of, new_key


@pytest.fixture
async def cluster(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=8) as made:
        yield made


async def test_a_router_without_keys_serves_only_loopback(cluster: TestCluster) -> None:
    env = {"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn}
    refused = await run_command("serve", "--host", "0.0.0.0", "--port", "0", env=env)
    assert refused.code == 3
    assert "the cluster has no keys" in refused.err
    assert "voltroute key create" in refused.err
    assert (await client_status(cluster, VOLTROUTE_INSECURE="1")) == 200
    # A catalog that is silent when the router starts: it serves nobody until it knows.
    async with in_process(cluster, host="0.0.0.0") as client:
        answer = await client.get("/v1/meters")
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/not-open")
        assert (await client.get("/livez")).status_code == 200
        key = await new_key(cluster)
        await until(client, 200, headers=key.headers)
    assert (await client_status(cluster)) == 401


async def client_status(cluster: TestCluster, **env: str) -> int:
    """What a real router on every address answers to a request without a key."""
    started = router_process(cluster.catalog_dsn, VOLTROUTE_HOST="0.0.0.0", **env)
    async with started as router, httpx2.AsyncClient() as client:
        return (await client.get(f"{router.url}/v1/meters")).status_code


async def test_the_commands(cluster: TestCluster) -> None:
    env = {"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn}

    async def run(*arguments: str) -> object:
        done = await run_command(*arguments, "--json", env=env)
        assert done.code == 0, done.err
        assert done.out.count("\n") == 1
        return done.json

    made = await run("tenant", "create", "acme", "--rate", "100")
    assert made == {"id": 1, "name": "acme", "rate": 100.0, "shards": [], "buckets": None, "ready": True}
    key = await run("key", "create", "--tenant", "acme", "--scope", "ingest", "--scope", "read", "--prefix", "A-")
    assert isinstance(key, dict)
    assert key.keys() == {"id", "key"}
    assert len(key["key"]) == 55
    assert key["key"].startswith(f"vr_{key['id']}_")
    listed = await run("key", "list", "--tenant", "acme")
    assert isinstance(listed, dict)
    (only,) = listed["keys"]
    assert (only["id"], only["scopes"], only["prefix"], only["state"]) == (key["id"], ["ingest", "read"], "A-", "valid")
    for words in (("key", "list"), ("tenant", "show", "acme"), ("tenant", "list"), ("config", "show"), ("status",)):
        done = await run_command(*words, env={**env, "VOLTROUTE_KEY": key["key"]})
        assert key["key"][12:] not in done.out + done.err, words
    assert (await run("key", "revoke", key["id"])) == {"id": key["id"], "revoked": True, "before": False}
    assert (await run("key", "revoke", key["id"])) == {"id": key["id"], "revoked": True, "before": True}


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("key", "create", "--tenant", "nobody", "--scope", "read"), 3, "there is no tenant nobody; there are default"),
        (("key", "create"), 2, "--scope"),
        (("key", "create", "--scope", "write"), 2, "'ingest', 'read', 'admin'"),
        (("key", "create", "--scope", "read", "--prefix", "a b"), 2, "--prefix"),
        (("key", "create", "--scope", "read", "--rate", "nan"), 2, "--rate"),
        (("key", "create", "--scope", "read", "--days", "1e12"), 2, "--days"),
        (("tenant", "create", "a", "--rate", "inf"), 2, "--rate inf: a number of readings"),
        (("key", "revoke", "vr_x"), 3, "there is no key 'vr_x'"),
        (("key", "list", "--tenant", "nobody"), 3, "there is no tenant nobody"),
        (("tenant", "show", "nobody"), 3, "there is no tenant nobody"),
        (("tenant", "create", "Acme"), 2, "tenant name 'Acme'"),
        (("tenant", "create", "default"), 3, "default is a tenant already"),
        (("tenant", "create", "a", "--pin", "s9"), 3, "there is no shard s9; there are s1, s2, s3"),
        (("tenant", "create", "a", "--pin", "s1", "--first-bucket", "3"), 3, "buckets up to 7 are another range's"),
        (("tenant", "create", "a", "--pin", "s1", "--first-bucket", "30"), 3, "there would be a gap"),
        (("tenant", "create", "a", "--pin", "s1", "--pin", "s2", "--buckets", "1"), 3, "cannot be spread over 2"),
        (("tenant", "limit", "nobody", "5"), 3, "there is no tenant nobody"),
        (("post", "x.csv", "--key", "vr_secret"), 2, "x.csv is not there"),
    ],
)
async def test_what_is_refused(cluster: TestCluster, words: tuple[str, ...], code: int, text: str) -> None:
    done = await run_command(*words, env={"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn, "COLUMNS": "200"})
    assert done.code == code, done.err
    assert text in " ".join((done.out + done.err).split())


async def test_init_makes_a_first_key_once(cluster: TestCluster, tmp_path: Path) -> None:
    file = tmp_path / "first"
    file.write_text("something else")
    env = {"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn}
    shards = [f"--shard={name}={dsn}" for name, dsn in cluster.shards.items()]
    words = ["init", f"--buckets={cluster.buckets}", *shards]
    taken = await run_command(*words, f"--first-key={file}", env=env)
    assert (taken.code, "is there already, and the cluster has no key" in taken.err) == (3, True)
    file.unlink()
    done = await run_command(*words, f"--first-key={file}", env=env)
    assert done.code == 0, done.err
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    assert text not in done.out + done.err
    other = await run_command(*words, f"--first-key={tmp_path / 'second'}", env=env)
    assert (other.code, "has had keys before" in other.err) == (0, True)
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    readings = tmp_path / "readings.csv"
    readings.write_text("timestamp,kwhConsumedAc\n2026-05-01T00:00:00Z,0.25\n")
    async with router_process(cluster.catalog_dsn) as router:
        post = ("post", readings, "--device", "M", "--url", router.url)
        refused = await run_command(*post)
        assert (refused.code, "HTTP 401" in refused.err, "a valid key is needed" in refused.err) == (1, True, True)
        assert (await run_command(*post, "--key", f"@{file}")).code == 0
        assert (await run_command(*post, env={"VOLTROUTE_KEY": text})).code == 0
        bare = await run_command(*post, "--key", text)
        assert (bare.code, "use @FILE, env:NAME" in bare.err, text in bare.err) == (2, True, False)


async def test_doctor_tells_of_keys_and_of_what_keeps_tenants_apart(cluster: TestCluster) -> None:
    async def findings() -> dict[str, Finding]:
        return {each.name: each for each in await doctor.examine(cluster.catalog_dsn)}

    found = await findings()
    assert (found["keys"].ok, "none was ever made" in found["keys"].found) == (True, True)
    assert all(found[f"s1 {what}"].ok for what in ("tenants", "sessions"))
    key = await new_key(cluster, expires_at=datetime.now(UTC) + timedelta(days=3))
    soon = (await findings())["keys"]
    assert (soon.ok, f"soon expire {key.key_id}" in soon.found) == (False, True)
    async with catalog_of(cluster) as catalog:
        await tenants.revoke_key(catalog, key.key_id)
    closed = (await findings())["keys"]
    assert (closed.ok, closed.remedy) == (False, "voltroute key create")
    await execute(cluster.shards["s1"], "ALTER TABLE meter_current_status DISABLE ROW LEVEL SECURITY")
    await execute(cluster.shards["s2"], "DROP POLICY one_tenant ON vehicle_telemetry_history")
    found = await findings()
    assert "meter_current_status has no policy for the reader" in found["s1 tenants"].found
    assert "vehicle_telemetry_history has no policy" in found["s2 tenants"].found
    assert found["s3 tenants"].ok


async def test_https(cluster: TestCluster, tmp_path: Path) -> None:
    certificate = tmp_path / "both.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    made = await asyncio.create_subprocess_exec(
        "openssl", *words.split(), "-keyout", str(tmp_path / "key.pem"), "-out", str(certificate), stderr=DEVNULL
    )
    assert await made.wait() == 0
    env = {"VOLTROUTE_TLS_CERTIFICATE": str(certificate), "VOLTROUTE_TLS_KEY": str(tmp_path / "key.pem")}
    async with router_process(cluster.catalog_dsn, **env) as router:
        assert router.url.startswith("https://")
        async with httpx2.AsyncClient(verify=ssl.create_default_context(cafile=certificate)) as client:
            assert (await client.get(f"{router.url}/v1/meters")).status_code == 200
