"""shard add-replica, remove-replica, replicas, promote: copies of shards, and which of them is the primary."""

import asyncio
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer

from router.cli.catalog import with_catalog
from router.cli.show.output import print_json, print_table, say, say_check, tell
from router.cli.target import DataOption, JsonOption, data_folder, load_settings
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.embedded.lock import read_holder
from shards.embedded.state import Promotion, asked_to_promote, editing_state, save_state
from shards.errors import MachineError, Refused
from shards.operations import replicas
from shards.operations.finding import Finding
from shards.shard import ReplicaRecord, ShardRecord

PROMOTE_TIMEOUT_S: Final = 120.0
ShardArgument = Annotated[str, typer.Argument(help="Name of the shard.")]
ReplicaArgument = Annotated[str, typer.Argument(help="Name of the replica.")]


def add_replica(
    shard: ShardArgument,
    name: ReplicaArgument,
    address: Annotated[str, typer.Argument(help="Where it listens: host:port. Its logins are the shard's.")],
    data: DataOption = None,
    zone: Annotated[str | None, typer.Option(help="Routers of this zone (VOLTROUTE_ZONE) read it first.")] = None,
    json: JsonOption = False,
) -> None:
    """Have routers read history and analytics of a shard from a streaming replica of it."""

    async def work(catalog: Catalog) -> list[Finding]:
        return await replicas.add_replica(catalog, shard, ReplicaRecord(name, address, zone))

    found = with_catalog(data, work)
    if json:
        print_json({"shard": shard, "replica": name, "checks": [asdict(finding) for finding in found]})
        return
    for finding in found:
        say_check(finding.name, finding.found, ok=finding.ok)
    say(f"history and analytics of {shard} may be read from {name} now")


def remove_replica(
    shard: ShardArgument, name: ReplicaArgument, data: DataOption = None, json: JsonOption = False
) -> None:
    """Have no router read from a replica any more. The server is left as it is."""
    with_catalog(data, lambda catalog: replicas.remove_replica(catalog, shard, name))
    tell({"shard": shard, "replica": name, "removed": True}, f"{name} is not read from any more", json=json)


def list_replicas(data: DataOption = None, json: JsonOption = False) -> None:
    """Replicas as the catalog knows them. How far each is behind, routers say: /v1/shards."""

    async def work(catalog: Catalog) -> list[ShardRecord]:
        return await catalog.shards(deadline_in(replicas.TIMEOUT_S))

    rows = [(record.name, each) for record in with_catalog(data, work) for each in record.replicas]
    if json:
        print_json([{"shard": shard, **asdict(each)} for shard, each in rows])
        return
    print_table(
        ["shard", "replica", "address", "zone"],
        [[shard, each.name, each.address, each.zone or ""] for shard, each in rows],
    )


def promote(
    shard: ShardArgument,
    name: ReplicaArgument,
    data: DataOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also when it lacks something, or nobody knows: that is lost.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make a replica the primary of its shard, in an embedded cluster that runs. Readings wait meanwhile."""
    settings = load_settings()
    if data is None and settings.catalog_dsn is not None:
        message = "this cluster's servers are your own: promote with what keeps them (Patroni, pg_ctl promote)"
        raise MachineError(message)
    folder = data_folder(data, settings)
    if read_holder(folder) is None:
        message = f"no cluster is running in {folder}: `voltroute up` promotes"
        raise MachineError(message)
    with editing_state(folder) as state:
        if name not in state.replicas(shard):
            has = ", ".join(state.replicas(shard))
            raise Refused(f"{name} is no replica of {shard}; it has {has or 'none'}")
        pending = state.promotions.get(shard)
        if pending is not None and pending.refused is None:
            raise Refused(f"{pending.server} is being promoted already: wait for it, or start the cluster again")
        known = set(state.aside)
        save_state(folder, asked_to_promote(state, shard, Promotion(name, force)))
    aside = asyncio.run(_promoted(folder, shard, name)) - known
    old = next(iter(aside), None)
    text = f"{name} is the primary of {shard} now"
    text += f"; {old} may have what it lacks, and stays out" if old else ""
    tell({"shard": shard, "primary": name, "aside": old}, text, json=json)


async def _promoted(folder: Path, shard: str, name: str) -> set[str]:
    """Wait for the process that keeps the servers; those that stay out then. Refused, with its reason, if it did not.

    What it is asked stays written down: it finds out from there, also when it is started again.
    """
    deadline = deadline_in(PROMOTE_TIMEOUT_S)
    while True:
        with editing_state(folder) as state:
            asked = state.promotions.get(shard)
        if asked is None and state.primary(shard) == name:
            return set(state.aside)
        if asked is None or asked.refused is not None:
            raise Refused((asked and asked.refused) or f"{name} was not promoted")
        if time.monotonic() > deadline:
            raise Refused(
                f"{name} was not promoted within {PROMOTE_TIMEOUT_S:g} s, and may be yet: does `up` still run?"
            )
        await asyncio.sleep(0.1)
