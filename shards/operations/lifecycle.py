"""Policies of the lifecycle; what is due by them, doing it now, and where every shard's history is."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from shards.archive.runner import Archiver
from shards.archive.store import Archive, Store
from shards.catalog import archive as ledger
from shards.catalog import kinds as catalogued
from shards.catalog import lifecycle
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import InvalidArgument, Refused
from shards.kinds import Kinds
from shards.operations import schema
from shards.operations.tenants import find_tenant
from shards.policy import LEAF_WIDTHS, NO_TABLESPACE, Policies, Policy
from shards.postgres.sessions import owner_session
from shards.shard import ShardRecord
from shards.tiers import tablespaces
from shards.tiers.due import Tiers
from shards.tiers.runner import APPLICATION, LIMITS, Done, Result, Tender, nobody

TIMEOUT_S: Final = 10.0
WAIT_TICK_S: Final = 1.0
LATER: Final = ("archive", "drop", "rollups")  # spans of a policy


@dataclass(frozen=True)
class OfShard:
    """The tiers of every bucket of a shard that is in no move, each with the step that is due.

    `leaving`: the months that are to leave it now, by bucket and kind.
    """

    shard: str
    tiers: Sequence[Tiers]
    leaving: Sequence[tuple[int, str, date]] = ()


@dataclass(frozen=True)
class Change:
    """What is to be different: spans, the width of new leaves, where the archive is. The rest stays as it is.

    `spans`: by the names that a policy has for them; None: never. `tablespace`: NO_TABLESPACE for none.
    """

    spans: Mapping[str, timedelta | None]
    width: str | None = None
    archive_url: str | None = None
    tablespace: str | None = None


async def set_policy(catalog: Catalog, kind: str | None, change: Change, tenant: str | None = None) -> Policies:
    """Policies as they are then. `kind`: None for all; `tenant`: whose buckets alone they are for.

    Refused for an unknown kind, a tenant without buckets of its own, without a place for the archive, and while a
    database's schema is behind.
    """
    names = await _checked(catalog, kind, change, tenant)
    if change.archive_url is not None:
        await _claim(catalog, change.archive_url)
    url_before = await ledger.store_url(catalog, deadline_in(TIMEOUT_S))
    url = change.archive_url or url_before
    async with catalog.membership(deadline_in(TIMEOUT_S)) as connection:
        known = await lifecycle.policies_in(connection)
        for policy in _changed(known, names, change, tenant):
            policy.check()
            if policy.archive is not None and url is None:
                raise Refused(f"--archive-after of {policy.whose} needs a place: --archive-to URL")
            await lifecycle.set_policy(connection, policy)
        if change.archive_url is not None:
            if url_before not in {None, change.archive_url} and await ledger.holds_objects(connection):
                raise Refused(f"the archive is in {url_before}, and has readings: it stays there")
            await ledger.set_store_url(connection, change.archive_url)
        if change.width is not None:
            await lifecycle.set_leaf_width(connection, change.width)
    return await lifecycle.policies(catalog, deadline_in(TIMEOUT_S))


async def _checked(catalog: Catalog, kind: str | None, change: Change, tenant: str | None) -> list[str]:
    """The kinds that a change is about."""
    if change.width not in {None, *LEAF_WIDTHS}:
        raise InvalidArgument(f"--leaf {change.width}: one of {', '.join(LEAF_WIDTHS)}")
    behind = [report.database for report in await schema.status(catalog.dsn) if report.pending or report.error]
    if behind:
        raise Refused(
            f"the schema of {', '.join(behind)} is behind this release, or it is away: `voltroute migrate up`"
        )
    names = [each.whole.name for each in await catalogued.declared(catalog, deadline_in(TIMEOUT_S)) if not each.is_open]
    if kind is not None and kind not in names:
        raise Refused(f"there is no kind {kind}: known are {', '.join(names)}")
    if tenant is not None:
        await _check_own(catalog, tenant)
    if change.tablespace not in {None, NO_TABLESPACE}:
        await _check_tablespace(catalog, str(change.tablespace))
    return names if kind is None else [kind]


def _changed(policies: Policies, names: Sequence[str], change: Change, tenant: str | None) -> list[Policy]:
    """New policies. Refused when one would begin without how long readings stay hot."""
    spans = change.spans
    if not spans and change.tablespace is None:
        return []
    known = policies.kinds if tenant is None else policies.kinds | policies.of_tenant(tenant)
    hot = spans.get("hot")
    if hot is None:
        names = [name for name in names if name in known] or list(names)
        if missing := [name for name in names if name not in known]:
            raise Refused(f"{', '.join(missing)} has no policy yet: --hot is needed, too")
    made = []
    for name in names:
        base = known.get(name) or Policy(name, hot or timedelta(0))
        archive, drop, rollups = (spans.get(each, getattr(base, each)) for each in LATER)
        tablespace = change.tablespace or base.tablespace
        tablespace = None if tablespace == NO_TABLESPACE else tablespace
        made.append(Policy(name, hot or base.hot, archive, drop, rollups, tablespace, tenant))
    return made


async def _check_own(catalog: Catalog, tenant: str) -> None:
    """Refused unless the tenant has buckets of its own: in shared ones, what is packed or dropped is everybody's."""
    if (await find_tenant(catalog, tenant)).pinned is None:
        raise Refused(
            f"{tenant} shares its buckets with others, so that its readings cannot have a policy of their own: "
            "that is for tenants made with `voltroute tenant create --pin`"
        )


async def _check_tablespace(catalog: Catalog, tablespace: str) -> None:
    """Refused unless every shard has it."""
    for record in await catalog.shards(deadline_in(TIMEOUT_S)):
        async with owner_session(record, LIMITS, APPLICATION) as connection:
            try:
                await tablespaces.check(connection, tablespace)
            except Refused as error:
                raise Refused(f"{record.name}: {error}") from None


async def _claim(catalog: Catalog, url: str) -> None:
    """A place for the archive, seen to take objects. Refused when it is another cluster's."""
    info = await catalog.info(deadline_in(TIMEOUT_S))
    await Store.open(url).claim(info.cluster_id)


async def remove_policy(catalog: Catalog, kind: str, tenant: str | None = None) -> None:
    """Nothing more of the kind is frozen; what is packed stays packed. Refused when it has no policy.

    Of a tenant, the kind's policy holds from then on.
    """
    async with catalog.membership(deadline_in(TIMEOUT_S)) as connection:
        if not await lifecycle.remove_policy(connection, kind, tenant):
            raise Refused(f"{kind} has no policy" if tenant is None else f"{kind} of {tenant} has no policy of its own")


async def look(catalog: Catalog) -> list[OfShard]:
    """Every shard's tiers. Refused without a policy; ShardError when one does not answer."""
    policies, records, _ = await _policies(catalog)

    async def known() -> Policies:
        return policies

    async def one(record: ShardRecord) -> OfShard:
        tiers = await Tender(record, policies).look()
        return OfShard(record.name, tiers, await Archiver(record, Archive(catalog, ""), known).look())

    return await asyncio.gather(*(one(record) for record in records))


async def run(catalog: Catalog, done: Mapping[str, Done] | None = None) -> dict[str, Result]:
    """Do all that is due now, on all shards at once; returns what became of each."""
    policies, records, kinds = await _policies(catalog)
    told = done or {}
    archive = await Archive.of(catalog, (await catalog.info(deadline_in(TIMEOUT_S))).cluster_id)

    async def current() -> Policies:
        return await lifecycle.policies(catalog, deadline_in(TIMEOUT_S))

    async def tend(record: ShardRecord) -> Result:
        done = told.get(record.name, nobody)
        result = await Tender(record, policies, kinds, done).run()
        return result.with_(await Archiver(record, archive, current, kinds, done).run())

    results = await asyncio.gather(*(tend(record) for record in records))
    return {record.name: result for record, result in zip(records, results, strict=True)}


async def run_until_done(catalog: Catalog, timeout_s: float) -> dict[str, Result]:
    """`run`, again and again, until nothing is due, or waits for a reader; TimeoutError when that takes longer."""
    deadline = time.monotonic() + timeout_s
    total: dict[str, Result] = {}
    while True:
        for name, result in (await run(catalog)).items():
            before = total.get(name, Result())
            total[name] = Result(before.done).with_(result)
        if not any(result.waiting or result.failed for result in total.values()):
            return total
        if time.monotonic() > deadline:
            raise TimeoutError(_undone(total))
        await asyncio.sleep(WAIT_TICK_S)


def _undone(results: Mapping[str, Result]) -> str:
    found = [f"{name}: {what}: {why}" for name, result in results.items() for what, why in result.failed.items()]
    found += [
        f"{name}: {r.waiting} leaves may still be read by old statements" for name, r in results.items() if r.waiting
    ]
    return "; ".join(found)


async def _policies(catalog: Catalog) -> tuple[Policies, list[ShardRecord], Kinds]:
    policies = await lifecycle.policies(catalog, deadline_in(TIMEOUT_S))
    if not policies:
        raise Refused("no kind has a policy: `voltroute lifecycle policy set --hot 7d` makes one for all")
    kinds = await catalogued.known(catalog, deadline_in(TIMEOUT_S))
    return policies, await catalog.shards(deadline_in(TIMEOUT_S)), kinds
