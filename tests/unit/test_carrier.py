"""The throttle of copies: never faster than it may, and out of the way while readings wait."""

import asyncio

import pytest

from shards.carrier import SHARE_WHEN_BUSY, Throttle


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the throttle slept, instead of sleeping."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return found


async def test_an_idle_cluster_is_copied_at_full_speed(slept: list[float]) -> None:
    throttle = Throttle()
    for _ in range(100):
        await throttle.passed(2**20)
    assert slept == []


async def test_a_rate_is_kept(slept: list[float]) -> None:
    throttle = Throttle(bytes_per_s_max=1_000_000)
    await throttle.passed(500_000)
    assert len(slept) == 1
    assert 0.3 < slept[0] <= 0.5
    await throttle.passed(100_000_000)
    assert slept[1] == 1.0  # at most a second at once, so that a cancelled move does not wait


async def test_copies_make_room_for_readings(slept: list[float]) -> None:
    waiting = True
    throttle = Throttle(busy=lambda: waiting)
    throttle._last -= 0.01
    await throttle.passed(1_000)
    assert slept[0] >= 0.01 * (1 / SHARE_WHEN_BUSY - 1)
    waiting = False
    await throttle.passed(1_000)
    assert len(slept) == 1
