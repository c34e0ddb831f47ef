"""What a fleet needs, and what that costs: from the figures of a run, a policy, and the reader's own prices. Pure."""

from dataclasses import dataclass
from typing import Final

from bench.measure import MeasurementError
from bench.model import CORE_MAX, DAY_S, Costs, Needs, needs
from bench.results import Run

SCALE: Final = "scale-model: cost"
STORED: Final = ("hot", "hours while it was hot", "packed", "days and minutes", "Parquet")
WORK: Final = ("packing", "archiving")
KINDS: Final = ("vehicle", "meter")  # as many of one as of the other
FREE: Final = 0.3  # of disks: estimate
MONTH_DAYS: Final = 30
# How the fitted costs are called in a run: parts of Costs, in their order, with units.
COSTS: Final = {
    "router": (("a reading", "us"), ("a request", "us")),
    "postgres": (("a reading", "us"), ("a transaction", "us"), ("a bucket in one", "us")),
    "wal": (("a reading", "bytes"), ("a transaction", "bytes")),
    "commit": (("a transaction", "s"), ("a reading", "s")),
}


@dataclass(frozen=True)
class Measured:
    """Costs of ingestion; bytes of a reading by tier, as in STORED; microseconds to pack it, and to archive it."""

    costs: Costs
    stored: tuple[float, ...]
    work: tuple[float, ...]

    @classmethod
    def of(cls, runs: list[Run]) -> "Measured":
        """From runs of `scale-model` and `storage`. MeasurementError names what they lack."""
        figures = {figure.name: figure.median for run in runs for each in run.scenarios for figure in each.figures}

        def of_kinds(what: str) -> float:
            return sum(_figure(figures, f"storage: {kind}, {what}") for kind in KINDS) / len(KINDS)

        parts = {
            part: tuple(_figure(figures, f"{SCALE}, {part}, {what}") for what, _ in named)
            for part, named in COSTS.items()
        }
        stored, work = tuple(map(of_kinds, STORED)), tuple(map(of_kinds, WORK))
        return cls(Costs(**parts), stored, work)  # type: ignore[arg-type]


def _figure(figures: dict[str, float], name: str) -> float:
    if name not in figures:
        message = f"no figure {name!r} in these runs: run scale-model and storage with --out"
        raise MeasurementError(message)
    return figures[name]


@dataclass(frozen=True)
class Kept:
    """Days: hot, then packed on its shard, then in the archive. Sums stay on the shard all the time."""

    hot: int = 7
    packed: int = 83
    archived: int = 1_410

    @property
    def days(self) -> int:
        return self.hot + self.packed + self.archived


@dataclass(frozen=True)
class Prices:
    """A month's, in whatever currency: a core, a terabyte of the shards' disks, and one of the object store."""

    core: float = 0.0
    disk_tb: float = 0.0
    object_tb: float = 0.0


@dataclass(frozen=True)
class Capacity:
    """What a fleet needs: `needs` of ingestion, cores for packing and archiving, terabytes by tier."""

    needs: Needs
    lifecycle_cores: float
    hot_tb: float
    packed_tb: float
    sums_tb: float
    archive_tb: float

    @property
    def disk_tb(self) -> float:
        """Of the shards, with room left."""
        return (self.hot_tb + self.packed_tb + self.sums_tb) / (1 - FREE)

    @property
    def cores(self) -> float:
        return self.needs.postgres_cores + self.needs.router_cores + self.lifecycle_cores

    def cost(self, prices: Prices) -> float:
        """A month's."""
        return self.cores * prices.core + self.disk_tb * prices.disk_tb + self.archive_tb * prices.object_tb

    def row(self, prices: Prices) -> list[str]:
        """Of a table."""
        found = self.needs
        return [
            f"{found.devices:,}",
            f"{found.rate:,.0f}",
            f"{found.shards}",
            f"{found.postgres_cores:.1f}",
            f"{found.router_cores:.1f}",
            f"{self.lifecycle_cores:.1f}",
            f"{self.hot_tb:,.2f}",
            f"{self.packed_tb:,.2f}",
            f"{self.sums_tb:,.2f}",
            f"{self.disk_tb:,.2f}",
            f"{self.archive_tb:,.2f}",
            f"{found.connections_max}",
            f"{self.cost(prices):,.0f}" if prices != Prices() else "-",
        ]


HEADER: Final = (
    "devices", "readings/s", "shards", "PostgreSQL cores", "router cores", "lifecycle cores", "hot TB", "packed TB",
    "sums TB", "disks TB", "archive TB", "connections", "a month",
)  # fmt: skip


def capacity(measured: Measured, kept: Kept, devices: int) -> Capacity:
    """Devices that post a reading a minute, each by itself. ValueError when no number of shards carries them."""
    hot, hours, packed, sums, archived = measured.stored
    found = needs(measured.costs, devices, hot + hours)
    day_tb = found.rate * DAY_S / 1e12
    return Capacity(
        found,
        found.rate * sum(measured.work) / 1e6 / CORE_MAX,
        day_tb * kept.hot * (hot + hours),
        day_tb * kept.packed * packed,
        day_tb * (kept.days - kept.hot) * sums,
        day_tb * kept.archived * archived,
    )
