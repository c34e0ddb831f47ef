"""What every scenario is given: how long to measure, on what, and where to show progress."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bench.systems import System, with_baselines

VOLTROUTE = "voltroute"
NULL = "null"
SEED = "seed-design"


@dataclass(frozen=True)
class Context:
    """`rounds` of `seconds` each. `target`: a router that runs already, instead of a cluster of our own."""

    rounds: int
    seconds: float
    shards: int
    say: Callable[[str], None]
    target: System | None = None

    @asynccontextmanager
    async def systems(self) -> AsyncIterator[Mapping[str, System]]:
        """What is measured. A target that runs already comes without baselines."""
        if self.target is not None:
            yield {VOLTROUTE: self.target}
            return
        self.say(f"starting {self.shards} shards, a router and the baselines")
        async with with_baselines(self.shards) as made:
            yield made
