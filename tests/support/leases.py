"""A model of routers that keep statuses: the real rule over a wire, a store and shards that are made up, by a seed."""

import random
from collections.abc import Coroutine, Generator, Iterable
from dataclasses import dataclass, field
from types import coroutine
from typing import Any, Final

from router.statuses.lease import Away, Form, Fresh, Outcome, read
from router.statuses.owed import Owed

TTL_S: Final = 10.0
LEASE_S: Final = 5.0
FORM: Final = Form(b"f", 1)
PROMOTED: Final = Form(b"f", 2)  # of who has met the new primary
KEYS: Final = ("1:meter:D", "2:meter:D")  # of two tenants
LOST: Final = 0.12  # of the messages, in a world whose wire is bad
PAUSES_S: Final = (0.0, 0.0, 0.1, 3.0, 8.0)


@coroutine
def turn() -> Generator[None, None, None]:
    """Others may come before what is next."""
    yield


@dataclass
class Wrote:
    """A version that was acknowledged. `reached`: its deletion was, too."""

    version: int
    at: float
    reached: bool


@dataclass
class World:
    """What there is of each key: in the shards, in the store, and acknowledged."""

    chance: random.Random
    has_losses: bool
    now: float = 0.0
    stored: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KEYS, 0))
    fenced: dict[str, int] = field(default_factory=dict)  # key -> its version in the copy that was left behind
    promoted: dict[str, int] | None = None  # the versions in the old primary, which one router still reads
    kept: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    acknowledged: dict[str, list[Wrote]] = field(default_factory=lambda: {key: [] for key in KEYS})
    hits: int = 0

    def value(self, key: str) -> bytes | None:
        value, until = self.kept.get(key, (b"", 0.0))
        return value if until > self.now else None

    def arrives(self) -> None:
        if self.has_losses and self.chance.random() < LOST:
            raise Away


class Wired:
    """The store of one router: its commands travel, and may be lost on their way there or back."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def take(self, key: str, lease: bytes) -> bytes | None:
        await self._travel()
        held = self.world.value(key)
        if held is None:
            self.world.kept[key] = lease, self.world.now + LEASE_S
        await self._travel()
        return held

    async def fill(self, key: str, lease: bytes, value: bytes) -> None:
        await self._travel()
        if self.world.value(key) == lease:
            self.world.kept[key] = value, self.world.kept[key][1] + TTL_S - LEASE_S
        await self._travel()

    async def forget(self, keys: Iterable[str]) -> None:
        await self._travel()
        for key in keys:
            self.world.kept.pop(key, None)
        await self._travel()

    async def _travel(self) -> None:
        await turn()
        self.world.arrives()


class Modelled:
    """A router: its store, and what it owes. One that is `behind` asks the shard that had the bucket before.

    One that is `apart` does not hear of a new primary, and goes on reading the old one.
    """

    def __init__(self, world: World, store: Wired, *, behind: bool, apart: bool) -> None:
        self.world = world
        self.store = store
        self.behind = behind
        self.apart = apart
        self.owed = Owed(TTL_S, 1)

    async def write(self, key: str) -> None:
        world = self.world
        await turn()
        if self.apart and world.promoted is not None:
            return  # nobody gets an answer from it
        world.stored[key] += 1
        version, at = world.stored[key], world.now
        await turn()
        reached = True
        try:
            await self.store.forget([key])
        except Away:
            reached = False
            self.owed.add([key], world.now)
        world.acknowledged[key].append(Wrote(version, at, reached))

    async def pay(self) -> None:
        while some := self.owed.some(1, self.world.now):
            try:
                await self.store.forget(some)
            except Away:
                return
            self.owed.paid(some)

    async def read(self, key: str) -> None:
        world, began = self.world, self.world.now
        before = list(world.acknowledged[key])
        if self.owed.holds(key, world.now):
            value, hit = (await self._ask(key)).value, False
        else:
            form = FORM if self.apart or world.promoted is None else PROMOTED
            found = await read(self.store, key, form, lambda: self._ask(key))
            value, hit = found.value, found.outcome is Outcome.HIT
        world.hits += hit
        # A router with an old map may be told something older by the old copy; what is kept must not be.
        if self.apart and world.promoted is not None:
            return
        if hit or not (self.behind and key in world.fenced):
            missed = [wrote for wrote in before if wrote.version > int(value)]
            assert all(not wrote.reached and began - wrote.at <= TTL_S for wrote in missed), (key, value, missed, began)

    async def _ask(self, key: str) -> Fresh:
        await turn()
        if self.apart and self.world.promoted is not None:
            return Fresh(b"%d" % self.world.promoted[key], keep=True)
        is_old = self.behind and key in self.world.fenced
        version = self.world.fenced[key] if is_old else self.world.stored[key]
        await turn()
        return Fresh(b"%d" % version, keep=not is_old)


def run(seed: int, store: type[Wired] = Wired) -> int:
    """One order of everything, by its seed; returns how many reads found a value in the store."""
    chance = random.Random(seed)
    world = World(chance, has_losses=chance.random() < 0.5)
    routers = [Modelled(world, store(world), behind=number == 2, apart=number == 1) for number in range(3)]
    doing: list[Coroutine[Any, Any, None]] = []
    for _ in range(chance.randint(3, 8)):
        router, key = chance.choice(routers), chance.choice(KEYS)
        doing.append(chance.choice((router.read, router.read, router.write))(key))
    waiting = [work for work in doing if chance.random() < 0.4]  # these begin when others have ended
    active = [work for work in doing if work not in waiting]
    try:
        while active or waiting:
            if waiting and (not active or chance.random() < 0.15):
                active.append(waiting.pop(0))
            work = chance.choice(active)
            try:
                work.send(None)
            except StopIteration:
                active.remove(work)
            _happen(world, chance, routers, active)
    finally:
        for work in (*active, *waiting):
            work.close()
    return world.hits


def _happen(
    world: World, chance: random.Random, routers: list[Modelled], active: list[Coroutine[Any, Any, None]]
) -> None:
    """Now and then time passes, a value is evicted, a bucket is handed over, or debts are paid."""
    what = chance.random()
    if what < 0.15:
        world.now += chance.choice(PAUSES_S)
    elif what < 0.2:
        world.kept.pop(chance.choice(KEYS), None)
    elif what < 0.25:
        key = chance.choice(KEYS)
        world.fenced.setdefault(key, world.stored[key])
    elif what < 0.26 and world.promoted is None:
        world.promoted = dict(world.stored)
    elif what < 0.3:
        router = chance.choice(routers)
        if len(router.owed):
            active.append(router.pay())
