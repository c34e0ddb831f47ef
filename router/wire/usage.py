"""Answers about what a tenant stores."""

from datetime import datetime

import msgspec

from router.wire.answers import Answer, Count, Dated, Shards, Tiers


class UsageOfDay(Answer, frozen=True):
    """One kind's readings of a day (from, to] of UTC; `bytes` is an estimate, by what a reading takes on average."""

    from_: datetime = msgspec.field(name="from")
    to: datetime
    kind: str
    readings: Count
    devices: Count
    bytes: Count


class Usage(Dated, frozen=True):
    """What is stored of a time, by day and kind; days without readings are left out."""

    items: list[UsageOfDay]
    tiers: Tiers
    is_partial: bool
    shards: Shards
