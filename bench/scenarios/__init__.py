"""The scenarios: each measures one use of the router, against baselines in the same run, interleaved."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from bench.context import Context
from bench.results import ScenarioResult
from bench.scenarios import batch, overload, scale, single


@dataclass(frozen=True)
class Scenario:
    """A scenario and what it is for."""

    text: str
    run: Callable[[Context], Awaitable[ScenarioResult]]


SCENARIOS: Final[Mapping[str, Scenario]] = {
    "single": Scenario("one reading a POST over 64 and 256 connections, against null and seed-design", single.run),
    "batch": Scenario("NDJSON of 100, 1,000 and 10,000 readings, against seed-design and copy-ceiling", batch.run),
    "scale": Scenario("cost of a reading in batches of 1,000 on 1, 2 and 4 shards", scale.run),
    "overload": Scenario("four times the capacity: what is shed, how, and the router's memory", overload.run),
}
