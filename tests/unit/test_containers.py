"""docker-compose.yml against the Compose schema, and what it promises; there is no engine to ask here."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, object]]:
    return dict(yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"])


def test_the_compose_file_fits_its_schema() -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    command: list[str | Path] = [checker, "--builtin-schema", "vendor.compose-spec", ROOT / "docker-compose.yml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_everything_waits_until_what_it_needs_is_healthy(services: dict[str, dict[str, object]]) -> None:
    assert set(services) == {"catalog", "shard-1", "shard-2", "shard-3", "init", "router", "fleet"}
    databases = {name: {"condition": "service_healthy"} for name in ("catalog", "shard-1", "shard-2", "shard-3")}
    assert services["init"]["depends_on"] == databases
    assert services["router"]["depends_on"] == {"init": {"condition": "service_completed_successfully"}}
    assert services["fleet"]["depends_on"] == {"router": {"condition": "service_healthy"}}
    assert all("healthcheck" in services[name] for name in databases)


def test_nothing_but_the_router_on_loopback_is_published(services: dict[str, dict[str, object]]) -> None:
    assert services["router"]["ports"] == ["127.0.0.1:8080:8080"]
    assert not any("ports" in service for name, service in services.items() if name != "router")


@pytest.mark.parametrize(("file", "installs"), [("Makefile", 2), ("Dockerfile", 1)])
def test_an_install_takes_what_is_locked_and_nothing_newer(file: str, installs: int) -> None:
    """A release of coverage after it was locked once made every new install fail: pip asked for coverage[toml]."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if " install " in line and ".lock" in line]
    assert len(lines) == installs
    assert all("--no-deps --require-hashes" in line for line in lines)


def test_the_image_does_not_run_as_root() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert any(line.startswith("USER ") and line != "USER root" for line in lines)
    assert all("slim" in line for line in lines if line.startswith("FROM "))
    assert any(line.startswith("HEALTHCHECK") for line in lines)
