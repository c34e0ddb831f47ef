"""What the ingest endpoints share: who may send, the dispatcher, the limits of a request, the memory of all."""

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta

from router.access.keys import Access
from router.ingest.body import BodyLimits
from router.ingest.budget import BodyBudget
from router.ingest.dispatch import Dispatcher


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
