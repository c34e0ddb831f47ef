"""Where buckets should lie, and which moves bring them there. Pure: no I/O, no clock."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from shards.errors import InvalidArgument, Refused

THRESHOLD_DEFAULT: Final = 0.1
Pins: TypeAlias = Mapping[int, Collection[str]]  # bucket -> the shards that alone may have it


def spread(bucket_count: int, shards: Sequence[str]) -> tuple[str, ...]:
    """Owners of a new cluster's buckets: dealt out in turn, so that no shard has two more than another.

    InvalidArgument when there is no shard, or more shards than buckets.
    """
    if not 1 <= len(shards) <= bucket_count:
        message = f"{bucket_count} buckets cannot be spread over {len(shards)} shards"
        raise InvalidArgument(message)
    return tuple(shards[bucket % len(shards)] for bucket in range(bucket_count))


@dataclass(frozen=True)
class Place:
    """A shard as the planner sees it: how much it should hold beside the others, and whether it is to be emptied."""

    name: str
    weight: float = 1.0
    draining: bool = False


@dataclass(frozen=True)
class Load:
    """What a bucket holds and takes: rows and bytes by PostgreSQL's estimate, readings a second when measured."""

    rows: int = 0
    size_bytes: int = 0
    rate: float = 0.0


@dataclass(frozen=True)
class PlannedMove:
    """One bucket from a shard to another."""

    bucket: int
    source: str
    target: str


@dataclass(frozen=True)
class Plan:
    """Moves, and the owners before and after them. `imbalance`: how far the fullest shard is above its share."""

    moves: tuple[PlannedMove, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    imbalance_before: float
    imbalance_after: float


def costs_of(loads: Sequence[Load], by: str) -> list[float]:
    """What each bucket weighs, by "bytes" or "rate"; no bucket weighs nothing, so that empty ones are spread too."""
    chosen = [load.rate if by == "rate" else float(load.size_bytes) for load in loads]
    mean = sum(chosen) / len(chosen)
    return [cost + (mean / 100 or 1.0) for cost in chosen]


def imbalance(owners: Sequence[str], costs: Sequence[float], places: Sequence[Place]) -> float:
    """(Load / share) - 1 of the fullest shard; infinite when a shard that should be empty is not."""
    shares = _shares(costs, places)
    held = _held(owners, costs, places)
    worst = -1.0
    for name, load in held.items():
        if load and not shares[name]:
            return float("inf")
        if shares[name]:
            worst = max(worst, load / shares[name] - 1)
    return worst


def make_plan(
    owners: Sequence[str],
    costs: Sequence[float],
    places: Sequence[Place],
    threshold: float = THRESHOLD_DEFAULT,
    pins: Pins | None = None,
) -> Plan:
    """The fewest moves that a greedy search finds: empty what is draining, then even out while that helps.

    Nothing is evened out while the fullest shard is at most `threshold` above its share. `pins`: the shards that alone
    may have a bucket, for those buckets of which that is so. Refused when there is no shard to move a bucket to.
    """
    if all(place.draining for place in places):
        message = "every shard is draining: there is none to move to"
        raise Refused(message)
    now, pins = list(owners), pins or {}
    moves: list[PlannedMove] = []
    open_ = [place.name for place in places if not place.draining]
    for bucket in sorted(range(len(now)), key=lambda b: -costs[b]):
        if now[bucket] not in open_:
            allowed = [name for name in open_ if name in pins.get(bucket, open_)]
            if not allowed:
                wanted = ", ".join(sorted(pins[bucket]))
                raise Refused(f"bucket {bucket} is pinned to {wanted}, and none of them may be given buckets")
            _move(bucket, _emptiest(now, costs, places, allowed), now, moves)
    if imbalance(now, costs, places) > threshold:
        while (better := _best_step(now, costs, places, pins)) is not None:
            _move(*better, now, moves)
    settled = _settle(owners, moves)
    before, after = imbalance(owners, costs, places), imbalance(now, costs, places)
    return Plan(settled, tuple(owners), tuple(now), before, after)


def _move(bucket: int, target: str, now: list[str], moves: list[PlannedMove]) -> None:
    moves.append(PlannedMove(bucket, now[bucket], target))
    now[bucket] = target


def _settle(owners: Sequence[str], moves: Sequence[PlannedMove]) -> tuple[PlannedMove, ...]:
    """A bucket that is moved twice goes straight to where it ends."""
    last = {move.bucket: move.target for move in moves}
    return tuple(
        PlannedMove(bucket, owners[bucket], target) for bucket, target in last.items() if owners[bucket] != target
    )


def _shares(costs: Sequence[float], places: Sequence[Place]) -> dict[str, float]:
    weights = {place.name: 0.0 if place.draining else place.weight for place in places}
    total, weight = sum(costs), sum(weights.values())
    return {name: total * each / weight for name, each in weights.items()}


def _held(owners: Sequence[str], costs: Sequence[float], places: Sequence[Place]) -> dict[str, float]:
    held = {place.name: 0.0 for place in places}
    for owner, cost in zip(owners, costs, strict=True):
        held[owner] += cost
    return held


def _emptiest(now: Sequence[str], costs: Sequence[float], places: Sequence[Place], allowed: Sequence[str]) -> str:
    shares, held = _shares(costs, places), _held(now, costs, places)
    return min(allowed, key=lambda name: (held[name] / shares[name], name))


def _best_step(
    now: Sequence[str], costs: Sequence[float], places: Sequence[Place], pins: Pins
) -> tuple[int, str] | None:
    """The bucket to take from the fullest shard to the emptiest, if both are then less full than the fullest was.

    A pinned bucket goes to the emptiest shard that may have it.

    Only fullness counts, not how far the emptiest is below its share: else a small empty shard would be overfilled.
    """
    shares, held = _shares(costs, places), _held(now, costs, places)
    open_ = [name for name in shares if shares[name]]
    full = max(open_, key=lambda name: (held[name] / shares[name], name))
    by_room = sorted(open_, key=lambda name: (held[name] / shares[name], name))

    def target(bucket: int) -> str:
        return next((name for name in by_room if name in pins.get(bucket, by_room)), full)

    def fullness(bucket: int) -> float:
        to, cost = target(bucket), costs[bucket]
        return max((held[full] - cost) / shares[full], (held[to] + cost) / shares[to])

    mine = [bucket for bucket, owner in enumerate(now) if owner == full and target(bucket) != full]
    best = min(mine, key=lambda bucket: (fullness(bucket), bucket), default=None)
    if best is None or fullness(best) >= held[full] / shares[full] * (1 - 1e-9):
        return None
    return best, target(best)


def totals(owners: Sequence[str], loads: Sequence[Load]) -> Mapping[str, tuple[int, int, int]]:
    """Shard -> (buckets, rows, bytes)."""
    found: dict[str, tuple[int, int, int]] = {}
    for owner, load in zip(owners, loads, strict=True):
        buckets, rows, size = found.get(owner, (0, 0, 0))
        found[owner] = (buckets + 1, rows + load.rows, size + load.size_bytes)
    return found
