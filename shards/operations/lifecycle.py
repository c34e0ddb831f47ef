"""Policies of the lifecycle; what is due by them, doing it now, and where every shard's history is."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from shards.catalog import kinds as catalogued
from shards.catalog import lifecycle
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import InvalidArgument, Refused
from shards.kinds import Kinds
from shards.operations import schema
from shards.policy import LEAF_WIDTHS, Policy
from shards.shard import ShardRecord
from shards.tiers.due import Tiers
from shards.tiers.runner import Done, Result, Tender, nobody

TIMEOUT_S: Final = 10.0
WAIT_TICK_S: Final = 1.0


@dataclass(frozen=True)
class OfShard:
    """The tiers of every bucket of a shard that is in no move, each with the step that is due."""

    shard: str
    tiers: Sequence[Tiers]


async def set_policy(catalog: Catalog, kind: str | None, hot: timedelta | None, width: str | None) -> dict[str, Policy]:
    """Policies as they are then. `kind`: None for all; `hot`, `width`: None to leave it as it is.

    Refused for an unknown kind, and while a database's schema is behind.
    """
    if width is not None and width not in LEAF_WIDTHS:
        raise InvalidArgument(f"--leaf {width}: one of {', '.join(LEAF_WIDTHS)}")
    behind = [report.database for report in await schema.status(catalog.dsn) if report.pending or report.error]
    if behind:
        raise Refused(
            f"the schema of {', '.join(behind)} is behind this release, or it is away: `voltroute migrate up`"
        )
    names = [each.whole.name for each in await catalogued.declared(catalog, deadline_in(TIMEOUT_S)) if not each.is_open]
    if kind is not None and kind not in names:
        raise Refused(f"there is no kind {kind}: known are {', '.join(names)}")
    async with catalog.membership(deadline_in(TIMEOUT_S)) as connection:
        for name in names if kind is None else [kind]:
            if hot is not None:
                await lifecycle.set_policy(connection, name, hot)
        if width is not None:
            await lifecycle.set_leaf_width(connection, width)
    return await lifecycle.policies(catalog, deadline_in(TIMEOUT_S))


async def remove_policy(catalog: Catalog, kind: str) -> None:
    """Nothing more of the kind is frozen; what is packed stays packed. Refused when it has no policy."""
    async with catalog.membership(deadline_in(TIMEOUT_S)) as connection:
        if not await lifecycle.remove_policy(connection, kind):
            raise Refused(f"{kind} has no policy")


async def look(catalog: Catalog) -> list[OfShard]:
    """Every shard's tiers. Refused without a policy; ShardError when one does not answer."""
    policies, records, _ = await _policies(catalog)
    found = await asyncio.gather(*(Tender(record, policies).look() for record in records))
    return [OfShard(record.name, tiers) for record, tiers in zip(records, found, strict=True)]


async def run(catalog: Catalog, done: Mapping[str, Done] | None = None) -> dict[str, Result]:
    """Do all that is due now, on all shards at once; returns what became of each."""
    policies, records, kinds = await _policies(catalog)
    told = done or {}
    tenders = [Tender(record, policies, kinds, told.get(record.name, nobody)) for record in records]
    results = await asyncio.gather(*(tender.run() for tender in tenders))
    return {record.name: result for record, result in zip(records, results, strict=True)}


async def run_until_done(catalog: Catalog, timeout_s: float) -> dict[str, Result]:
    """`run`, again and again, until nothing is due, or waits for a reader; TimeoutError when that takes longer."""
    deadline = time.monotonic() + timeout_s
    total: dict[str, Result] = {}
    while True:
        for name, result in (await run(catalog)).items():
            known = total.setdefault(name, Result())
            known.waiting, known.failed = result.waiting, result.failed
            for step, count in result.done.items():
                known.done[step] = known.done.get(step, 0) + count
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


async def _policies(catalog: Catalog) -> tuple[dict[str, Policy], list[ShardRecord], Kinds]:
    policies = await lifecycle.policies(catalog, deadline_in(TIMEOUT_S))
    if not policies:
        raise Refused("no kind has a policy: `voltroute lifecycle policy set --hot 7d` makes one for all")
    kinds = await catalogued.known(catalog, deadline_in(TIMEOUT_S))
    return policies, await catalog.shards(deadline_in(TIMEOUT_S)), kinds
