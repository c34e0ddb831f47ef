"""shard add-replica, remove-replica, replicas: which copies of shards routers read from."""

from dataclasses import asdict
from typing import Annotated

import typer

from router.cli.catalog import with_catalog
from router.cli.show.output import print_json, print_table, say, say_check, tell
from router.cli.target import DataOption, JsonOption
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.operations import replicas
from shards.operations.finding import Finding
from shards.shard import ReplicaRecord, ShardRecord

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
