"""Making tenants, and the keys that let their devices and people in."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from shards.buckets import BucketRange
from shards.catalog import keys, tenants
from shards.catalog.database import Catalog, ClusterInfo
from shards.catalog.keys import KeyRecord, Right, Wanted
from shards.catalog.tenants import BUCKETS_MAX, Tenant
from shards.clock import deadline_in
from shards.errors import InvalidArgument, Refused
from shards.moves.placement import spread
from shards.operations.init import attach_buckets
from shards.operations.shape import days_ahead
from shards.shard import ShardRecord, ShardState, check_name

TIMEOUT_S: Final = 10.0
PINNED_BUCKETS_DEFAULT: Final = 16


async def create_tenant(
    catalog: Catalog, name: str, rate: float | None, pins: Sequence[str], bucket_count: int, first_bucket: int | None
) -> Tenant:
    """A new tenant; with `pins` it has buckets of its own on these shards alone, made at once.

    Refused when the name is taken, a pin is no shard that may be given buckets, or the buckets are another range's.
    Repeating what was interrupted finishes it.
    """
    check_name(name, "tenant")
    check_rate(rate)
    shards = list(dict.fromkeys(pins))
    async with catalog.membership(deadline_in(TIMEOUT_S)) as connection:
        records = await _ready_shards(catalog)
        _check_pins(shards, bucket_count, records)
        known = await tenants.find(catalog, name, deadline_in(TIMEOUT_S))
        if known is not None:
            _check_same(known, rate, shards, bucket_count)
        else:
            pinned = None
            if shards:
                await _check_map(catalog)
                pinned = _range(await tenants.next_bucket(connection), bucket_count, first_bucket)
            known = await tenants.insert(connection, name, rate, pinned, shards)
    if known.pinned is not None:
        await _give_out(catalog, known, records)
    return await find_tenant(catalog, name)


def check_rate(rate: float | None) -> None:
    """InvalidArgument unless it is a number of readings a second, or None: no limit."""
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise InvalidArgument(f"--rate {rate:g}: a number of readings a second is expected")


def _check_pins(shards: Sequence[str], bucket_count: int, records: Mapping[str, ShardRecord]) -> None:
    unknown = sorted(set(shards) - records.keys())
    if unknown:
        raise Refused(f"--pin: there is no shard {', '.join(unknown)}; there are {', '.join(sorted(records))}")
    draining = [name for name in shards if records[name].state is ShardState.DRAINING]
    if draining:
        raise Refused(f"--pin: {', '.join(draining)} is draining: it is given no buckets")
    if shards and bucket_count < len(shards):
        raise Refused(f"{bucket_count} buckets cannot be spread over {len(shards)} shards: --buckets must be more")


def _check_same(known: Tenant, rate: float | None, shards: Sequence[str], bucket_count: int) -> None:
    """Only what was interrupted is finished, and only by the same command."""
    asked = (rate, tuple(shards), bucket_count)
    was = (known.rate, known.shards, known.pinned.count if known.pinned else 0)
    if known.ready:
        raise Refused(f"{known.name} is a tenant already")
    if asked != was:
        raise Refused(
            f"{known.name} was begun with --pin {' --pin '.join(known.shards)} --buckets {was[2]}"
            f"{'' if known.rate is None else f' --rate {known.rate:g}'}: repeat it like that"
        )


async def _check_map(catalog: Catalog) -> None:
    """Buckets follow those that exist: all of them must be given out, also those of a tenant that is being made."""
    if await catalog.shard_map(deadline_in(TIMEOUT_S)) is None:
        raise Refused(
            "the cluster's own buckets are not given out yet: repeat the `voltroute init` that was interrupted"
        )
    for tenant in await tenants.all_of(catalog, deadline_in(TIMEOUT_S)):
        if not tenant.ready:
            raise Refused(f"tenant {tenant.name} is being made: repeat its `voltroute tenant create` first")


async def _ready_shards(catalog: Catalog) -> dict[str, ShardRecord]:
    records = {record.name: record for record in await catalog.shards(deadline_in(TIMEOUT_S))}
    behind = sorted(name for name, record in records.items() if not record.has_tenants)
    if behind:
        raise Refused(f"{', '.join(behind)} does not know tenants yet: run `voltroute migrate up` first")
    return records


def _range(end: int, count: int, first: int | None) -> BucketRange:
    """`count` buckets right behind those that exist. Refused when others are asked for, or there is no room."""
    if first is not None and first < end:
        raise Refused(f"--first-bucket {first}: buckets up to {end - 1} are another range's; the next one is {end}")
    if first is not None and first > end:
        raise Refused(f"--first-bucket {first}: there would be a gap; the next bucket is {end}")
    if end + count > BUCKETS_MAX:
        raise Refused(f"{count} buckets from {end} on end behind the last one, {BUCKETS_MAX - 1}")
    return BucketRange(end, count)


async def _give_out(catalog: Catalog, tenant: Tenant, records: dict[str, ShardRecord]) -> None:
    """Recorded before it is made: who comes after an interruption knows which buckets are whose, and goes on."""
    if tenant.pinned is None:
        return
    info: ClusterInfo = await catalog.info(deadline_in(TIMEOUT_S))
    days = days_ahead(info)
    owners = spread(tenant.pinned.count, tenant.shards)
    of_shard: dict[str, list[int]] = {}
    for bucket, owner in zip(tenant.pinned.buckets, owners, strict=True):
        of_shard.setdefault(owner, []).append(bucket)
    leaves = (info.first_month, days)
    await asyncio.gather(
        *(attach_buckets(name, records[name].owner_dsn, mine, leaves) for name, mine in of_shard.items())
    )
    async with catalog.membership(deadline_in(TIMEOUT_S)) as connection:
        await tenants.publish(connection, tenant, owners)


async def find_tenant(catalog: Catalog, name: str) -> Tenant:
    """The tenant of that name; Refused when there is none."""
    found = await tenants.find(catalog, name, deadline_in(TIMEOUT_S))
    if found is None:
        names = ", ".join(tenant.name for tenant in await tenants.all_of(catalog, deadline_in(TIMEOUT_S)))
        raise Refused(f"there is no tenant {name[:64]}; there are {names}")
    return found


async def create_key(catalog: Catalog, tenant: str, wanted: Wanted, text: str | None = None) -> tuple[KeyRecord, str]:
    """A new key of a tenant, and its text, which nobody can find out again. Refused for an unknown tenant."""
    check_rate(wanted.rate)
    await _ready_shards(catalog)
    found = await find_tenant(catalog, tenant)
    if not found.ready:
        raise Refused(f"the buckets of tenant {tenant} are not made yet: repeat its `voltroute tenant create`")
    if wanted.expires_at is not None and wanted.expires_at <= datetime.now(UTC):
        raise InvalidArgument(f"a key that expires at {wanted.expires_at.isoformat()} would never be valid")
    if not wanted.scopes:
        raise InvalidArgument(f"a key needs a scope: {', '.join(Right)}")
    return await keys.create(catalog, found, wanted, text or keys.new_text(), deadline_in(TIMEOUT_S))


async def has_had_keys(catalog: Catalog) -> bool:
    """Whether the cluster is closed: a key was made once."""
    return (await keys.ring(catalog, deadline_in(TIMEOUT_S))).closed


async def first_key(catalog: Catalog, text: str) -> None:
    """Let this key (`keys.new_text`) do everything, as the default tenant's."""
    wanted = Wanted(tuple(Right), label="first key")
    await create_key(catalog, tenants.DEFAULT_NAME, wanted, text)


async def revoke_key(catalog: Catalog, key_id: str) -> bool:
    """Revoke a key; False when it was revoked before. Refused when there is none."""
    done = await keys.revoke(catalog, key_id, deadline_in(TIMEOUT_S))
    if done is None:
        raise Refused(f"there is no key {key_id[:64]!r}: `voltroute key list` shows them (the ID follows vr_)")
    return done


async def set_rate(catalog: Catalog, name: str, rate: float | None) -> None:
    """Change a tenant's limit in readings a second; None takes it away. Refused for an unknown tenant."""
    check_rate(rate)
    await find_tenant(catalog, name)
    await tenants.set_rate(catalog, name, rate, deadline_in(TIMEOUT_S))
