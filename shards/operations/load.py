"""Loading years of readings: straight into packed days and rollups, beside live traffic."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shards.buckets import BucketRange
from shards.bulk.checking import Checker
from shards.bulk.runner import Load, Told
from shards.bulk.session import Outcome
from shards.bulk.sources import File, Foreign
from shards.bulk.spool import Spool
from shards.catalog import kinds as catalogued
from shards.catalog import lifecycle
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.cluster.live import Cluster
from shards.errors import InvalidArgument, Refused
from shards.kinds import Kind
from shards.operations.tenants import find_tenant
from shards.postgres.options import PoolLimits
from shards.tiers.watching import Watch, watch_nothing

TIMEOUT_S: Final = 10.0


@dataclass(frozen=True)
class Wanted:
    """What is loaded, and how. `spool`: a folder, gone on with if a load was interrupted in it."""

    tenant: str
    spool: Path
    parallel: int = 1
    verify: bool = False
    options: Sequence[str] = ()  # how the sources are understood: another load has others


@dataclass(frozen=True)
class Result:
    """What became of a load: counts; rows left out, and the first ones; bucket and month -> why it is not stored."""

    outcome: Outcome
    bad: int
    bad_rows: Sequence[str]
    failed: dict[str, str]


async def kind_named(catalog: Catalog, name: str) -> Kind:
    """Refused when there is none."""
    kinds = await catalogued.known(catalog, deadline_in(TIMEOUT_S))
    if name not in kinds.by_name:
        raise Refused(f"there is no kind {name[:40]!r}; there are {', '.join(kinds.by_name)}")
    return kinds.by_name[name]


async def _check_policy(catalog: Catalog, kind: Kind, buckets: BucketRange) -> None:
    """Refused when there is none: nothing of the kind is ever packed there."""
    policies = await lifecycle.policies(catalog, deadline_in(TIMEOUT_S))
    if policies.of(kind.name, buckets.start) is None:
        raise Refused(
            f"history of {kind} is never packed: say for how long it stays as it comes, as in "
            f"`voltroute lifecycle policy set {kind} --hot 7d`"
        )


async def load(
    catalog: Catalog,
    checker: Checker,
    sources: Sequence[File | Foreign],
    wanted: Wanted,
    told: Told,
    watch: Watch = watch_nothing,
) -> Result:
    """Read, check and sort all sources, then store what is in them. InvalidArgument, BadRow: nothing is stored.

    ShardError when the catalog does not answer.
    """
    checker.partial = any(each.is_partial for each in sources)
    if checker.partial:
        if not all(each.is_partial for each in sources):
            raise InvalidArgument("lines of InfluxDB are loaded by themselves: leave the other files out")
        checker.unit = checker.unit or "ns"
    tenant = await find_tenant(catalog, wanted.tenant)
    cluster_id = (await catalog.info(deadline_in(TIMEOUT_S))).cluster_id
    limits = PoolLimits(min_size=0, max_size=max(wanted.parallel, 1))
    cluster = Cluster(catalog, limits, TIMEOUT_S)
    try:
        buckets = (await cluster.refresh(TIMEOUT_S)).range_of(tenant.tenant_id)
        await _check_policy(catalog, checker.kind, buckets)
        what = [cluster_id, checker.kind.name, f"{tenant.tenant_id} {buckets}", *wanted.options]
        what += sorted(each.identity for each in sources)
        spool = Spool(wanted.spool, checker.kind, buckets, what)
        work = Load(
            cluster,
            checker.kind,
            tenant.tenant_id,
            spool,
            wanted.parallel,
            verify=wanted.verify,
            partial=checker.partial,
            told=told,
            watch=watch,
        )
        if not spool.state.read:
            await work.read(sources, checker)
        outcome = await work.run()
        return Result(outcome, spool.state.bad_count, spool.state.bad, work.failed)
    finally:
        await cluster.close()
