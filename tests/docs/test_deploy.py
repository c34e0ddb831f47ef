"""What ops copy: manifests fit their schemas, settings exist, dashboards are current and ask for what there is."""

import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from shards.embedded.binaries import find_binaries
from tests.docs.test_alerts import metrics_of
from tests.support.dashboards import load_generator
from tests.support.programs import need

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = ("1.30", "1.33")


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    return load_generator()


def test_the_dashboard_is_current(generate: ModuleType) -> None:
    assert (DEPLOY / "grafana/dashboards/voltroute.json").read_text() == generate.dashboard() + "\n"
    panels = json.loads(generate.dashboard())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_dashboard_asks_for_metrics_that_there_are(generate: ModuleType) -> None:
    import promql_parser  # noqa: PLC0415 - a development tool

    for expression in generate.expressions():
        promql_parser.parse(expression.replace("$__rate_interval", "1m"))
        asked, unknown = metrics_of(expression)
        assert asked, expression
        assert not unknown, expression


def manifests() -> list[tuple[str, dict[str, Any]]]:
    files = sorted(DEPLOY.glob("kubernetes/*.yaml"))
    return [(f"{file.stem} {each['kind']}", each) for file in files for each in yaml.safe_load_all(file.read_text())]


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize(("name", "manifest"), manifests(), ids=lambda each: each if isinstance(each, str) else "")
def test_manifests_fit_the_schemas_of_kubernetes(name: str, manifest: dict[str, Any], version: str) -> None:
    if manifest["kind"] == "ServiceMonitor":
        assert manifest["spec"]["endpoints"][0]["authorization"]["credentials"]["name"] == "voltroute-metrics"
        return  # of an operator: no schema of Kubernetes' own
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import kubernetes_validate  # noqa: PLC0415 - a development tool that warns when it is imported

        kubernetes_validate.validate(manifest, version, strict=True)


def test_pods_run_as_nobody_and_write_nowhere() -> None:
    pods = [each["spec"]["template"]["spec"] for _, each in manifests() if each["kind"] in {"Deployment", "Job"}]
    assert len(pods) == 2
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert not any("value" in each and "DSN" in each["name"] for each in container["env"])


def test_the_image_passes_its_linter() -> None:
    run(Path(sys.executable).with_name("hadolint"), "Dockerfile")


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    need("systemd-analyze")
    unit = (DEPLOY / "systemd/voltroute.service").read_text()
    copy = tmp_path / "voltroute.service"
    copy.write_text(unit.replace("/opt/voltroute/bin/voltroute", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    mine = [line for line in done.stderr.splitlines() if "voltroute" in line]
    assert mine == []


def test_every_setting_of_postgresql_is_one() -> None:
    lines = (DEPLOY / "postgres/voltroute.conf").read_text().splitlines()
    names = {line.partition("=")[0].strip() for line in lines if "=" in line and not line.startswith("#")}
    found = [find_binaries(None) / "postgres", Path("/usr/lib/postgresql/15/bin/postgres")]
    for program in (each for each in found if each.exists()):
        known = {line.partition("\t")[0] for line in run(program, "--describe-config").splitlines()}
        assert names <= known, (program, names - known)
    assert len(names) > 20


def test_haproxy_takes_its_configuration() -> None:
    need("haproxy")
    run("haproxy", "-c", "-q", "-f", DEPLOY / "haproxy/haproxy.cfg")


def test_prometheus_takes_its_configuration() -> None:
    need("promtool")
    run("promtool", "check", "config", "--syntax-only", DEPLOY / "prometheus/prometheus.yml")


def test_secrets_are_made_once_and_lie_in_a_closed_folder(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    script = tmp_path / "deploy/secrets.sh"
    shutil.copy(DEPLOY / "secrets.sh", script)
    run(script)
    first = {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()}
    run(script)
    assert {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()} == first
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert {secret["file"].removeprefix("secrets/") for secret in compose["secrets"].values()} == set(first)
    assert re.fullmatch(r"postgresql://voltroute_owner:[0-9a-f]{48}@catalog:5432/voltroute\n", first["catalog_dsn"])
