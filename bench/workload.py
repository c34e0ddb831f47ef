"""Readings to send, encoded before the clock runs, and how to find them again in the databases."""

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from bench import http1

Numbers: TypeAlias = Sequence[int]

JSON: Final = b"application/json"
NDJSON: Final = b"application/x-ndjson"
PLAIN: Final = b"text/plain"
WRITE: Final = "write"
DAYS_BACK: Final = 20
_numbers: Final = itertools.count()


@dataclass(frozen=True)
class Kind:
    """What is sent for a kind of device, and where it is stored."""

    name: str
    body: bytes
    history: str
    status: str
    id_column: str

    @property
    def path(self) -> str:
        return f"/v1/ingest/{self.name}"


VEHICLE: Final = Kind(
    "vehicle",
    b'{"vehicleId":"%s","soc":50.25,"kwhDeliveredDc":0.1234,"batteryTemp":25.5,"timestamp":"%s"}',
    "vehicle_telemetry_history",
    "vehicle_current_status",
    "vehicle_id",
)
METER: Final = Kind(
    "meter",
    b'{"meterId":"%s","kwhConsumedAc":0.1234,"voltage":230.5,"timestamp":"%s"}',
    "meter_telemetry_history",
    "meter_current_status",
    "meter_id",
)


_LINE: Final = b"vehicle,id=%b soc=50.25,kwh=0.1234,temp=25.5 %d000000000"


@dataclass(frozen=True)
class Readings:
    """Distinct readings of `devices` devices: number n is of device n mod devices, minute n div devices."""

    kind: Kind
    prefix: str
    devices: int
    start: datetime

    def device(self, number: int) -> str:
        """Device of a reading."""
        return f"{self.prefix}-{number % self.devices:06d}"

    def number(self, device: str, minute: int) -> int:
        """The reading of a device (as `device` names it) so many minutes after the start."""
        return minute * self.devices + int(device[len(self.prefix) + 1 :])

    def moment(self, number: int) -> datetime:
        """Timestamp of a reading."""
        return self.start + timedelta(minutes=number // self.devices)

    def body(self, number: int) -> bytes:
        """A reading as JSON. All bodies of one workload have one length."""
        moment = self.moment(number).strftime("%Y-%m-%dT%H:%M:%SZ")
        return self.kind.body % (self.device(number).encode(), moment.encode())

    def bodies(self, numbers: Iterable[int]) -> bytes:
        """Readings as NDJSON."""
        return b"\n".join(map(self.body, numbers))

    def lines(self, numbers: Iterable[int]) -> bytes:
        """Vehicles' readings in InfluxDB's line protocol, with nanoseconds."""
        start = int(self.start.timestamp())
        return b"\n".join(
            _LINE % (self.device(number).encode(), start + number // self.devices * 60) for number in numbers
        )


def new_readings(devices: int, kind: Kind = VEHICLE, days_back: int = DAYS_BACK) -> Readings:
    """Readings whose devices no other workload has, from some days ago on."""
    prefix = f"B{os.getpid() % 100_000:05d}X{next(_numbers):04d}"
    start = (datetime.now(UTC) - timedelta(days=days_back)).replace(second=0, microsecond=0)
    return Readings(kind, prefix, devices, start)


@dataclass(frozen=True)
class Request:
    """A whole HTTP request. `numbers`: its readings (none: it reads); `topic`: what its latency is counted under."""

    payload: bytes
    topic: str
    readings: Readings | None = None
    numbers: Numbers = ()


@dataclass
class Plan:
    """Requests in the order in which they are sent. `keys`: of an equal share of the devices each; or none.

    `lines_to`: a path that takes line protocol, for systems that do not take JSON.
    """

    url: str
    requests: list[Request] = field(default_factory=list)
    keys: Sequence[str] = ()
    lines_to: str | None = None

    def write(self, readings: Readings, numbers: Numbers, topic: str = WRITE) -> None:
        """Add a POST of some readings: one as JSON, more as NDJSON."""
        if self.lines_to is not None:
            payload = http1.post(self.url, self.lines_to, readings.lines(numbers), PLAIN)
            self.requests.append(Request(payload, topic, readings, numbers))
            return
        body = readings.bodies(numbers)
        media_type = JSON if len(numbers) == 1 else NDJSON
        share = numbers[0] % readings.devices * len(self.keys) // readings.devices
        key = self.keys[share] if self.keys else None
        payload = http1.post(self.url, readings.kind.path, body, media_type, key)
        self.requests.append(Request(payload, topic, readings, numbers))

    def read(self, path: str, topic: str) -> None:
        """Add a GET."""
        self.requests.append(Request(http1.get(self.url, path), topic))

    def workloads(self) -> list[Readings]:
        """The workloads of which it sends readings."""
        return list(dict.fromkeys(r.readings for r in self.requests if r.readings is not None))


def even_plan(url: str, readings: Readings, size: int, count: int, keys: Sequence[str] = ()) -> Plan:
    """`count` POSTs of `size` readings each, from number 0 on."""
    plan = Plan(url, keys=keys)
    for first in range(0, count * size, size):
        plan.write(readings, range(first, first + size))
    return plan
