"""Clients that are generated from /openapi.json in Python and TypeScript compile strictly without a cast, and work."""

import asyncio
import json
import shutil
import subprocess
import venv
from pathlib import Path

import httpx2
import pytest

from tests.support.programs import must_run, need
from tests.support.routers import router_process
from tests.support.servers import TestCluster
from tests.support.tenants import new_key

CLIENTS = Path(__file__).parents[1] / "clients"
EXPECTED = {"accepted": 2, "register": 7, "meters": True, "code": "out_of_range"}
TIMEOUT_S = 170


def run(*command: str | Path, cwd: Path, offline: str | None = None) -> str:
    """Standard output; `offline`: skip with this reason when it fails, unless such tests must run."""
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if ran.returncode and offline and not must_run():
        pytest.skip(f"{offline}: {ran.stderr[-200:]}")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


async def document(url: str, folder: Path) -> Path:
    async with httpx2.AsyncClient(base_url=url) as client:
        path = folder / "openapi.json"
        path.write_bytes((await client.get("/openapi.json")).content)
        return path


def python_client(folder: Path, url: str, key: str) -> str:
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv/bin/python"
    lock = CLIENTS / "requirements.lock"
    pip: list[str | Path] = [python, "-m", "pip", "install", "-q", "--no-deps", "--require-hashes", "-r", lock]
    run(*pip, cwd=folder, offline="the generator cannot be fetched")
    generate = ["--path", "openapi.json", "--output-path", "voltroute_client", "--meta", "none"]
    run(folder / "venv/bin/openapi-python-client", "generate", *generate, cwd=folder)
    shutil.copy(CLIENTS / "post.py", folder)
    run(python, "-m", "mypy", "--strict", "post.py", cwd=folder)
    return run(python, "post.py", url, key, cwd=folder)


def typescript_client(folder: Path, url: str, key: str) -> str:
    for name in ("package.json", "package-lock.json", "tsconfig.json", "post.ts"):
        shutil.copy(CLIENTS / name, folder)
    run("npm", "ci", "--silent", "--no-audit", "--no-fund", cwd=folder, offline="the generator cannot be fetched")
    run("npx", "openapi-typescript", "openapi.json", "-o", "api.d.ts", cwd=folder)
    run("npx", "tsc", "-p", ".", cwd=folder)
    return run("node", "out/post.js", url, key, cwd=folder)


@pytest.mark.timeout(TIMEOUT_S * 2)
@pytest.mark.parametrize("language", ["python", "typescript"])
async def test_a_generated_client(cluster: TestCluster, tmp_path: Path, language: str) -> None:
    if language == "typescript":
        need("npm")
    key = await new_key(cluster)
    async with router_process(cluster.catalog_dsn, VOLTROUTE_RUNNER="false") as router:
        await document(router.url, tmp_path)
        make = python_client if language == "python" else typescript_client
        said = await asyncio.to_thread(make, tmp_path, router.url, key.text)
    assert json.loads(said) == EXPECTED


def test_the_locks_name_no_index() -> None:
    assert "index" not in (CLIENTS / "requirements.lock").read_text()
    assert '"resolved"' not in (CLIENTS / "package-lock.json").read_text()
