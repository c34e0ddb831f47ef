"""What the ingest endpoints share: who may send, the dispatcher, the limits of a request, the memory of all."""

import asyncio
import random
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from router.access.keys import Access
from router.ingest.body import BodyLimits
from router.ingest.budget import BodyBudget
from router.ingest.dispatch import Dispatcher
from router.metrics import SHED
from router.wire.problems import OVERLOADED, ProblemError, retry_after

SMALL_BYTES: Final = 2_048  # of a body: about the readings that go into a queue of small chunks
HOLD_S: Final = 0.4


def is_small(length: bytes) -> bool:
    """Whether a body of that Content-Length is a reading or some."""
    return length.isdigit() and int(length) <= SMALL_BYTES


@dataclass(frozen=True)
class Intake:
    """`timeout_s` runs from the last byte of a body to its answer. `large`: whose turn it is to unfold a large body."""

    access: Access
    dispatcher: Dispatcher
    budget: BodyBudget
    body: BodyLimits
    timeout_s: float
    readings_max: int
    age_max: timedelta
    ahead_max: timedelta
    large: asyncio.Lock = field(default_factory=asyncio.Lock)

    def check_room(self, length: bytes) -> None:
        """A 429 problem when readings have to wait too long, for a body of that Content-Length.

        Devices that send a reading or some have queues of their own, and are not refused for what others send.
        """
        pressures = self.dispatcher.pressures
        if not pressures.small.standing and not pressures.large.standing:
            return
        small = is_small(length)
        if (pressures.small if small else pressures.large).is_high(time.monotonic()):
            SHED.labels("small" if small else "large").inc()
            detail = "readings wait too long for their transaction: more arrive than can be stored"
            hold_s = random.uniform(0.5, 1) * HOLD_S
            raise ProblemError(OVERLOADED, detail, headers=retry_after(1), hold_s=hold_s)
