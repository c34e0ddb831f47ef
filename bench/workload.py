"""Readings to send, encoded before the clock runs, and how to find them again in the databases."""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

Key: TypeAlias = tuple[str, datetime]  # (device, timestamp)

_BODY: Final = b'{"vehicleId":"%s","soc":50.25,"kwhDeliveredDc":0.1234,"batteryTemp":25.5,"timestamp":"%s"}'
AGE: Final = timedelta(days=20)
_numbers: Final = itertools.count()


@dataclass(frozen=True)
class Readings:
    """Distinct readings of `devices` vehicles: number n is of device n mod devices, minute n div devices."""

    prefix: str
    devices: int
    start: datetime

    def key(self, number: int) -> Key:
        """Device and timestamp of a reading."""
        return (
            f"{self.prefix}-{number % self.devices:05d}",
            self.start + timedelta(minutes=number // self.devices),
        )

    def body(self, number: int) -> bytes:
        """A reading as JSON. All bodies of one workload have one length."""
        device, moment = self.key(number)
        return _BODY % (device.encode(), moment.strftime("%Y-%m-%dT%H:%M:%SZ").encode())

    def batch(self, first: int, size: int) -> bytes:
        """`size` readings from number `first` on, as NDJSON."""
        return b"\n".join(self.body(number) for number in range(first, first + size))


def new_readings(devices: int) -> Readings:
    """Readings whose devices no other workload has; the last twenty days have room for them."""
    prefix = f"B{os.getpid() % 100_000:05d}X{next(_numbers):03d}"
    start = (datetime.now(UTC) - AGE).replace(second=0, microsecond=0)
    return Readings(prefix, devices, start)


def numbers(size: int) -> Iterator[int]:
    """0, size, 2 size, ...: first numbers of consecutive requests."""
    return itertools.count(0, size)
