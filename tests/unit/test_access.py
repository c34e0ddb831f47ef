"""Limits, and the way from a header to a caller; the time and the keys are the test's."""

import hashlib
import secrets
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.access.keys import CACHED_BYTES_MAX, Access
from router.access.limits import BURST_S, DEBT_S, TokenBucket
from router.wire.problems import ProblemError
from shards.buckets import BucketRange
from shards.catalog.keys import Key, Keyring, new_text
from shards.errors import NoMap

OWN = BucketRange(64, 8)


def key_of(text: str, **more: object) -> Key:
    values = {"rate": None, "tenant_rate": None, "expires_at": None, "pinned": None, **more}
    digest = hashlib.sha256(text.encode()).digest()
    return Key(
        text[3:11],
        1,
        "acme",
        frozenset({"read"}),
        None,
        values["rate"],  # type: ignore[arg-type]
        values["tenant_rate"],  # type: ignore[arg-type]
        values["expires_at"],  # type: ignore[arg-type]
        digest,
        values["pinned"],  # type: ignore[arg-type]
    )


def access_of(*keys: Key, pinned: object = None, epoch: int = 1) -> Access:
    ring = Keyring(epoch, bool(keys), {key.key_id: key for key in keys})
    return Access(lambda: ring, lambda: pinned or {}, open_without_keys=True)  # type: ignore[arg-type, return-value]


def bearer(text: str, spaces: int = 1) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"h"), (b"authorization", b"Bearer" + b" " * spaces + text.encode())]


@given(rate=st.floats(0.01, 1e6), charges=st.lists(st.tuples(st.floats(0, 100), st.integers(0, 10_000)), max_size=30))
def test_a_bucket_lets_through_what_its_rate_allows_and_never_waits_long(
    rate: float, charges: list[tuple[float, int]]
) -> None:
    bucket, now, passed = TokenBucket(rate), 1_000.0, 0
    for pause, tokens in charges:
        now += pause
        wait = bucket.debt_s(now)
        assert 0 <= wait <= DEBT_S + 1 / rate + 1e-6
        if not wait:
            passed += tokens
            bucket.charge(tokens, now)
            assert passed <= rate * (now - 1_000 + BURST_S) + 10_000 * len(charges)
    assert bucket.debt_s(now + DEBT_S + 2 / rate) == 0


def test_a_bucket_that_is_not_overdrawn_lets_any_size_through_once() -> None:
    bucket = TokenBucket(2.0)
    assert bucket.debt_s(10) == 0
    bucket.charge(25, 10)  # 20 are there
    assert bucket.debt_s(10) == pytest.approx(3.0)
    assert bucket.debt_s(12) == pytest.approx(1.0)
    assert bucket.debt_s(13.1) == 0


def test_by_a_map_without_its_buckets_a_pinned_tenant_waits() -> None:
    """By an older map than its key it would be hashed to buckets of others, where nobody looks for it."""
    text = new_text()
    assert access_of(key_of(text, pinned=OWN), pinned={1: OWN}).admit(bearer(text)).tenant == 1
    for known in ({}, {2: OWN}, {1: BucketRange(72, 8)}):
        with pytest.raises(ProblemError) as refused:
            access_of(key_of(text, pinned=OWN), pinned=known).admit(bearer(text))
        assert refused.value.problem.status == 503

    def no_map() -> dict[int, BucketRange]:
        raise NoMap

    ring = Keyring(1, True, {text[3:11]: key_of(text, pinned=OWN)})
    with pytest.raises(ProblemError, match="not read yet"):
        Access(lambda: ring, no_map, open_without_keys=False).admit(bearer(text))


def test_only_short_headers_are_remembered() -> None:
    text = new_text()
    access = access_of(key_of(text))
    caller = access.admit(bearer(text))
    assert access.admit(bearer(text)) is caller
    for spaces in range(100, 200):
        assert access.admit(bearer(text, spaces)).key_id == caller.key_id
    assert len(access._callers) == 1
    assert all(len(header) <= CACHED_BYTES_MAX for header in access._callers)


def test_an_expired_key_is_refused_also_when_it_is_remembered() -> None:
    text = new_text()
    access = access_of(key_of(text, expires_at=time.time() + 60))
    access.admit(bearer(text)).expires_at = time.time()
    with pytest.raises(ProblemError, match="valid key"):
        access.admit(bearer(text))


def test_neither_keys_nor_passwords_are_in_a_traceback() -> None:
    """Of a terminal too, whose tracebacks would otherwise show local variables."""
    key, password = new_text(), secrets.token_urlsafe(16)
    code = """
import sys, structlog
from router import log
log.configure("info", console=sys.argv[1] == "console")
def fail(key, dsn):
    headers = {"authorization": key}
    raise ValueError(f"{key} and {dsn}")
try:
    fail(sys.argv[2], sys.argv[3])
except ValueError:
    structlog.stdlib.get_logger("t").exception("failed", key=sys.argv[2])
"""
    dsn = f"postgresql://u:{password}@h/d"
    for form in ("console", "json"):
        done = subprocess.run(
            [sys.executable, "-c", code, form, key, dsn], capture_output=True, text=True, check=True, timeout=60
        )
        assert "ValueError" in done.stderr
        assert key[:12] + "***" in done.stderr
        assert key[12:] not in done.stderr
        assert password not in done.stderr
