"""From the Authorization header to whoever sends a request."""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from router.access.caller import Caller, counters_of, forget_counters
from router.access.limits import TokenBucket
from router.metrics import REFUSED
from router.wire.problems import NOT_OPEN, NOT_READY, UNAUTHORIZED, ProblemError, retry_after
from shards.buckets import BucketRange
from shards.catalog.keys import Key, Keyring
from shards.errors import NoMap

CACHED_MAX: Final = 10_000
CACHED_BYTES_MAX: Final = 128
_BEARER: Final = b"bearer "
_OURS: Final = re.compile(rb"bearer +vr_", re.IGNORECASE)
_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="voltroute"'}
# One text for every key that lets nobody in: it tells nothing of which keys exist.
_REFUSED: Final = "a valid key is needed: Authorization: Bearer vr_..."

RawHeader = tuple[bytes, bytes]


class Access:
    """Knows the callers of one router. `ring` gives the keys as the catalog last said; they stay valid without it.

    `pinned`: tenants with buckets of their own, by the map in use. `open_without_keys`: whether a cluster without any
    key, now or ever, serves everybody who reaches this router.
    """

    def __init__(
        self,
        ring: Callable[[], Keyring],
        pinned: Callable[[], Mapping[int, BucketRange]],
        *,
        open_without_keys: bool,
    ) -> None:
        self._ring = ring
        self._pinned = pinned
        self._open_without_keys = open_without_keys
        self._known: Keyring | None = None
        self._callers: dict[bytes, Caller] = {}  # by raw header: a digest for each request would cost 4 us
        self._limits: dict[tuple[str, float], TokenBucket] = {}  # (key or tenant, rate)
        self._everybody = Caller()

    def admit(self, headers: Iterable[RawHeader]) -> Caller:
        """Who sends a request with these headers. 401 without a valid key, where any was made, and for one not known.

        503 before keys are known, and while there is none and this router may not serve everybody.
        """
        try:
            ring = self._ring()
        except NoMap as error:
            raise ProblemError(NOT_READY, str(error), headers=retry_after(1)) from None
        if ring is not self._known:
            self._adopt(ring)
        if not ring.closed:
            return self._admit_anybody(headers)
        for name, value in headers:
            if name == b"authorization":
                caller = self._callers.get(value) or self._identify(ring, value)
                if caller is None:
                    break
                if caller.expires_at is not None and caller.expires_at <= time.time():
                    self._forget(caller)
                    break
                if caller.pinned is not None:
                    self._check_map(caller)
                return caller
        raise _unauthorized()

    def _admit_anybody(self, headers: Iterable[RawHeader]) -> Caller:
        if not self._open_without_keys:
            detail = (
                "the cluster has no keys, and this router listens on more than loopback: make one with "
                "`voltroute key create`, or start it with --insecure"
            )
            raise ProblemError(NOT_OPEN, detail, headers=retry_after(5))
        # A key that was made a moment ago: what comes with it is not the default tenant's, as whom everybody is served.
        if any(name == b"authorization" and _OURS.match(value) for name, value in headers):
            raise _unauthorized()
        return self._everybody

    def _check_map(self, caller: Caller) -> None:
        """Keys and map are read one after the other: by an older map its readings would go to buckets of others."""
        try:
            known = self._pinned().get(caller.tenant)
        except NoMap:
            known = None
        if known != caller.pinned:
            raise ProblemError(NOT_READY, "the map of this tenant's buckets was not read yet", headers=retry_after(1))

    def _forget(self, caller: Caller) -> None:
        """A key that has expired has no series any more."""
        key = self._known.keys.get(caller.key_id or "") if self._known else None
        if key is not None:
            forget_counters(key.tenant, key.key_id)

    def _identify(self, ring: Keyring, header: bytes) -> Caller | None:
        if header[: len(_BEARER)].lower() != _BEARER:
            return None
        key = ring.find(header[len(_BEARER) :].strip())
        if key is None:
            return None
        caller = self._caller(key)
        if len(header) <= CACHED_BYTES_MAX:  # a key may be written with any number of spaces before it
            if len(self._callers) >= CACHED_MAX:
                self._callers.clear()
            self._callers[header] = caller
        return caller

    def _caller(self, key: Key) -> Caller:
        limits = (self._limit(f"key {key.key_id}", key.rate), self._limit(f"tenant {key.tenant_id}", key.tenant_rate))
        return Caller(
            key.key_id,
            key.tenant_id,
            key.scopes,
            key.prefix,
            key.expires_at,
            tuple(limit for limit in limits if limit is not None),
            counters_of(key.tenant, key.key_id),
            key.pinned,
        )

    def _limit(self, whose: str, rate: float | None) -> TokenBucket | None:
        return None if rate is None else self._limits.setdefault((whose, rate), TokenBucket(rate))

    def _adopt(self, ring: Keyring) -> None:
        """Forget callers whose keys may have changed. Limits that are as they were keep their debt."""
        gone = self._known.keys.keys() - ring.keys.keys() if self._known else ()
        for key_id in gone:
            forget_counters(self._known.keys[key_id].tenant, key_id)  # type: ignore[union-attr]
        self._known = ring
        self._callers.clear()
        asked = {(f"key {key.key_id}", key.rate) for key in ring.keys.values()}
        asked |= {(f"tenant {key.tenant_id}", key.tenant_rate) for key in ring.keys.values()}
        self._limits = {name: bucket for name, bucket in self._limits.items() if name in asked}


def _unauthorized() -> ProblemError:
    REFUSED.labels("unauthorized").inc()
    return ProblemError(UNAUTHORIZED, _REFUSED, headers=_CHALLENGE)
