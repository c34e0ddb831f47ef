"""Statuses that are kept: the rule against every order of readers, writers, losses, evictions and moves."""

import random
from collections.abc import Awaitable, Callable, Iterable
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.statuses.lease import Form, Found, Fresh, Outcome, read
from router.statuses.owed import MARGIN_S, Owed
from tests.support.leases import FORM, KEYS, PROMOTED, TTL_S, Wired, World, run


def run_all(seeds: Iterable[int], store: type[Wired] = Wired) -> int:
    """All of them; says which seed failed."""
    hits = 0
    for seed in seeds:
        try:
            hits += run(seed, store)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from None
    return hits


def test_a_status_is_never_older_than_what_was_acknowledged() -> None:
    assert run_all(range(20_000)) > 2_000


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_million_orders() -> None:
    assert run_all(range(1_000_000)) > 100_000


class Unheld(Wired):
    """As if there were no leases: a value that was read long ago is put there all the same."""

    async def fill(self, key: str, lease: bytes, value: bytes) -> None:
        await self._travel()
        self.world.kept[key] = value, self.world.now + TTL_S


class Timeless(Wired):
    """As if a value did not say of which primary it is."""

    async def fill(self, key: str, lease: bytes, value: bytes) -> None:
        await super().fill(key, lease, PROMOTED.seal(FORM.open(value) or b""))


class NewerOnly(Wired):
    """The rule that others use: only what is newer takes a value's place. An eviction forgets what was newer."""

    async def fill(self, key: str, lease: bytes, value: bytes) -> None:
        await self._travel()
        held = FORM.open(self.world.value(key) or b"")
        if held is None or int(held) < int(FORM.open(value) or b"0"):
            self.world.kept[key] = value, self.world.now + TTL_S


class Lasting(Wired):
    """A value's time begins when it is put there, and not before it was read."""

    async def fill(self, key: str, lease: bytes, value: bytes) -> None:
        await self._travel()
        if self.world.value(key) == lease:
            self.world.kept[key] = value, self.world.now + TTL_S


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "wrong", [Unheld, Timeless, NewerOnly, pytest.param(Lasting, marks=pytest.mark.long)]
)  # in one of 100,000
def test_the_model_finds_what_is_wrong(wrong: type[Wired]) -> None:
    with pytest.raises(AssertionError, match="seed"):
        run_all(range(1_000_000), wrong)


def drive(world: World, key: str, ask: Callable[[], Awaitable[Fresh]]) -> Found:
    """One read with nobody beside it."""
    work = read(Wired(world), key, FORM, ask)
    while True:
        try:
            work.send(None)
        except StopIteration as ended:
            return cast("Found", ended.value)


def outcome(world: World, key: str, fresh: Fresh) -> Outcome:
    """Of one read that is told this."""

    async def ask() -> Fresh:
        return fresh

    found = drive(world, key, ask)
    assert found.value == fresh.value
    return found.outcome


def test_what_may_be_kept_is(world: World) -> None:
    key, other = KEYS
    assert outcome(world, key, Fresh(b"1", keep=True)) is Outcome.MISS
    assert outcome(world, key, Fresh(b"1", keep=True)) is Outcome.HIT
    assert outcome(world, other, Fresh(b"2", keep=False)) is Outcome.MISS
    assert outcome(world, other, Fresh(b"2", keep=True)) is Outcome.MISS  # the lease of the one before
    world.now += 5
    assert outcome(world, other, Fresh(b"2", keep=True)) is Outcome.MISS
    assert outcome(world, other, Fresh(b"2", keep=True)) is Outcome.HIT
    world.now += 5
    assert outcome(world, key, Fresh(b"3", keep=True)) is Outcome.MISS


def test_of_another_form_it_is_not_used(world: World) -> None:
    for other in (Form(b"g", 1), Form(b"f", 0)):
        world.kept[KEYS[0]] = other.seal(b"1"), 100.0
        assert outcome(world, KEYS[0], Fresh(b"1", keep=True)) is Outcome.MISS
        assert world.value(KEYS[0]) == other.seal(b"1")
    world.kept[KEYS[0]] = Form(b"f", 2).seal(b"1"), 100.0  # of a newer primary than this one knows
    assert outcome(world, KEYS[0], Fresh(b"1", keep=True)) is Outcome.HIT


def test_a_value_lasts_from_its_lease_on(world: World) -> None:
    async def ask() -> Fresh:
        world.now += 4
        return Fresh(b"1", keep=True)

    assert drive(world, KEYS[0], ask) == Found(b"1", Outcome.MISS)
    world.now += TTL_S - 4.1
    assert drive(world, KEYS[0], ask) == Found(b"1", Outcome.HIT)
    world.now += 0.2
    assert drive(world, KEYS[0], ask) == Found(b"1", Outcome.MISS)


@pytest.fixture
def world() -> World:
    return World(random.Random(1), has_losses=False)


@given(
    st.lists(st.tuples(st.sets(st.sampled_from("abcdef"), min_size=1), st.floats(0, 4), st.booleans()), max_size=30),
    st.integers(1, 6),
)
def test_what_is_owed_is_known_until_it_is_paid_or_gone(writes: list[tuple[set[str], float, bool]], most: int) -> None:
    """Nothing that may be too old is taken for good, however few are remembered."""
    owed, now = Owed(10, most), 0.0
    due: dict[str, float] = {}
    for keys, pause, pays in writes:
        now += pause
        owed.add(sorted(keys), now)
        due |= dict.fromkeys(keys, now + 10 + MARGIN_S)
        assert len(owed) <= most
        if pays:
            some = owed.some(3, now)
            assert set(some) <= {key for key, until in due.items() if until > now}
            owed.paid(some)
            for key in some:
                del due[key]
        assert all(owed.holds(key, now) for key, until in due.items() if now < until)
    assert not any(owed.holds(key, now + 10 + MARGIN_S) for key in "abcdef")


def test_what_was_written_again_meanwhile_is_still_owed() -> None:
    owed = Owed(10, 100)
    owed.add("ab", 0)
    some = owed.some(10, 1)
    owed.add("a", 2)
    owed.paid(some)
    assert owed.holds("a", 3)
    assert not owed.holds("b", 3)
    assert owed.some(10, 20) == {}
    assert len(owed) == 0
