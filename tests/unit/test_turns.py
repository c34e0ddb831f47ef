"""Places are given in turns, and none is ever lost or given twice."""

import asyncio
import random

from shards.postgres.turns import Turns


async def test_one_of_each_after_the_other() -> None:
    turns, order = Turns(1), []

    async def work(whose: int | None, name: str) -> None:
        await turns.take(whose)
        order.append(name)
        await asyncio.sleep(0)
        turns.give()

    assert turns.take_free()
    assert not turns.take_free()
    names = [(1, f"a{number}") for number in range(4)] + [(2, "b0"), (2, "b1"), (None, "c0")]
    tasks = []
    for whose, name in names:
        tasks.append(asyncio.create_task(work(whose, name)))
        await asyncio.sleep(0)  # each waits before the next one comes
    turns.give()
    await asyncio.gather(*tasks)
    assert order == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]
    assert turns.take_free()


async def test_who_gives_up_leaves_no_place_behind() -> None:
    turns = Turns(1)
    assert turns.take_free()
    waiting = [asyncio.create_task(turns.take(whose)) for whose in (1, 1, 2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    turns.give()  # the first one is passed over
    await asyncio.gather(*waiting[:2], return_exceptions=True)
    assert [task.cancelled() for task in waiting[:2]] == [True, False]
    turns.give()
    waiting[2].cancel()  # after it was let in, before it ran
    await asyncio.gather(waiting[2], return_exceptions=True)
    assert waiting[2].cancelled()
    assert turns.take_free()
    assert not turns.take_free()


async def test_never_more_than_there_are_places_whoever_gives_up() -> None:
    turns, chance, inside, most = Turns(3), random.Random(7), 0, 0

    async def work(whose: int) -> None:
        nonlocal inside, most
        await turns.take(whose)
        try:
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
        finally:
            inside -= 1
            turns.give()

    tasks = [asyncio.create_task(work(chance.randrange(4))) for _ in range(500)]
    while not all(task.done() for task in tasks):
        chance.choice(tasks).cancel()
        await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 3
    assert [turns.take_free() for _ in range(4)] == [True, True, True, False]
