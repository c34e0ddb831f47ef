"""Remembered heads: found by their bytes alone, and only for a request that is whole."""

from router.http.heads import Head, Heads

LINES = b"POST /v1/ingest/meter HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
HEAD = LINES + b"\r\n"


def head(length: int = 2, **named: bytes) -> Head:
    return Head(
        "/v1/ingest/meter", [], {name.replace("_", "-").encode(): value for name, value in named.items()}, length
    )


def test_the_next_request_of_the_same_bytes_is_known() -> None:
    heads, first = Heads(), head()
    assert heads.find(HEAD + b"{}") is None
    heads.remember(HEAD + b"{}", first)
    assert heads.find(HEAD + b"[]") == (first, b"[]")


def test_what_is_not_whole_or_is_more_is_for_the_parser() -> None:
    heads = Heads()
    heads.remember(HEAD + b"{}", head())
    for data in (HEAD, HEAD + b"{", HEAD + b"{}P", HEAD + b"{}" + HEAD + b"{}", LINES, b"", b"\r\n\r\n{}"):
        assert heads.find(data) is None, data
    assert heads.find(HEAD.replace(b"meter", b"metre") + b"{}") is None


def test_only_heads_that_come_again_are_remembered() -> None:
    heads = Heads()
    heads.remember(HEAD + b"{}", head(x_request_id=b"mine"))  # another one with every request
    heads.remember(HEAD + b"{} ", head())  # something follows it
    long = LINES + b"X: " + b"x" * 1_024 + b"\r\n\r\n"
    heads.remember(long + b"{}", head())
    assert len(heads) == 0


def test_memory_is_bounded_and_the_oldest_goes() -> None:
    heads = Heads()
    for number in range(5_000):
        heads.remember(b"POST /%d\r\n\r\n{}" % number, head())
    assert len(heads) == 4_096
    assert heads.find(b"POST /0\r\n\r\n{}") is None
    assert heads.find(b"POST /4999\r\n\r\n{}") is not None
