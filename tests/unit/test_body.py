"""Compressed bodies: linear in what came in, whatever they are made of."""

import gzip
import zlib

import pytest

from router.ingest.body import GZIP_MEMBERS_MAX, decompress
from router.ingest.decode import decode
from router.wire.problems import CONTENT_TOO_LARGE, MALFORMED_BODY, ProblemError
from tests.support.shapes import METER_SHAPE

GZIP = {b"content-encoding": b"gzip"}
LIMIT = 2**20


@pytest.mark.parametrize("size", [0, 1, 1000, 100_000])
def test_members_follow_one_another(size: int) -> None:
    parts = [bytes([65 + n]) * size for n in range(5)]
    body = b"".join(gzip.compress(part) for part in parts)
    assert decompress(body, GZIP, LIMIT) == b"".join(parts)


def test_too_many_members_are_refused_before_they_are_all_read() -> None:
    one = gzip.compress(b"")
    assert decompress(one * GZIP_MEMBERS_MAX, GZIP, LIMIT) == b""
    with pytest.raises(ProblemError) as refused:
        decompress(one * (GZIP_MEMBERS_MAX + 1), GZIP, LIMIT)
    assert refused.value.problem is CONTENT_TOO_LARGE


def test_what_is_cut_or_broken_is_malformed() -> None:
    whole = gzip.compress(bytes(range(256)) * 100)
    for body in (whole[:-5], whole + b"\x1f\x8b", whole[:50], b"plain", whole + zlib.compress(b"x")):
        with pytest.raises(ProblemError) as refused:
            decompress(body, GZIP, LIMIT)
        assert refused.value.problem is MALFORMED_BODY


def test_a_bomb_stops_at_the_limit() -> None:
    with pytest.raises(ProblemError) as refused:
        decompress(gzip.compress(bytes(10 * LIMIT)), GZIP, LIMIT)
    assert refused.value.problem is CONTENT_TOO_LARGE


def test_many_values_are_refused_and_many_fields_of_few_readings_are_told() -> None:
    for body, ndjson in ((b"[" + b"0," * 2_000 + b"0]", False), (b"\n" * 2_000, True)):
        with pytest.raises(ProblemError) as refused:
            decode(body, METER_SHAPE, ndjson=ndjson, readings_max=100)
        assert refused.value.problem is CONTENT_TOO_LARGE
    wide = b"{" + b",".join(b'"f%d":1' % n for n in range(100)) + b"}"
    assert len(decode(wide, METER_SHAPE, ndjson=False, readings_max=100).errors) == 1
