"""The throttle of copies: never faster than it may, and out of the way while readings wait."""

from shards.moves.throttle import SHARE_WHEN_BUSY, Throttle


class Sleeps(list[float]):
    """What a throttle would sleep."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


async def test_an_idle_cluster_is_copied_at_full_speed() -> None:
    slept = Sleeps()
    throttle = Throttle(sleep=slept)
    for _ in range(100):
        await throttle.passed(2**20)
    assert slept == []


async def test_a_rate_is_kept() -> None:
    slept = Sleeps()
    throttle = Throttle(bytes_per_s_max=1_000_000, sleep=slept)
    await throttle.passed(100_000_000)
    await throttle.passed(1)
    assert slept == [1.0, 1.0]  # at most a second at once, so that a cancelled move does not wait
    throttle = Throttle(bytes_per_s_max=10**15, sleep=slept)
    await throttle.passed(1)
    assert len(slept) == 2


async def test_copies_make_room_for_readings() -> None:
    slept, waiting = Sleeps(), True
    throttle = Throttle(busy=lambda: waiting, sleep=slept)
    throttle._last -= 0.01
    await throttle.passed(1_000)
    assert slept[0] >= 0.01 * (1 / SHARE_WHEN_BUSY - 1)
    waiting = False
    await throttle.passed(1_000)
    assert len(slept) == 1
