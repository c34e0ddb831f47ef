"""Doing several things at once, of which the first that fails ends the others, and is what the caller hears of."""

import asyncio
from collections.abc import Awaitable, Iterable


async def together(works: Iterable[Awaitable[object]]) -> None:
    """All of them; the error of the first that fails, as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(_of(work))
    except BaseExceptionGroup as group_of_errors:
        raise _first(group_of_errors) from None


async def _of(work: Awaitable[object]) -> None:
    await work


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
