"""One measurement: a plan sent to one system, and the proof that its readings are stored."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.ledger import Proof, prove
from bench.load import Outcome, closed_loop, open_loop
from bench.systems import SEED, Cpu, System
from bench.workload import Plan, Readings, even_plan, new_readings

_SEED_SCHEMA: Final = "seed."


class MeasurementError(Exception):
    """The system did not do what it was measured for."""


@dataclass(frozen=True)
class Measured:
    """Of one system in one round: readings and requests a second, CPU microseconds a reading (a request if none)."""

    rate: float
    requests_rate: float
    outcome: Outcome
    cpu_us: Cpu
    proof: Proof


@dataclass(frozen=True)
class Shape:
    """How readings are sent: so many in a request, over so many connections, of so many devices."""

    size: int
    connections: int
    devices: int = 10_000

    def plan(self, url: str, requests: int, keys: Sequence[str] = ()) -> Plan:
        """Requests with readings that were never sent before."""
        return even_plan(url, new_readings(max(self.devices, self.size)), self.size, requests, keys)


async def flood(system: System, shape: Shape, seconds: float, expected_rate: float) -> Measured:
    """Readings of one shape in a closed loop. `expected_rate`: readings a second for which requests are encoded."""
    plan = shape.plan(system.url, int(expected_rate * seconds / shape.size) + shape.connections, system.keys)
    return await saturate(system, plan, shape.connections, seconds)


async def saturate(system: System, plan: Plan, connections: int, seconds: float | None) -> Measured:
    """Closed loop for `seconds` (None: until all is sent).

    MeasurementError when a request fails, or the requests run out too early; LedgerError when the databases do not hold
    exactly what was acknowledged.
    """
    before = system.cpu()
    outcome = await closed_loop(plan, connections, seconds)
    used = system.cpu().since(before)
    if outcome.lost or set(outcome.all_statuses()) != {200}:
        message = f"{system.name}: answers {outcome.all_statuses()}, {outcome.lost} connections lost"
        raise MeasurementError(message)
    if seconds is not None and outcome.exhausted:
        message = (
            f"{system.name} took more than the {len(plan.requests)} requests that were encoded: expect a higher rate"
        )
        raise MeasurementError(message)
    stored = sum(len(plan.requests[number].numbers) for number in outcome.acknowledged)
    requests = len(outcome.acknowledged)
    scale = 1_000_000 / (stored or requests)
    cpu_us = Cpu(used.server * scale, used.postgres * scale, used.generator * scale)
    proof = await prove_plan(system, plan, outcome)
    return Measured(stored / outcome.seconds, requests / outcome.seconds, outcome, cpu_us, proof)


async def offer(system: System, plan: Plan, connections: int, rate: float) -> tuple[Outcome, Proof]:
    """Open loop at `rate` requests a second. Refusals are part of the outcome; the ledger still must hold."""
    outcome = await open_loop(plan, connections, rate)
    return outcome, await prove_plan(system, plan, outcome)


async def prove_plan(system: System, plan: Plan, *outcomes: Outcome) -> Proof:
    """The ledger of everything that was sent of a plan. Systems that store nothing prove nothing."""
    total = Proof(0, 0, 0)
    if not system.shards or not system.stores:
        return total
    databases = dict([next(iter(system.shards.items()))]) if system.name == SEED else system.shards
    schema = _SEED_SCHEMA if system.name == SEED else ""
    sent: dict[Readings, set[int]] = defaultdict(set)
    acknowledged: dict[Readings, set[int]] = defaultdict(set)
    for outcome in outcomes:
        for request in plan.requests[: outcome.sent]:
            if request.readings is not None:
                sent[request.readings].update(request.numbers)
        for number in outcome.acknowledged:
            request = plan.requests[number]
            if request.readings is not None:
                acknowledged[request.readings].update(request.numbers)
    for readings, numbers in sent.items():
        proof = await prove(databases, readings, acknowledged[readings], numbers, schema)
        total = Proof(
            total.acknowledged + proof.acknowledged,
            total.stored + proof.stored,
            total.unconfirmed + proof.unconfirmed,
        )
    return total
