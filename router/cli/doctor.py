"""doctor: is everything as it must be, and if not, what to do."""

import asyncio
import sys

from router.cli.show.output import exit_unless_ok, show_findings
from router.cli.target import DataOption, JsonOption, find_catalog, load_settings
from router.settings import Settings
from shards.embedded.binaries import find_binaries
from shards.errors import ClusterError
from shards.operations import doctor as operation
from shards.operations.finding import Finding


def doctor(data: DataOption = None, json: JsonOption = False) -> None:
    """Check this machine and the cluster; every failed check comes with its remedy."""
    settings = load_settings()
    own_servers = data is None and settings.catalog_dsn is not None
    found = [_python(), _binaries(settings.pg_bin, needed=not own_servers), _environment()]
    try:
        dsn = find_catalog(data, settings)
    except ClusterError as error:
        found.append(Finding("catalog", ok=False, found=str(error), remedy="start it, or say where it is"))
    else:
        found += asyncio.run(operation.examine(dsn))
    show_findings(found, json=json)
    exit_unless_ok(found)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 11), version, "install Python 3.11 or newer")


def _environment() -> Finding:
    unknown = Settings.unknown_variables()
    found = f"no setting reads {', '.join(unknown)}" if unknown else "every VOLTROUTE_ variable is a setting"
    return Finding("environment", not unknown, found, "see `voltroute config show` for the names")


def _binaries(override: str | None, *, needed: bool) -> Finding:
    try:
        return Finding("embedded PostgreSQL", ok=True, found=str(find_binaries(override)))
    except ClusterError as error:
        if not needed:
            return Finding("embedded PostgreSQL", ok=True, found="none, and not needed for servers of your own")
        return Finding("embedded PostgreSQL", ok=False, found=str(error), remedy="needed for `up` and `demo` only")
