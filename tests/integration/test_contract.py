"""What the OpenAPI document promises, and that no body of bytes makes the router fail."""

import asyncio
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from starlette.applications import Starlette

from tests.support.readings import ingest, meter, vehicle
from tests.support.routers import router_process
from tests.support.servers import TestCluster

ROOT = Path(__file__).parents[2]
FUZZED_BODIES = 100_000
TOGETHER = 50
TOKENS = (
    b"NaN", b"-Infinity", b"1e999", b"-0", b"null", b"true", b'""', b"[]", b"{}", b"[[", b"\\u0000", b"\\ud800", b"\0",
    b"\xff", b"\xf0\x9f\x94\x8b", b'"', b"\\", b",", b":", b"}", b"]", b"\n", b"\r\n", b"0001-01-01T00:00:00+14:00",
    b"9999-12-31T23:59:59.999999999-14:00", b"2026-02-30T00:00:00Z", b"1" * 400, b"x" * 70, b'"meterId"', b'"soc":101',
)  # fmt: skip


@pytest.mark.timeout(300)
async def test_schemathesis_finds_nothing(cluster: TestCluster, tmp_path: Path) -> None:
    async with router_process(cluster.catalog_dsn) as router:
        async with httpx2.AsyncClient(base_url=router.url) as client:
            await ingest(client, [meter("M-1", 1), vehicle("V-1", 1)])
        program, config = Path(sys.executable).with_name("schemathesis"), ROOT / "schemathesis.toml"
        command: list[str | Path] = [program, "--config-file", config, "run", f"{router.url}/openapi.json"]
        command += ["--max-examples", "50", "--no-color"]
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks", "PYTHONPATH": str(ROOT)}
        process = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE)
        async with asyncio.timeout(280):
            out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()[-5_000:]
    assert b"Tested: 41" in out


def mutate(chance: random.Random, seeds: list[bytes]) -> bytes:
    """A valid body after a few cuts, repeats, flips and insertions."""
    body = bytearray(chance.choice(seeds))
    for _ in range(chance.randrange(1, 5)):
        place = chance.randrange(len(body) + 1)
        action = chance.randrange(5)
        if action == 0:
            body[place:place] = chance.choice(TOKENS)
        elif action == 1 and body:
            body[min(place, len(body) - 1)] = chance.randrange(256)
        elif action == 2:
            del body[place : place + chance.randrange(1, 20)]
        elif action == 3:
            body[place : place + chance.randrange(1, 12)] = chance.choice(TOKENS)
        else:
            other = chance.choice(seeds)
            body[place:place] = other[: chance.randrange(len(other))]
    return bytes(body)


async def post_raw(app: Starlette, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> int:
    """One request without an HTTP client in between; its status."""
    status = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"host", b"localhost"), *headers],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    await app(scope, receive, send)
    return status


async def test_fuzzed_bodies_never_make_it_fail(client: httpx2.AsyncClient) -> None:
    chance = random.Random(20260501)
    one, two = orjson.dumps(meter("F-1", 1)), orjson.dumps(vehicle("F-2", 1))
    seeds = [one, two, b"[" + one + b"," + two + b"]", one + b"\n" + two + b"\n", b"[" + b",".join([one] * 5) + b"]"]
    kinds = [b"application/json"] * 3 + [b"application/x-ndjson"] * 2
    paths = ["/v1/ingest", "/v1/ingest/meter", "/v1/ingest/vehicle"]
    seen: Counter[int] = Counter()
    for _ in range(FUZZED_BODIES // TOGETHER):
        batch = [
            post_raw(
                client.app,  # type: ignore[attr-defined]
                chance.choice(paths),
                [(b"content-type", chance.choice(kinds))],
                mutate(chance, seeds),
            )
            for _ in range(TOGETHER)
        ]
        seen.update(await asyncio.gather(*batch))
    assert sum(seen.values()) == FUZZED_BODIES
    assert set(seen) <= {200, 400, 422}, seen
    assert min(seen.values()) > 1_000, seen
