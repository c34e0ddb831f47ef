"""Replicas of a shard: looked at before they are believed, and told to the routers."""

from dataclasses import dataclass
from typing import Final

from shards.catalog import database
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import ClusterError, InvalidArgument, Refused, ShardError
from shards.operations.finding import Finding
from shards.operations.identity import Identity, ask
from shards.postgres.dsn import addresses, at_address
from shards.postgres.lineage import Role
from shards.postgres.sessions import BRIEF, open_session
from shards.shard import ReplicaRecord, ShardRecord, check_name

TIMEOUT_S: Final = 10.0
_FACTS: Final = """
SELECT pg_is_in_recovery() AS is_replica, (SELECT system_identifier FROM pg_control_system()) AS system,
    (SELECT received_tli FROM pg_stat_wal_receiver WHERE status = 'streaming') AS timeline,
    current_setting('hot_standby_feedback')::boolean AS feedback,
    (SELECT setting::integer FROM pg_settings WHERE name = 'max_standby_streaming_delay') AS delay_ms,
    current_setting('server_version') AS version
"""
_IDENTITY: Final = "SELECT cluster_id::text || ' ' || name FROM shard_identity"


@dataclass(frozen=True)
class ReplicaFacts:
    """What a server says of itself. `timeline`: of what it receives; None when it receives nothing."""

    is_replica: bool
    system: int
    timeline: int | None
    feedback: bool
    delay_ms: int
    version: str
    identity: str | None = None


async def look(shard: ShardRecord, address: str) -> ReplicaFacts:
    """Ask a server, with the shard's own login. ShardError when it does not answer, or has no such database."""
    if shard.monitor_dsn is None:
        raise Refused(f"{shard.name} has no login that sees whether a replica receives: `voltroute migrate up` first")
    dsn = at_address(shard.monitor_dsn, address)
    async with open_session(f"{shard.name} at {address}", dsn, BRIEF, "voltroute monitor", role=Role.ANY) as connection:
        facts = dict((await connection.fetch(_FACTS))[0])
        return ReplicaFacts(**facts, identity=await connection.fetchval(_IDENTITY))


def examine(primary: Identity, facts: ReplicaFacts) -> list[Finding]:
    """What makes a server a replica of this shard; the last two are advice, and refuse nothing."""
    identity = f"{primary.cluster_id} {primary.name}"
    receives = "receives nothing" if facts.timeline is None else f"receives timeline {facts.timeline}"
    return [
        Finding("replica", facts.is_replica, "is a replica" if facts.is_replica else "is a primary", "name a standby"),
        Finding(
            "system",
            facts.system == primary.system,
            f"system {facts.system}"
            + ("" if facts.system == primary.system else f", and {primary.name}'s is {primary.system}"),
            "make it with pg_basebackup of the shard's primary",
        ),
        Finding(
            "shard", facts.identity == identity, f"holds {facts.identity or 'no shard'}", f"it must hold {identity}"
        ),
        Finding(
            "stream",
            facts.timeline == primary.timeline,
            receives + ("" if facts.timeline == primary.timeline else f"; the primary is on {primary.timeline}"),
            "let it stream from the primary (primary_conninfo, standby.signal)",
        ),
        *advice(facts),
    ]


def advice(facts: ReplicaFacts) -> list[Finding]:
    """Settings without which long reads end early: routers ask the primary then."""
    delay = "without limit" if facts.delay_ms < 0 else f"{facts.delay_ms / 1000:g} s"
    return [
        Finding(
            "hot_standby_feedback",
            facts.feedback,
            "on" if facts.feedback else "off: vacuum on the primary ends long reads",
            "set it on",
        ),
        Finding(
            "max_standby_streaming_delay",
            0 <= facts.delay_ms <= 60_000,
            f"a read may hold up the replay {delay}",
            "set it to VOLTROUTE_QUERY_TIMEOUT_S",
        ),
    ]


_ADVICE: Final = frozenset({"hot_standby_feedback", "max_standby_streaming_delay"})


async def add_replica(catalog: Catalog, shard: str, replica: ReplicaRecord) -> list[Finding]:
    """Have routers read a shard's history and analytics from a replica too.

    Refused when there is one of that name, or the server at its address is no replica of that shard that receives.
    """
    check_name(replica.name, "replica")
    try:
        hosts = [each.host for each in addresses(f"postgresql://{replica.address}/x")]
    except ValueError:
        hosts = []
    if not replica.address.strip() or None in hosts or not hosts:
        raise InvalidArgument(f"{replica.address!r} is no address; one is called db2.example:5432")
    info = await catalog.info(deadline_in(TIMEOUT_S))
    async with catalog.membership(deadline_in(TIMEOUT_S * 2)) as connection:
        record = await _shard(catalog, shard)
        if any(each.name == replica.name for each in record.replicas):
            raise Refused(f"{shard} has a replica {replica.name} already")
        if any(each.address == replica.address for each in record.replicas):
            raise Refused(f"{replica.address} is a replica of {shard} already, by another name")
        try:
            primary, facts = await ask(shard, record.owner_dsn), await look(record, replica.address)
        except ShardError as error:
            raise Refused(f"{replica.name} cannot become a replica: {error.detail}") from None
        primary.check(info.cluster_id, shard)
        primary.check_lineage(record)
        findings = examine(primary, facts)
        wrong = [f"{each.found} ({each.remedy})" for each in findings if not each.ok and each.name not in _ADVICE]
        if wrong:
            raise Refused(f"{replica.name} cannot become a replica of {shard}: {'; '.join(wrong)}")
        await database.add_replica(connection, shard, replica)
    return findings


async def check(catalog: Catalog, shard: ShardRecord) -> list[Finding]:
    """Whether each replica of a shard is one, and receives; routers leave alone what is not."""
    info = await catalog.info(deadline_in(TIMEOUT_S))
    found = []
    for replica in shard.replicas:
        name = f"{replica.name} is a replica of {shard.name}"
        try:
            primary, facts = await ask(shard.name, shard.owner_dsn), await look(shard, replica.address)
            primary.check(info.cluster_id, shard.name)
        except (ShardError, ClusterError) as error:
            detail = error.detail if isinstance(error, ShardError) else str(error)
            found.append(
                Finding(name, False, detail, f"start it, or voltroute shard remove-replica {shard.name} {replica.name}")
            )
            continue
        wrong = [each for each in examine(primary, facts) if not each.ok and each.name not in _ADVICE]
        told = "; ".join(each.found for each in wrong)
        found.append(Finding(name, not wrong, told or "it streams", "; ".join(each.remedy for each in wrong)))
    return found


async def remove_replica(catalog: Catalog, shard: str, name: str) -> None:
    """Have no router read from it any more. The server itself is left as it is. Refused when there is none such."""
    async with catalog.membership(deadline_in(TIMEOUT_S * 2)) as connection:
        if not await database.remove_replica(connection, shard, name):
            known = ", ".join(each.name for each in (await _shard(catalog, shard)).replicas)
            raise Refused(f"{shard} has no replica {name}; it has {known or 'none'}")


async def _shard(catalog: Catalog, name: str) -> ShardRecord:
    records = {record.name: record for record in await catalog.shards(deadline_in(TIMEOUT_S))}
    if name not in records:
        raise Refused(f"there is no shard {name}; there are {', '.join(sorted(records))}")
    return records[name]
