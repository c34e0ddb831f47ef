"""docker-compose.yml against the Compose schema, and what it promises; there is no engine to ask here."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    always = {name for name, service in services.items() if "profiles" not in service}
    assert always == {"catalog", "shard-1", "shard-2", "shard-3", "init", "router", "balancer", "fleet"}
    databases = {name: {"condition": "service_healthy"} for name in ("catalog", "shard-1", "shard-2", "shard-3")}
    assert services["init"]["depends_on"] == databases
    assert services["router"]["depends_on"] == {"init": {"condition": "service_completed_successfully"}}
    assert services["balancer"]["depends_on"] == {"router": {"condition": "service_healthy"}}
    assert all("healthcheck" in services[name] for name in databases)


def test_what_is_published_is_on_loopback(services: dict[str, dict[str, Any]]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"balancer", "prometheus", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_secrets_come_by_file_and_tags_are_pinned(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert not any("PASSWORD" in key and not key.endswith("_FILE") for key in service.get("environment", {})), name
        assert all("PASSWORD}" not in str(value) for value in service.values()), name
        image = service.get("image", "")
        assert image == "voltroute" or re.search(r":v?\d+\.\d+", image), name


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
