"""Who sends a request: a tenant, and what its key lets it do."""

import contextlib
from dataclasses import dataclass
from typing import Final

from prometheus_client import Counter

from router.access.limits import TokenBucket
from router.metrics import KEY_READINGS, REFUSED
from router.wire.problems import FORBIDDEN, RATE_LIMITED, ProblemError, retry_after
from shards.buckets import BucketRange
from shards.catalog.keys import Right
from shards.catalog.tenants import DEFAULT

ALL_RIGHTS: Final = frozenset(right.value for right in Right)


@dataclass(slots=True, eq=False)
class Caller:
    """`prefix`: device IDs must begin so. `limits`: what readings are charged to.

    `key_id` is None where no key is asked for.
    """

    key_id: str | None = None
    tenant: int = DEFAULT
    rights: frozenset[str] = ALL_RIGHTS
    prefix: str | None = None
    expires_at: float | None = None
    limits: tuple[TokenBucket, ...] = ()
    counters: tuple[Counter, Counter] | None = None
    pinned: BucketRange | None = None

    def require(self, right: str) -> None:
        """A 403 problem unless the key has this scope."""
        if right not in self.rights:
            REFUSED.labels("forbidden").inc()
            given = ", ".join(sorted(self.rights))
            raise ProblemError(FORBIDDEN, f"the key's scopes are {given}; this needs {right}")

    def require_devices(self, *device_ids: str) -> None:
        """A 403 problem unless the key is for these devices; without any: for all of its tenant."""
        if self.prefix is None:
            return
        if not device_ids:
            detail = f"the key is for devices that begin with {self.prefix} alone; this needs one for all devices"
            raise ProblemError(FORBIDDEN, detail)
        for device_id in device_ids:
            if not device_id.startswith(self.prefix):
                detail = f"the key is for devices that begin with {self.prefix} alone, not for {device_id or 'all'}"
                raise ProblemError(FORBIDDEN, detail)

    def check_limits(self, now: float) -> None:
        """A 429 problem while a limit is overdrawn: before a body is read."""
        for bucket in self.limits:
            if (wait := bucket.debt_s(now)) > 0:
                REFUSED.labels("limited").inc()
                detail = f"more than {bucket.rate:g} readings a second came from this key, or from its tenant"
                raise ProblemError(RATE_LIMITED, detail, headers=retry_after(wait))

    def charge(self, readings: int, now: float) -> None:
        """Readings that a request held, whatever becomes of them; a body that cannot be read counts as one."""
        for bucket in self.limits:
            bucket.charge(readings, now)

    def count(self, stored: int, refused: int) -> None:
        """Readings of one request: those that are stored now, and those that are not."""
        if self.counters is not None:
            self.counters[0].inc(stored)
            if refused:
                self.counters[1].inc(refused)


def counters_of(tenant: str, key_id: str) -> tuple[Counter, Counter]:
    """Counters of a key's readings: stored, refused."""
    return KEY_READINGS.labels(tenant, key_id, "stored"), KEY_READINGS.labels(tenant, key_id, "refused")


def forget_counters(tenant: str, key_id: str) -> None:
    """A key that is not valid any more has no series."""
    for outcome in ("stored", "refused"):
        with contextlib.suppress(KeyError):
            KEY_READINGS.remove(tenant, key_id, outcome)
