"""The rule by which a status is kept: who reads it from its shard holds a lease on its key, and whoever writes ends it.

The lease is taken before the shard is asked, and the value takes its place only while it is still there. A writer
deletes value or lease, whichever it finds, between its COMMIT and its answer. So a value that was read before a COMMIT
is never there once that was acknowledged; "only newer replaces older" alone lets it come back after an eviction.

A value's time is counted from its lease, by the store's clock: that was there before the value was read, and a command
that is held up on its way does not lengthen it.
"""

import contextlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

_LEASE: Final = b"?"
_VALUE: Final = b"="
_TIMELINE: Final = 8  # its digits


class Away(Exception):
    """The store does not answer, or not in time, or refuses."""


class Store(Protocol):
    """What Redis and Valkey do for it. Every method raises Away. `lease_s` is not more than `ttl_s`."""

    async def take(self, key: str, lease: bytes) -> bytes | None:
        """What is under the key. None: nothing was, and the lease is there now, for `lease_s`."""

    async def fill(self, key: str, lease: bytes, value: bytes) -> None:
        """Put the value in the place of this lease, until `ttl_s` after it; nothing when that is not there any more."""

    async def forget(self, keys: list[str]) -> None:
        """Nothing is under these keys now: neither a value nor a lease."""


class Outcome(StrEnum):
    """HIT: the value was there; MISS: the shard was asked; BYPASS: the same, because the store may not be asked."""

    HIT = "hit"
    MISS = "miss"
    BYPASS = "bypass"


@dataclass(frozen=True)
class Fresh:
    """What a shard said; `keep`: and that nobody can have written elsewhere before it did."""

    value: bytes
    keep: bool


@dataclass(frozen=True)
class Found:
    """A value, and where it was."""

    value: bytes
    outcome: Outcome


@dataclass(frozen=True)
class Form:
    """What a value means, and which server said so: else it is not used.

    `mark`: of a release, its fields, and a shard's server. `timeline`: the newest of it that this router knows: who
    still reads an old primary deceives nobody else.
    """

    mark: bytes
    timeline: int

    def seal(self, value: bytes) -> bytes:
        """The value as it is stored."""
        return b"%b%b%08x" % (_VALUE, self.mark, self.timeline) + value

    def open(self, held: bytes) -> bytes | None:
        """What was sealed; None when it is a lease, of another form, or of an older primary."""
        head = _VALUE + self.mark
        at = len(head) + _TIMELINE
        if not held.startswith(head) or int(held[len(head) : at], 16) < self.timeline:
            return None
        return held[at:]


async def read(store: Store, key: str, form: Form, ask: Callable[[], Awaitable[Fresh]]) -> Found:
    """The value under a key, or what `ask` says, which is kept for the next one. Raises what `ask` raises."""
    lease = _LEASE + secrets.token_bytes(12)
    try:
        held = await store.take(key, lease)
    except Away:
        return Found((await ask()).value, Outcome.BYPASS)
    if held is not None and (value := form.open(held)) is not None:
        return Found(value, Outcome.HIT)
    fresh = await ask()
    if held is None and fresh.keep:
        with contextlib.suppress(Away):
            await store.fill(key, lease, form.seal(fresh.value))
    return Found(fresh.value, Outcome.MISS)
