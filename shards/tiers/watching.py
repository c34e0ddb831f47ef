"""Telling of every place in the steps of the lifecycle: for tests that end the process there."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

Watch: TypeAlias = Callable[[str], Awaitable[None]]


async def watch_nothing(_place: str) -> None:
    """Nobody wants to know."""
