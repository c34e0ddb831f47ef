"""`maximum`: the greatest rate of single readings, offered in an open loop, at which p99 stays below a limit."""

from typing import Final

from bench.context import Context
from bench.measure import Shape, flood, offer
from bench.results import Collected, ScenarioResult, Target
from bench.systems import VOLTROUTE, System

CONNECTIONS: Final = 256
EXPECTED_RATE: Final = 60_000
BISECTIONS: Final = 5
TARGETS: Final = [Target("maximum: rate / closed-loop throughput", 0.5, 0.75)]


async def run(context: Context) -> ScenarioResult:
    """Bisect between nothing and what a closed loop reaches; the rate must also be kept up with."""
    found = Collected()
    context.begin("maximum", BISECTIONS + 1, extra=1)
    context.step("starting")
    async with context.systems() as systems:
        ours = systems[VOLTROUTE]
        await flood(ours, Shape(1, CONNECTIONS), 1, EXPECTED_RATE)
        for _ in range(context.rounds):
            context.step("closed loop")
            most = await flood(ours, Shape(1, CONNECTIONS), context.seconds, EXPECTED_RATE)
            found.proofs += most.proof.acknowledged
            good, bad = 0.0, most.rate
            for _ in range(BISECTIONS):
                rate = (good + bad) / 2
                context.step(f"{rate:,.0f} a second")
                p99, proved = await _try(ours, rate, context.seconds)
                found.proofs += proved
                good, bad = (rate, bad) if p99 <= context.p99_ms else (good, rate)
            found.add("maximum: rate", "readings/s", good)
            found.add("maximum: closed-loop throughput", "readings/s", most.rate)
    ratio = found.ratio("maximum: rate / closed-loop throughput", "maximum: rate", "maximum: closed-loop throughput")
    notes = [f"p99 <= {context.p99_ms:g} ms"]
    return ScenarioResult("maximum", found.figures(ratio), TARGETS, found.proofs, notes, found.curves)


async def _try(system: System, rate: float, seconds: float) -> tuple[float, int]:
    """p99 in ms (infinite when requests were refused), and the number of readings proved stored."""
    plan = Shape(1, CONNECTIONS).plan(system.url, max(int(rate * seconds), 1))
    outcome, proof = await offer(system, plan, CONNECTIONS, rate)
    whole = outcome.count(200) == len(plan.requests)
    return outcome.percentile_ms(99) if whole else float("inf"), proof.acknowledged
