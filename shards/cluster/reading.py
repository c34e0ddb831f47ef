"""A read of one shard, from a replica where one will do, else from the primary; and of when the answer is."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Generic, TypeVar

from shards.cluster.replica import REPLAYED, Replica
from shards.cluster.replicas import WRITTEN
from shards.cluster.shard import Shard
from shards.errors import ShardError, ShardUnavailable
from shards.storage.rows import Reader

# Of the time that is left, what a server may take while there is another one that can be asked.
_SHARE: Final = 0.7
Part = TypeVar("Part")


@dataclass(frozen=True)
class Terms:
    """Who reads, and how fresh it must be. `reader`: a key or an address; what is answered to it never goes back.

    `primary`: from nowhere else. `stale`: from a replica that is too far behind rather than not at all.
    """

    tenant: int
    deadline: float
    reader: str
    primary: bool = False
    stale: bool = False


@dataclass(frozen=True)
class Answered(Generic[Part]):
    """What a shard answered: it has everything that was committed at `as_of`. `replica`: whose word it is, if one's."""

    parts: list[Part]
    as_of: datetime | None
    replica: str | None = None


@dataclass(frozen=True)
class Question(Generic[Part]):
    """`ask` reads, and may be repeated; `is_whole`: whether the server had all that it was asked for."""

    ask: Callable[[Reader], Awaitable[list[Part]]]
    is_whole: Callable[[list[Part]], bool]


async def read(find: Callable[[], Shard], terms: Terms, question: Question[Part]) -> Answered[Part]:
    """ShardError when nobody answers. An answer of the primary may not be whole; a replica's always is.

    `find`: the shard, as it is reached now.
    """
    shard = find()
    for replica in [] if terms.primary else shard.replicas.usable(terms.reader):
        answered = await _of_replica(shard, replica, terms, question)
        if answered is not None:
            return answered
    try:
        return await _of_primary(find, _leaving_time(terms) if terms.stale and shard.replicas else terms, question)
    except ShardUnavailable:
        for replica in shard.replicas.usable(terms.reader, any_lag=True) if terms.stale else []:
            answered = await _of_replica(shard, replica, terms, question)
            if answered is not None:
                return answered
        raise


def _leaving_time(terms: Terms) -> Terms:
    """The same, with time left for a replica when the primary does not answer."""
    now = time.monotonic()
    return replace(terms, deadline=now + (terms.deadline - now) * _SHARE)


async def _of_primary(find: Callable[[], Shard], terms: Terms, question: Question[Part]) -> Answered[Part]:
    """What the primary says; asked again when it stops, or another takes its place, while there is time."""
    while True:
        shard, as_of = find(), datetime.now(UTC)
        try:
            async with shard.reader.connection(terms.deadline, terms.tenant) as connection:
                parts = await question.ask(Reader(connection, terms.tenant))
                if shard.replicas:
                    shard.replicas.floors.saw(terms.reader, await connection.fetchval(WRITTEN))
        except ShardError as error:
            if not await shard.reader.comes_back(error, terms.deadline):
                raise
        else:
            return Answered(parts, as_of)


async def _of_replica(shard: Shard, replica: Replica, terms: Terms, question: Question[Part]) -> Answered[Part] | None:
    """What a replica says; None when another server is to be asked: it is behind what the reader has seen, or fails."""
    floors, as_of = shard.replicas.floors, shard.replicas.complete_at(replica)
    floor, now = floors.of(terms.reader), time.monotonic()
    try:
        async with replica.connection(now + (terms.deadline - now) * _SHARE, terms.tenant) as connection:
            if (replica.replayed or 0) < floor:
                replica.reached(await connection.fetchval(REPLAYED) or 0)
                if (replica.replayed or 0) < floor:
                    return None
            parts = await question.ask(Reader(connection, terms.tenant))
            replayed: int | None = await connection.fetchval(REPLAYED)
    except ShardError:  # whatever it is: also "archived" may be no longer so
        return None
    # It was promoted meanwhile, or somebody was answered from a later state while this took its time.
    if replayed is None or replayed < floors.of(terms.reader):
        return None
    replica.reached(replayed)
    floors.saw(terms.reader, replayed)
    return Answered(parts, as_of, replica.record.name) if question.is_whole(parts) else None
