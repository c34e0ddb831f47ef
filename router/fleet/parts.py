"""Fetching what a router gives in parts, each again when it fails in a way that passes."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import httpx2
import stamina

from router.fleet.client import ATTEMPTS_MAX, PATIENCE_S, RouterClient, is_passing, refusal


@dataclass(frozen=True)
class Fetched:
    """The lines of a part, and the path of what follows: None at the end."""

    lines: bytes
    next: str | None


class _Passing(ConnectionError):
    """The router is overloaded, or a shard is away."""


_RETRIED: Final = (_Passing, httpx2.TransportError)


async def parts(client: RouterClient, path: str) -> AsyncIterator[Fetched]:
    """From `path` on. RouterRefused when the router will never give it; the driver's error when it stays away."""
    following: str | None = path
    while following is not None:
        answer = await _fetch(client, following)
        link = answer.links.get("next", {}).get("url")
        following = None if link is None else _path_of(link)
        yield Fetched(answer.content, following)


def _path_of(link: str) -> str:
    parts_of = urlsplit(link)
    return f"{parts_of.path}?{parts_of.query}"


async def _fetch(client: RouterClient, path: str) -> httpx2.Response:
    async for attempt in stamina.retry_context(
        on=_RETRIED, attempts=ATTEMPTS_MAX, timeout=PATIENCE_S, wait_initial=0.1, wait_max=2.0
    ):
        with attempt:
            answer = await client.get(path)
            if is_passing(answer):
                raise _Passing(str(refusal(answer)))
    if answer.status_code != 200:
        raise refusal(answer)
    return answer
