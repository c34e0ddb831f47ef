"""PostgreSQL's figures of every shard, asked for between scrapes, never in one."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from router.metrics import Gauges
from shards.clock import deadline_in
from shards.cluster.live import Cluster
from shards.cluster.shard import Shard
from shards.errors import ShardError, ShardFault
from shards.postgres import figures
from shards.postgres.connections import Connection
from shards.postgres.figures import Figure, Samples

CHEAP_S: Final = 15.0
HEAVY_S: Final = 60.0
PATIENCE_S: Final = 5.0
_log: Final = structlog.stdlib.get_logger(__name__)


class Figures:
    """What the shards said last; a shard that did not answer the last time has none, rather than old ones."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._found: dict[str, dict[str, Samples]] = {"cheap": {}, "heavy": {}}
        self._refused: set[str] = set()
        self._slow: set[tuple[str, tuple[str, ...]]] = set()

    async def run(self) -> None:
        """The cheap ones of every shard, until cancelled: every router asks for its own."""
        while True:
            await self._ask_all("cheap", figures.cheap)
            await asyncio.sleep(CHEAP_S)

    async def lead(self) -> None:
        """The others, until cancelled: the leader alone asks for these, and tells of slow statements."""
        try:
            while True:
                await asyncio.sleep(HEAVY_S)
                await self._ask_all("heavy", figures.heavy)
                self._tell_slow()
        finally:
            self._found["heavy"] = {}

    async def _ask_all(self, which: str, ask: Callable[[Connection], Awaitable[Samples]]) -> None:
        shards = list(self._cluster.shards.items())
        answers = await asyncio.gather(*(self._ask(name, shard, ask) for name, shard in shards))
        self._found[which] = {name: found for (name, _), found in zip(shards, answers, strict=True) if found}

    async def _ask(self, name: str, shard: Shard, ask: Callable[[Connection], Awaitable[Samples]]) -> Samples | None:
        if shard.monitor is None:
            return None
        try:
            async with shard.monitor.connection(deadline_in(PATIENCE_S)) as connection:
                found = await ask(connection)
        except ShardError as error:
            if isinstance(error, ShardFault) and name not in self._refused:
                self._refused.add(name)  # once: `doctor` tells it for as long as it is so
                _log.warning("figures_refused", shard=name, detail=error.detail)
            return None
        self._refused.discard(name)
        return found

    def _tell_slow(self) -> None:
        """A line, once, for each statement over SLOW_MS on average; /v1/shards/NAME/statements has its text."""
        for shard, samples in self._found["heavy"].items():
            calls = dict(samples.get(figures.CALLS, ()))
            for labels, seconds in samples.get(figures.SECONDS, ()):
                mean_ms = seconds / max(calls.get(labels, 0), 1) * 1000
                if mean_ms > figures.SLOW_MS and (shard, labels) not in self._slow:
                    self._slow.add((shard, labels))
                    _log.warning("slow_statement", shard=shard, queryid=labels[0], mean_ms=round(mean_ms, 1))

    def gauges(self) -> Gauges:
        """A metric for each figure, with the label `shard` before its own."""
        for which, names in (("cheap", figures.CHEAP), ("heavy", figures.HEAVY)):
            for figure in names:
                yield figure.name, figure.help, ("shard", *figure.labels), self._samples(which, figure)

    def _samples(self, which: str, figure: Figure) -> list[tuple[tuple[str, ...], float]]:
        return [
            ((shard, *labels), value)
            for shard, samples in self._found[which].items()
            for labels, value in samples.get(figure, ())
        ]


class HeavyFigures:
    """The leader's duty to ask for what costs more."""

    def __init__(self, found: Figures) -> None:
        self._figures = found

    async def run(self, _generation: int) -> None:
        """Until cancelled."""
        await self._figures.lead()
