"""What every scenario is given: how long to measure, on what, and where to show progress."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from bench.systems import VOLTROUTE, System, with_baselines


class Progress(Protocol):
    """Shows how far a run is."""

    def begin(self, scenario: str, steps: int) -> None:
        """A scenario of so many steps begins."""

    def step(self, text: str) -> None:
        """The next step begins."""


@dataclass(frozen=True)
class Context:
    """`rounds` of `seconds` each. `full`: data of the size that a scenario is named for, which takes minutes.

    `target`: a router that runs already, instead of a cluster of our own. `p99_ms`: what `maximum` may not exceed.
    `minutes`, `seed`: of `chaos`.
    """

    rounds: int
    seconds: float
    shards: int
    progress: Progress
    target: System | None = None
    full: bool = False
    p99_ms: float = 50.0
    minutes: float = 2.0
    seed: int = 1

    def begin(self, scenario: str, steps_a_round: int, extra: int = 0) -> None:
        """Say how many steps there will be."""
        self.progress.begin(scenario, self.rounds * steps_a_round + extra)

    def step(self, text: str) -> None:
        """Say what is being done."""
        self.progress.step(text)

    @asynccontextmanager
    async def systems(self, settings: Mapping[str, str] | None = None) -> AsyncIterator[Mapping[str, System]]:
        """What is measured; `settings` of the router. A target that runs already comes without baselines."""
        if self.target is not None:
            yield {VOLTROUTE: self.target}
            return
        async with with_baselines(self.shards, settings) as made:
            yield made
