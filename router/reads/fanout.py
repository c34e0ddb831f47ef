"""Asking several shards at once, and making sure that every bucket is in the answer exactly once."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

import structlog

from router import tracing
from router.metrics import FANOUT_SECONDS, READS, STALE_MAPS
from router.reads.scope import Scope
from router.wire.answers import Shards
from router.wire.problems import SHARD_UNAVAILABLE, ProblemError, archived, retry_after
from shards.cluster.live import Cluster
from shards.cluster.reading import Question, Terms, read
from shards.errors import Archived, ClusterError, ShardError, ShardFault, StaleMap
from shards.storage.rows import Reader

_log: Final = structlog.stdlib.get_logger(__name__)
ATTEMPTS_MAX: Final = 5
_PAUSE_S: Final = 0.02


class Covered(Protocol):
    """A shard's answer: the buckets it was asked for, and which of them it owned."""

    @property
    def asked(self) -> frozenset[int]: ...

    @property
    def covered(self) -> frozenset[int]: ...


Part = TypeVar("Part", bound=Covered)
Tag = TypeVar("Tag")


@dataclass(frozen=True)
class Tagged(Generic[Tag, Part]):
    """A part with a word on what it is, for fan-outs that ask a shard several things."""

    tag: Tag
    part: Part

    @property
    def asked(self) -> frozenset[int]:
        return self.part.asked

    @property
    def covered(self) -> frozenset[int]:
        return self.part.covered


@dataclass(frozen=True)
class Merged(Generic[Part]):
    """The shards' answers, and which shards are missing (only when the caller allowed a partial answer)."""

    parts: list[Part]
    total: int
    missing: tuple[str, ...]

    @property
    def is_partial(self) -> bool:
        return bool(self.missing)

    def shards(self) -> Shards:
        """As it is told to the client."""
        return Shards(self.total, self.total - len(self.missing), list(self.missing))


async def fan_out(
    scope: Scope,
    ask: Callable[[Reader, list[int]], Awaitable[Iterable[Part]]],
    *,
    buckets: Collection[int] | None = None,
    partial: bool = False,
    primary: bool = False,
) -> Merged[Part]:
    """Ask the owners of `buckets` (None: all of the scope's tenant), each for its own; `primary`: none of its replicas.

    Every part must cover all buckets its shard was asked for, under a map that did not change meanwhile; else the map
    is read again and all is asked again. A shard that does not answer by the scope's deadline ends it with
    a 503 problem, or is listed as missing when `partial`. What is archived ends it with a 409.
    """
    cluster, deadline = scope.cluster, scope.deadline
    for attempt in range(1, ATTEMPTS_MAX + 1):
        shard_map = cluster.map
        asked = shard_map.regroup(shard_map.range_of(scope.tenant).buckets if buckets is None else buckets)
        terms = Terms(scope.tenant, deadline, scope.reader, primary, scope.stale)
        waiting = [_ask(scope, name, terms, _Asking(ask, mine)) for name, mine in asked.items()]
        # Of one shard without a task of its own.
        answers = [await waiting[0]] if len(waiting) == 1 else await asyncio.gather(*waiting)
        outcome = dict(zip(asked, answers, strict=True))
        stale = any(isinstance(answer, StaleMap) for answer in answers)
        if not stale and cluster.map is shard_map:
            return _merge(outcome, partial=partial)
        if attempt < ATTEMPTS_MAX and time.monotonic() < deadline:
            await _refresh(cluster, deadline, attempt)
    return _merge(outcome, partial=partial)


@dataclass(frozen=True)
class _Asking(Generic[Part]):
    """What one shard is asked, for its buckets."""

    question: Callable[[Reader, list[int]], Awaitable[Iterable[Part]]]
    buckets: list[int]

    async def ask(self, reader: Reader) -> list[Part]:
        return list(await self.question(reader, self.buckets))

    def is_whole(self, parts: list[Part]) -> bool:
        asked = frozenset().union(*(part.asked for part in parts))
        return asked == frozenset(self.buckets) and all(part.covered == part.asked for part in parts)


async def _ask(scope: Scope, name: str, terms: Terms, asking: _Asking[Part]) -> list[Part] | ShardError:
    started = time.monotonic()
    try:
        with tracing.child("read", name):
            answered = await read(lambda: scope.cluster.shard(name), terms, Question(asking.ask, asking.is_whole))
    except ShardError as error:
        if isinstance(error, ShardFault):
            _log.error("shard_fault", shard=name, detail=error.detail)
        return error
    finally:
        FANOUT_SECONDS.labels(name).observe(time.monotonic() - started)
    if not asking.is_whole(answered.parts):
        STALE_MAPS.labels(name).inc()
        return StaleMap(name, "does not own all the buckets that this router's map gives it")
    READS.labels(name, answered.replica or "").inc()
    scope.seen.times.append(answered.as_of)
    return answered.parts


async def _refresh(cluster: Cluster, deadline: float, attempt: int) -> None:
    with contextlib.suppress(ShardError, ClusterError):  # else the old map again, while there is time
        await cluster.refresh(max(deadline - time.monotonic(), 0.05))
    if attempt > 1:
        await asyncio.sleep(_PAUSE_S * attempt)


def _merge(outcome: dict[str, list[Part] | ShardError], *, partial: bool) -> Merged[Part]:
    errors = {name: answer for name, answer in outcome.items() if isinstance(answer, ShardError)}
    if gone := [error for error in errors.values() if isinstance(error, Archived)]:  # also of a partial answer
        raise archived(gone[0].kind, max(each.past for each in gone), min(each.first for each in gone))
    if errors and (not partial or len(errors) == len(outcome)):
        wait = max(getattr(error, "retry_after_s", 1.0) for error in errors.values())
        shards = Shards(len(outcome), len(outcome) - len(errors), sorted(errors))
        detail = f"no answer from {', '.join(sorted(errors))}"
        extensions = {"isPartial": True, "shards": {"total": shards.total, "ok": shards.ok, "missing": shards.missing}}
        raise ProblemError(SHARD_UNAVAILABLE, detail, headers=retry_after(wait), extensions=extensions)
    parts = [part for answer in outcome.values() if not isinstance(answer, ShardError) for part in answer]
    return Merged(parts, len(outcome), tuple(sorted(errors)))
