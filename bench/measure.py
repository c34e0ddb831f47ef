"""One measurement: readings into one system as fast as it takes them, and the proof that they are stored."""

from dataclasses import dataclass

from bench.http1 import post
from bench.ledger import Proof, prove
from bench.load import Outcome, closed_loop, open_loop
from bench.systems import Cpu, System
from bench.workload import Readings, new_readings

PATH = "/v1/ingest/vehicle"
_TABLES = {"voltroute": "vehicle_telemetry_history", "seed-design": "seed.vehicle_telemetry_history"}


class MeasurementError(Exception):
    """The system did not do what it was measured for."""


@dataclass(frozen=True)
class Measured:
    """Readings a second and CPU microseconds a reading, of one system in one round."""

    rate: float
    outcome: Outcome
    cpu_us: Cpu
    proof: Proof | None


@dataclass(frozen=True)
class Shape:
    """How readings are sent: so many in a request, over so many connections, of so many devices."""

    size: int
    connections: int
    devices: int = 10_000

    @property
    def media_type(self) -> bytes:
        return b"application/json" if self.size == 1 else b"application/x-ndjson"


def _payloads(system: System, readings: Readings, shape: Shape, count: int) -> list[bytes]:
    """Requests, encoded before the clock runs."""
    return [
        post(system.url, PATH, readings.batch(number * shape.size, shape.size), shape.media_type)
        for number in range(count)
    ]


async def flood(system: System, shape: Shape, seconds: float, expected_rate: float) -> Measured:
    """Closed loop for at most `seconds`. `expected_rate` (readings a second) says how many requests to encode ahead.

    MeasurementError when a request fails, or the requests run out much too early; LedgerError when the databases do not
    hold exactly what was acknowledged.
    """
    readings = new_readings(max(shape.devices, shape.size))
    payloads = _payloads(system, readings, shape, int(expected_rate * seconds / shape.size) + shape.connections)
    before = system.cpu()

    def payload(number: int) -> bytes:
        return payloads[number % len(payloads)]

    outcome = await closed_loop(system.url, payload, shape.connections, seconds)
    used = system.cpu().since(before)
    if set(outcome.statuses) != {200} or outcome.lost:
        message = f"{system.name}: answers {outcome.statuses}, {outcome.lost} connections lost"
        raise MeasurementError(message)
    if outcome.sent > len(payloads):
        message = f"{system.name} took more than the {len(payloads)} requests that were encoded: raise expected_rate"
        raise MeasurementError(message)
    stored = len(outcome.acknowledged) * shape.size
    proof = await _proof(system, readings, shape, outcome)
    scale = 1_000_000 / stored
    cpu_us = Cpu(used.server * scale, used.postgres * scale, used.generator * scale)
    return Measured(stored / outcome.seconds, outcome, cpu_us, proof)


async def offered(system: System, shape: Shape, rate: float, seconds: float) -> tuple[Outcome, Proof | None]:
    """Open loop at `rate` requests a second. Refusals are part of the outcome; the ledger still must hold."""
    readings = new_readings(max(shape.devices, shape.size))
    payloads = _payloads(system, readings, shape, int(rate * seconds))
    outcome = await open_loop(system.url, payloads.__getitem__, shape.connections, rate, seconds)
    return outcome, await _proof(system, readings, shape, outcome)


async def _proof(system: System, readings: Readings, shape: Shape, outcome: Outcome) -> Proof | None:
    table = _TABLES.get(system.name)
    if table is None or not system.shards:
        return None
    sent = {readings.key(n) for n in range(outcome.sent * shape.size)}
    acknowledged = {
        readings.key(n) for first in outcome.acknowledged for n in range(first * shape.size, (first + 1) * shape.size)
    }
    databases = dict([next(iter(system.shards.items()))]) if system.name == "seed-design" else system.shards
    return await prove(databases, table, readings.prefix, acknowledged, sent)
