"""Declaring kinds and fields while the cluster runs: recorded, made on every shard, and only then known to routers.

Whatever interrupts it: `resume` finishes what is recorded. Nothing that was declared is ever dropped.
"""

import asyncio
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from shards.catalog import kinds as catalogued
from shards.catalog.database import Catalog
from shards.catalog.kinds import Declared, KindState
from shards.clock import deadline_in, remaining
from shards.declaration import check_beside, check_kind, with_fields
from shards.errors import Cause, ClusterError, Refused, ShardError, ShardUnavailable, WriteConflict
from shards.kinds import BUILT_IN, Field, Kind
from shards.operations.shape import bring, days_ahead
from shards.operations.shards import logins_of
from shards.postgres.sessions import BRIEF, SessionLimits, owner_session
from shards.shard import ShardRecord
from shards.storage import shaping

TIMEOUT_S: Final = 10.0
PATIENCE_S: Final = 120.0  # for a shard whose tables are never free for a moment
PAUSE_S: Final = 0.2
PAUSE_MAX_S: Final = 2.0
ROUNDS_MAX: Final = 5  # shards that are added meanwhile
LOCK_SHORT_S: Final = 0.3
LOCK_LONG_S: Final = 1.5
INSISTING: Final = 4  # every so many attempts

# Told what was done, in words.
Told = Callable[[str], None]


@dataclass(frozen=True)
class OnShard:
    """What a change does on one shard. `away`: why it cannot be asked; `tables`: that it makes or changes."""

    name: str
    buckets: int
    tables: int
    locks: int
    away: str | None = None


async def plan(catalog: Catalog, kind: Kind, *, is_new: bool) -> list[OnShard]:
    """What a change of a kind does on each shard. Refused when a server could not hold the locks that it takes."""
    info = await catalog.info(deadline_in(TIMEOUT_S))
    shard_map = await catalog.shard_map(deadline_in(TIMEOUT_S))
    records = await catalog.shards(deadline_in(TIMEOUT_S))
    owned = {} if shard_map is None else shard_map.by_shard
    ahead = len(days_ahead(info))

    async def ask(record: ShardRecord) -> OnShard:
        buckets = len(owned.get(record.name, ()))
        try:
            async with owner_session(record, BRIEF) as connection:
                tables, locks = await shaping.tables_and_locks(connection, kind)
        except ShardError as error:
            return OnShard(record.name, buckets, 0, 0, error.detail)
        return OnShard(record.name, buckets, buckets * (3 + ahead) + 2 if is_new else tables, locks)

    found = list(await asyncio.gather(*map(ask, records)))
    for each in found:
        if not is_new and each.away is None and each.tables > each.locks * 0.9:
            raise Refused(
                f"{each.name} has {each.tables:,} tables of {kind}, each of which needs a lock, and its server has "
                f"room for {each.locks:,}: raise max_locks_per_transaction there, and restart it"
            )
    return found


async def check_new(catalog: Catalog, kind: Kind) -> None:
    """Refused when `create` would be; nothing is changed."""
    _check_new(await catalogued.declared(catalog, deadline_in(TIMEOUT_S)), kind)


def _check_new(known: Sequence[Declared], kind: Kind) -> bool:
    """Whether it is not there yet. Refused when it is there otherwise, or could be taken for another."""
    check_kind(kind)
    same = next((each for each in known if each.whole.name == kind.name), None)
    if same is None:
        check_beside(kind, (each.whole for each in known))
        return True
    if same.state is not KindState.MAKING:
        raise Refused(f"kind {kind.name} is there already: `voltroute field add {kind.name} ...` adds to it")
    if not same.whole.is_declared_as(kind):
        raise Refused(f"kind {kind.name} was begun with another declaration: `voltroute kind resume` finishes that one")
    return False


async def create(catalog: Catalog, kind: Kind, told: Told) -> None:
    """Declare a kind. Refused when it is there otherwise, or beside the others could not be told apart."""
    async with catalog.membership(deadline_in(TIMEOUT_S)) as connection:
        await catalogued.lock(connection)
        if _check_new(await catalogued.within(connection), kind):
            await catalogued.insert(connection, kind)
    await _finish(catalog, kind.name, told)


async def check_added(catalog: Catalog, name: str, fields: Sequence[Field]) -> Kind:
    """Refused when `add` would be; the kind as it is. Nothing is changed."""
    known = await catalogued.declared(catalog, deadline_in(TIMEOUT_S))
    _check_added(known, name, fields)
    return _find(known, name).whole


def _check_added(known: Sequence[Declared], name: str, fields: Sequence[Field]) -> list[Field]:
    """Those of the fields that are not taken yet."""
    declared = _find(known, name)
    there = {field.name: field for field in declared.whole.stored}
    new = [field for field in fields if field.name not in {each.name for each in declared.whole.fields}]
    for field in fields:
        _check_same(name, field, there.get(field.name))
        if field.required:
            raise Refused(f"field {field.name}: one that is added later cannot be required: devices send without it")
    still_retired = tuple(each for each in declared.whole.retired if each.name not in {field.name for field in new})
    whole = with_fields(replace(declared.whole, retired=still_retired), new)
    if whole.alternatives and not declared.whole.alternatives:
        raise Refused(
            f"{name} would have an energy and a register, of which a reading must have one: devices that send neither "
            "would be refused. Declare a kind that has both from the beginning"
        )
    check_beside(whole, (each.whole for each in known))
    return new


async def add(catalog: Catalog, name: str, fields: Sequence[Field], told: Told) -> list[Field]:
    """Declare fields of a kind; those that are there already are left as they are. Returns the others.

    Refused for an unknown kind, or a field whose name is another one's; one that was retired is taken again.
    """
    async with catalog.membership(deadline_in(TIMEOUT_S)) as connection:
        await catalogued.lock(connection)
        known = await catalogued.within(connection)
        new, declared = _check_added(known, name, fields), _find(known, name)
        retired = {field.name for field in declared.whole.retired}
        for field in new:
            if field.name in retired:
                await catalogued.take_again(connection, declared.kind_id, field)
        await catalogued.add(connection, declared.kind_id, [field for field in new if field.name not in retired])
    await _finish(catalog, name, told)
    return new


def _check_same(kind: str, field: Field, known: Field | None) -> None:
    """Refused when the name is that of another field: what is stored under it stays what it is."""
    if known is None:
        return
    for what in ("type", "role", "direction", "column", "in_status"):
        was, wanted = getattr(known, what), getattr(field, what)
        if was != wanted:
            raise Refused(
                f"{kind}.{field.name} is there with the {what} {was}, and that never changes: "
                f"give the one with {wanted} another name"
            )


async def retire(catalog: Catalog, name: str, field_name: str) -> None:
    """Take a field no more: readings with it are refused, with that reason; what is stored stays and is read.

    Refused for a field of the seed's, and for the last one.
    """
    async with catalog.membership(deadline_in(TIMEOUT_S)) as connection:
        await catalogued.lock(connection)
        declared = _find(await catalogued.within(connection), name)
        field = next((each for each in declared.whole.fields if each.name == field_name), None)
        if field is None:
            gone = any(each.name == field_name for each in declared.whole.retired)
            raise Refused(f"{name} has no field {field_name[:64]}" if not gone else f"{field_name} is retired already")
        if field in declared.adding:  # no router ever took it
            await catalogued.withdraw(connection, declared.kind_id, field_name)
            return
        if name in BUILT_IN.by_name and field.column in BUILT_IN.by_name[name].values:
            raise Refused(f"{field_name} is one of the built-in fields of {name}: they stay")
        rest = tuple(each for each in declared.whole.fields if each.name != field_name)
        check_kind(replace(declared.whole, fields=rest))
        await catalogued.retire(connection, declared.kind_id, field_name)


async def resume(catalog: Catalog, told: Told) -> list[str]:
    """Finish every change that was begun, and give shards what they lack of what is declared; names the kinds.

    ClusterError, when all others are finished, for those that could not be.
    """
    names = [each.whole.name for each in await catalogued.declared(catalog, deadline_in(TIMEOUT_S))]
    failed = []
    for name in names:
        try:
            await _finish(catalog, name, told)
        except ClusterError as error:
            failed.append(str(error))
    if failed:
        raise ClusterError("; ".join(failed))
    return names


async def find(catalog: Catalog, name: str) -> Declared:
    """The kind of that name. Refused when there is none."""
    return _find(await catalogued.declared(catalog, deadline_in(TIMEOUT_S)), name)


def _find(known: Sequence[Declared], name: str) -> Declared:
    for each in known:
        if each.whole.name == name:
            return each
    raise Refused(f"there is no kind {name[:64]}; there are {', '.join(each.whole.name for each in known)}")


async def _finish(catalog: Catalog, name: str, told: Told) -> None:
    """Make what is declared on every shard, then let routers know. ClusterError names shards that are away."""
    done: set[str] = set()
    for _ in range(ROUNDS_MAX):
        declared = await find(catalog, name)
        records = [each for each in await catalog.shards(deadline_in(TIMEOUT_S)) if each.name not in done]
        failed = await _on_all(catalog, declared, records, told)
        if failed:
            reasons = "; ".join(f"{shard}: {reason}" for shard, reason in sorted(failed.items()))
            raise ClusterError(
                f"{name} is not on every shard yet: {reasons}. It is recorded, and no router takes it: "
                "`voltroute kind resume` finishes it when that is mended"
            )
        done |= {record.name for record in records}
        async with catalog.membership(deadline_in(TIMEOUT_S)) as connection:
            # No shard is added meanwhile; one that was added since has what was declared when it came.
            if {record.name for record in await catalog.shards(deadline_in(TIMEOUT_S))} <= done:
                await catalogued.lock(connection)
                again = _find(await catalogued.within(connection), name)
                if again.adding == declared.adding:
                    if again.is_open:
                        await catalogued.activate(connection, again.kind_id)
                    return
                done.clear()  # fields were declared meanwhile
    raise ClusterError(f"kind {name} changes all the time: `voltroute kind resume` goes on")


def _limits(attempt: int) -> SessionLimits:
    """Writers wait as long as a lock is waited for, so that is short; PostgreSQL ends an autovacuum only after 1 s."""
    lock_timeout_s = LOCK_LONG_S if attempt % INSISTING == 0 else LOCK_SHORT_S
    return SessionLimits(statement_timeout_s=30.0, lock_timeout_s=lock_timeout_s)


async def _on_all(catalog: Catalog, declared: Declared, records: Sequence[ShardRecord], told: Told) -> dict[str, str]:
    """Shard -> why it could not be given it."""
    info = await catalog.info(deadline_in(TIMEOUT_S))
    logins = logins_of(info.cluster_id, {each.name: each for each in await catalog.shards(deadline_in(TIMEOUT_S))})

    async def one(record: ShardRecord) -> str | None:
        deadline, pause = deadline_in(PATIENCE_S), PAUSE_S
        for attempt in itertools.count(1):
            try:
                async with owner_session(record, _limits(attempt)) as connection:
                    if attempt % INSISTING == 0:  # what copies a large partition would have to be waited for
                        await shaping.end_movers(connection)
                    await bring(connection, [declared], logins, info)
                    if declared.is_open:  # also after a repeat: nobody knows where the last one ended
                        await shaping.end_movers(connection)
            except (ShardUnavailable, WriteConflict) as error:
                lasting = isinstance(error, ShardUnavailable) and error.cause is not Cause.LOCKED
                if lasting or remaining(deadline) < PAUSE_MAX_S:
                    return error.detail
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(pause * 1.5, PAUSE_MAX_S)
            except (ShardError, Refused) as error:
                return error.detail if isinstance(error, ShardError) else str(error)
            else:
                break
        told(f"{record.name} has {declared.whole.name} with {len(declared.whole.fields)} fields")
        return None

    reasons = await asyncio.gather(*map(one, records))
    return {record.name: reason for record, reason in zip(records, reasons, strict=True) if reason is not None}
